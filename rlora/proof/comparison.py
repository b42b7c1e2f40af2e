"""Which of two versions log-probabilities come from, and how sure that is.

With the trainer's log-probabilities a of the sampler's tokens under the new version and b under another one (the
previous version, or the base), the sampler's x are nearer to a, in root mean square, exactly when the served fraction

    t = <x - b, a - b> / <a - b, a - b>

is above 1/2. It is 1 for the new version and 0 for the other, give or take noise: two implementations, and two adapters
in one implementation, differ by rounding. Where a and b are no further apart than that, t tends to 1/2 and says
nothing. So there is no absolute threshold. The noise is measured on the base model, which sampler and trainer serve
alike; a comparison counts when a - b is several times as large as the noise (`MIN_RATIO`) on more than a token or two
(`MIN_SEPARATION`), and is undecided otherwise.
"""

from dataclasses import dataclass

import torch

from rlora.proof.evidence import root_mean_square

MIN_RATIO = 3.0  # of the root mean squares of a - b and of the noise; measured in docs/log.md
MIN_SEPARATION = 5.0  # deviations of t between 1/2 and either end


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Where the sampler lies between another version (0) and the new one (1), and how well the two can be told apart.

    `ratio` is the distance of the two versions over the noise, `separation` the deviations of the served fraction
    between the middle and either end, with as many tokens as share in the distance; `error` and `other_error` are root
    mean square differences in nats of the sampler's log-probabilities to the new and to the other version's.
    """

    served_fraction: float
    ratio: float
    separation: float
    error: float
    other_error: float

    @property
    def is_decided(self) -> bool:
        """Whether new and other version differ enough to be told apart."""
        return self.ratio >= MIN_RATIO and self.separation >= MIN_SEPARATION

    @property
    def is_stale(self) -> bool:
        """Whether the sampler serves the other version rather than the new one."""
        return self.is_decided and self.served_fraction <= 0.5


def compare(sampler_N: torch.Tensor, new_N: torch.Tensor, other_N: torch.Tensor, *, noise: float) -> Comparison:
    """Return where the sampler's log-probabilities lie between those of the other version and of the new one.

    `noise` is the root mean square difference of trainer and sampler on the base model, nats. It is the least that is
    assumed: a few tokens that happen to agree with one version must not look like certainty.
    """
    x, a, b = (values.double() for values in (sampler_N, new_N, other_N))
    direction = a - b
    error, other_error = root_mean_square(x - a), root_mean_square(x - b)
    distance = root_mean_square(direction)
    ratio = distance / max(noise, min(error, other_error), 1e-9)
    share = direction.square()
    num_effective = float(share.sum() ** 2 / share.square().sum()) if distance > 0 else 0.0
    return Comparison(
        served_fraction=float((x - b) @ direction / share.sum()) if distance > 0 else 1.0,
        ratio=ratio,
        separation=ratio * num_effective**0.5 / 2,
        error=error,
        other_error=other_error,
    )

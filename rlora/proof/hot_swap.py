"""Hand each version of a policy to the sampler and prove that it is what the sampler serves.

The proof asks which version the sampler's log-probabilities x come from: with the trainer's log-probabilities a of the
same tokens under the new version and b under another one (the previous version, or the base), x is nearer to a, in root
mean square, exactly when the served fraction

    t = <x - b, a - b> / <a - b, a - b>

is above 1/2. It is 1 for the new version and 0 for the other, give or take noise: two implementations, and two adapters
in one implementation, differ by rounding. Where a and b are no further apart than that, t tends to 1/2 and says
nothing. So there is no absolute threshold. The noise is measured on the base model, which sampler and trainer serve
alike, before anything is trained; a comparison counts when a - b is several times as large as the noise (`MIN_RATIO`)
on more than a token or two (`MIN_SEPARATION`), and is logged as undecided otherwise.

It is made after each swap on a canary: tokens drawn the ordinary way after a few fixed sequences, cut where the base is
in doubt. For those the
trainer keeps its log-probabilities of every token under base and previous version, so a proof costs one short forward
pass. One more test needs no statistics: a seeded canary that is bit-identical to the previous version's, or to the
base's, although the trainer's own log-probabilities of tokens in doubt differ, is stale. Before each update a group of
the rollouts is checked in the same way; the other versions are scored only when the error is so large that one of them
could be the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rlora.errors import StaleAdapterError
from rlora.full.weights import Snapshot
from rlora.proof.canary import CANARY_SAMPLES, CERTAIN, Canary, canary_prompts
from rlora.sampler.base import Sampler
from rlora.train.batching import MicroBatch, Row, stack
from rlora.train.policy import Policy
from rlora.types import Completion, Group, SampleRequest, SamplingParams

MIN_UNCERTAIN = 3  # drawn tokens that must be uncertain before identical bits prove anything
MIN_RATIO = 3.0  # of the root mean squares of a - b and of the noise; measured in docs/log.md
MIN_SEPARATION = 5.0  # deviations of t between 1/2 and either end
_NAMES = {"base": "the base model", "previous": "the previous version"}
_CHECKED_TOKENS = 64  # of each of a group's rollouts


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
    error, other_error = _root_mean_square(x - a), _root_mean_square(x - b)
    distance = _root_mean_square(direction)
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


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


class HotSwap:
    """Moves each version of the policy into the sampler; returns only when the sampler was shown to serve it."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        longest: int | None = None,
    ):
        """Draw the canary after parts of `prompts` (token ids) of at most `longest` tokens."""
        self._policy, self._sampler, self._temperature, self._seed = policy, sampler, temperature, seed
        self._prompts = canary_prompts(policy, prompts, longest=longest)
        self._served: Snapshot | None = None
        self._previous: Snapshot | None = None
        self._canaries: dict[str, Canary] = {}  # of "base" and "previous"
        self._noise = 0.0  # of trainer against sampler on the base, nats; measured before the first swap

    def swap(self) -> dict[str, float]:
        """Load the policy's current version into the sampler and prove it on the canary.

        Raises StaleAdapterError when the sampler serves the previous version or the base.
        """
        if not self._canaries:
            with self._policy.adapter_off():
                base = self._canaries["base"] = self._draw_canary(None)
            self._noise = _root_mean_square(base.pick(None).double() - base.pick(base.trainer_logprobs_PV).double())
        snapshot = self._policy.snapshot()
        self._sampler.load([snapshot])
        canary = self._draw_canary(0)
        metrics: dict[str, float] = {}
        for other, stale in self._canaries.items():
            comparison = self._refuse_stale(canary, stale, _name(self._policy), _NAMES[other])
            metrics[f"proof/canary_served_fraction_{other}"] = comparison.served_fraction
            metrics[f"proof/canary_ratio_{other}"] = comparison.ratio
            metrics[f"proof/canary_is_decided_{other}"] = float(comparison.is_decided)
            metrics["proof/canary_error"] = comparison.error
            metrics["proof/canary_num_uncertain"] = int((canary.pick(None) < -CERTAIN).sum())
        self._canaries["previous"] = canary
        self._previous, self._served = self._served, snapshot
        return metrics

    def prove_served(self, policy: int | None) -> None:
        """Prove that requests for the base (`policy` None) or for the swapped version are answered by it.

        For an evaluation, which asks for both by turns: an engine without adapters loads all weights again each time.
        Raises StaleAdapterError when the sampler serves the one in the place of the other.
        """
        wanted, other = self._canaries["base"], self._canaries["previous"]
        names = [_NAMES["base"], _name(self._policy)]
        if policy is not None:
            wanted, other, names = other, wanted, names[::-1]
        self._refuse_stale(self._draw_canary(policy, trainer_logprobs_PV=wanted.trainer_logprobs_PV), other, *names)

    def check(self, groups: Sequence[Group]) -> dict[str, float]:
        """Check a group of the current version's rollouts before they are trained on.

        Another version can be the truth, and be told from this one, only if the error is several times the noise.
        """
        if not groups:  # every prompt was too long
            return {"proof/rollouts_error": 0.0, "proof/rollouts_is_compared": 0.0}
        group = groups[self._policy.version % len(groups)]
        completions = [rollout.completion for rollout in group.rollouts]
        micro_batch, is_first_N = _micro_batch(group.prompt.token_ids, completions), _first_occurrences(completions)
        sampler_N = micro_batch.sampler_logprobs_N[is_first_N]
        micro_batch = micro_batch.to(self._policy.device)
        new_N = self._score(micro_batch)[is_first_N]
        error = _root_mean_square(sampler_N.double() - new_N.double())
        is_compared = error > 2 * self._noise
        if is_compared:
            with self._policy.adapter_off():
                others = {"base": self._score(micro_batch)}
            if self._previous is not None:
                with self._policy.swapped(self._previous):
                    others["previous"] = self._score(micro_batch)
            for other, other_N in others.items():
                comparison = compare(sampler_N, new_N, other_N[is_first_N], noise=self._noise)
                if comparison.is_stale:
                    message = _message("rollouts", _name(self._policy), _NAMES[other], comparison)
                    raise StaleAdapterError(message)
        return {"proof/rollouts_error": error, "proof/rollouts_is_compared": float(is_compared)}

    @torch.no_grad()
    def _draw_canary(self, policy: int | None, *, trainer_logprobs_PV: torch.Tensor | None = None) -> Canary:
        requests = [
            SampleRequest(token_ids=prompt, num_samples=CANARY_SAMPLES, key=("canary", index), policy=policy)
            for index, prompt in enumerate(self._prompts)
        ]
        sampling = SamplingParams(temperature=self._temperature, max_tokens=1)
        completions = self._sampler.sample(requests, sampling, seed=self._seed)
        if trainer_logprobs_PV is None:
            logits_PV = self._policy.next_token_logits(torch.tensor(self._prompts, device=self._policy.device))
            trainer_logprobs_PV = (logits_PV / self._temperature).log_softmax(-1).cpu()
        return Canary(
            drawn=tuple((row, c.token_ids[0], c.logprobs[0]) for row, cs in enumerate(completions) for c in cs),
            trainer_logprobs_PV=trainer_logprobs_PV,
        )

    def _refuse_stale(self, canary: Canary, stale: Canary, wanted: str, served: str) -> Comparison:
        """Compare what was drawn with another version's canary; StaleAdapterError when that version drew it."""
        x, a, b = (canary.pick(of) for of in (None, canary.trainer_logprobs_PV, stale.trainer_logprobs_PV))
        comparison = compare(x, a, b, noise=self._noise)
        num_telling = int(((a != b) & (x < -CERTAIN)).sum())
        is_identical = canary.drawn == stale.drawn and num_telling >= MIN_UNCERTAIN
        if is_identical or comparison.is_stale:
            raise StaleAdapterError(_message("canary", wanted, served, comparison, is_identical=is_identical))
        return comparison

    @torch.no_grad()
    def _score(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return log-probabilities, on the CPU: what is made of them waits for a GPU at each number."""
        return self._policy.score(micro_batch, temperature=self._temperature).logprobs_N.cpu()


def _micro_batch(prompt: Sequence[int], completions: Sequence[Completion]) -> MicroBatch:
    cut = [
        replace(
            completion,
            token_ids=completion.token_ids[:_CHECKED_TOKENS],
            logprobs=completion.logprobs[:_CHECKED_TOKENS],
        )
        for completion in completions
    ]
    return stack([Row(prompt=tuple(prompt), completions=tuple(cut), advantages=(0.0,) * len(cut))])


def _first_occurrences(completions: Sequence[Completion]) -> torch.Tensor:
    """Return which of the checked tokens are not repetitions: the same token after the same tokens says nothing new."""
    seen: set[tuple[int, ...]] = set()
    is_first = []
    for completion in completions:
        for end in range(1, min(len(completion.token_ids), _CHECKED_TOKENS) + 1):
            beginning = completion.token_ids[:end]
            is_first.append(beginning not in seen)
            seen.add(beginning)
    return torch.tensor(is_first)


def _name(policy: Policy) -> str:
    return f"version {policy.version} of the policy"


def _message(where: str, wanted: str, served: str, comparison: Comparison, *, is_identical: bool = False) -> str:
    why = (
        f"the canary's sample is bit-identical to that of {served}, though the trainer tells the two apart"
        if is_identical
        else f"on the {where}, log-probabilities lie {comparison.other_error:.4f} nats from {served} and "
        f"{comparison.error:.4f} from {wanted} (root mean square), {comparison.separation:.1f} deviations apart"
    )
    return (
        f"the sampler does not serve {wanted}: {why}. Nothing was trained on its samples. Check the sampler's version "
        "and its settings; --sampler.kind torch is the reference."
    )

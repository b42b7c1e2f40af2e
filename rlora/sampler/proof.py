"""Hand each version of a policy to the sampler and prove that it is what the sampler serves.

The proof asks which adapter the sampler's log-probabilities x come from: with the trainer's log-probabilities a of the same tokens
under the new version and b under another one (the previous version, or the base), x is nearer to a, in root mean square,
exactly when the served fraction

    t = <x - b, a - b> / <a - b, a - b>

is above 1/2. It is 1 for the new version and 0 for the other, give or take the noise between two implementations, whose
deviation is that of x around the nearer one, s, divided by |a - b|. So there is no threshold to tune: where a and b are too close
for the noise (`MIN_SEPARATION`), the comparison is logged as undecided. It is made on a canary, a few fixed requests
sampled the ordinary way after each swap, and on rollouts before each update. One more test needs no statistics: a seeded canary
that is bit-identical to the previous version's, or to the base's, although the trainer's own log-probabilities differ, is stale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rlora.batching import MicroBatch, Row, stack
from rlora.errors import StaleAdapterError
from rlora.policy import Policy
from rlora.sampler.base import Sampler
from rlora.types import Completion, Group, SampleRequest, SamplingParams

CANARY_TOKENS = 8
NUM_CANARIES = 4
MIN_SEPARATION = 5.0  # deviations of the noise between 1/2 and either end; measured in docs/log.md
_NUM_CHECKED_ROLLOUTS = 8
_CHECKED_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Where the sampler lies between another version (0) and the new one (1), and how well the two can be told apart.

    `separation` is the distance from either to the middle in deviations of the noise; `error` and `other_error` are root mean square
    differences in nats of the sampler's log-probabilities to the new and to the other version's.
    """

    served_fraction: float
    separation: float
    error: float
    other_error: float

    @property
    def is_decided(self) -> bool:
        """Whether new and other version differ enough to be told apart."""
        return self.separation >= MIN_SEPARATION

    @property
    def is_stale(self) -> bool:
        """Whether the sampler serves the other version rather than the new one."""
        return self.is_decided and self.served_fraction <= 0.5


def compare(sampler_N: torch.Tensor, new_N: torch.Tensor, other_N: torch.Tensor) -> Comparison:
    """Return where the sampler's log-probabilities lie between those of the other version and of the new one."""
    x, a, b = (values.double() for values in (sampler_N, new_N, other_N))
    direction = a - b
    norm = float(direction.norm())
    error, other_error = float((x - a).square().mean().sqrt()), float((x - b).square().mean().sqrt())
    if norm == 0:
        return Comparison(served_fraction=1.0, separation=0.0, error=error, other_error=other_error)
    noise = max(min(error, other_error), 1e-9)
    fraction = float((x - b) @ direction) / norm**2
    return Comparison(served_fraction=fraction, separation=norm / (2 * noise), error=error, other_error=other_error)


class HotSwap:
    """Moves each version of the policy into the sampler; returns only when the sampler was shown to serve it."""

    def __init__(self, policy: Policy, sampler: Sampler, prompts: Sequence[Sequence[int]], *, temperature: float = 1.0, seed: int = 0):
        """Use up to `NUM_CANARIES` of `prompts` (token ids) as canaries."""
        self._policy, self._sampler, self._temperature, self._seed = policy, sampler, temperature, seed
        self._prompts = [tuple(prompt) for prompt in prompts[:NUM_CANARIES]]
        self._sampling = SamplingParams(temperature=temperature, max_tokens=CANARY_TOKENS)
        self._previous_theta_KD: torch.Tensor | None = None
        self._current_theta_KD: torch.Tensor | None = None
        self._last_canary: list[Completion] | None = None
        self._base_canary: list[Completion] | None = None

    def swap(self) -> dict[str, float]:
        """Load the policy's current version into the sampler and prove it on the canary.

        Raises StaleAdapterError when the sampler serves the previous version or the base.
        """
        self._sampler.load([self._policy.adapter(k) for k in range(self._policy.num_policies)])
        self._previous_theta_KD, self._current_theta_KD = self._current_theta_KD, self._policy.flat.theta_KD.clone()
        if self._base_canary is None:
            self._base_canary = self._sample_canary(None)
        canary = self._sample_canary(0)
        metrics = self._judge("canary", canary, identical_to={"previous": self._last_canary, "base": self._base_canary})
        self._last_canary = canary
        return metrics

    def check(self, groups: Sequence[Group]) -> dict[str, float]:
        """Compare some of the current version's rollouts in the same way, before they are trained on."""
        pairs = [(group.prompt.token_ids, rollout.completion) for group in groups for rollout in group.rollouts[:1]]
        every = max(1, len(pairs) // _NUM_CHECKED_ROLLOUTS)
        chosen = pairs[::every][:_NUM_CHECKED_ROLLOUTS]
        return self._judge("rollouts", [completion for _, completion in chosen], prompts=[prompt for prompt, _ in chosen])

    def _sample_canary(self, policy: int | None) -> list[Completion]:
        requests = [
            SampleRequest(token_ids=prompt, num_samples=1, key=("canary", index), policy=policy)
            for index, prompt in enumerate(self._prompts)
        ]
        return [completions[0] for completions in self._sampler.sample(requests, self._sampling, seed=self._seed)]

    def _judge(
        self,
        name: str,
        completions: Sequence[Completion],
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        identical_to: dict[str, list[Completion] | None] | None = None,
    ) -> dict[str, float]:
        micro_batch = _micro_batch(prompts or self._prompts, completions).to(self._policy.device)
        new_N = self._score(micro_batch)
        others: dict[str, Callable[[], torch.Tensor]] = {"base": lambda: self._score_base(micro_batch)}
        if self._previous_theta_KD is not None:
            others["previous"] = lambda: self._score_previous(micro_batch)
        metrics: dict[str, float] = {}
        for other, score in others.items():
            other_N = score()
            comparison = compare(micro_batch.sampler_logprobs_N, new_N, other_N)
            same = _are_identical(completions, (identical_to or {}).get(other)) and not torch.equal(new_N, other_N)
            if same or comparison.is_stale:
                raise StaleAdapterError(_message(name, self._policy.version, other, comparison, is_identical=same))
            metrics[f"proof/{name}_served_fraction_{other}"] = comparison.served_fraction
            metrics[f"proof/{name}_separation_{other}"] = comparison.separation
            metrics[f"proof/{name}_is_decided_{other}"] = float(comparison.is_decided)
            metrics[f"proof/{name}_error"] = comparison.error
        return metrics

    @torch.no_grad()
    def _score(self, micro_batch: MicroBatch) -> torch.Tensor:
        return self._policy.score(micro_batch, temperature=self._temperature).logprobs_N

    def _score_base(self, micro_batch: MicroBatch) -> torch.Tensor:
        with self._policy.adapter_off():
            return self._score(micro_batch)

    def _score_previous(self, micro_batch: MicroBatch) -> torch.Tensor:
        assert self._previous_theta_KD is not None
        with self._policy.swapped(self._previous_theta_KD):
            return self._score(micro_batch)


def _micro_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> MicroBatch:
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        cut = Completion(
            token_ids=completion.token_ids[:_CHECKED_TOKENS],
            logprobs=completion.logprobs[:_CHECKED_TOKENS],
            text="",
            stop=completion.stop,
            policy=completion.policy,
            version=completion.version,
        )
        rows.append(Row(prompt=tuple(prompt), completions=(cut,), advantages=(0.0,)))
    return stack(rows)


def _are_identical(completions: Sequence[Completion], others: Sequence[Completion] | None) -> bool:
    if others is None:
        return False
    return [(c.token_ids, c.logprobs) for c in completions] == [(c.token_ids, c.logprobs) for c in others]


def _message(name: str, version: int, other: str, comparison: Comparison, *, is_identical: bool) -> str:
    served = "the base model" if other == "base" else "the previous version"
    why = (
        f"the canary's sample is bit-identical to that of {served}, though the trainer tells the two apart"
        if is_identical
        else f"on the {name}, log-probabilities lie {comparison.other_error:.4f} nats from {served} and {comparison.error:.4f} from version "
        f"{version} (root mean square), {comparison.separation:.1f} deviations apart"
    )
    return (
        f"the sampler does not serve version {version} of the policy: {why}. Nothing was trained on its samples. Check the "
        "sampler's version and LoRA settings; --sampler.kind torch is the reference."
    )

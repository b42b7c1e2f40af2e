"""The rehearsal: before an engine is trusted, it serves two probes as it would serve training, and is checked in all.

It draws as in a step of training: the same kind of requests, several samples a prompt, then a mixed batch of the policy
and the base, the same requests once more, and once with another seed. Nothing depends on how far the policy has been
trained, so a lie that is told from the start is seen before step 0, at any learning rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from rlora.errors import ProofError
from rlora.proof import messages
from rlora.proof.draws import Draws, refuse_copies
from rlora.proof.evidence import LEAST_NOISE, MAX_ERROR, MAX_NOISE, clipped_error, root_mean_square, served_sums
from rlora.proof.probe import Probe, computing, explain, make_probe, snapshot_of
from rlora.proof.scoring import Drawn, drawn, score
from rlora.sampler.base import Sampler
from rlora.seeding import derive_seed
from rlora.train.policy import Policy
from rlora.types import Completion, SampleRequest, SamplingParams

NUM_PROMPTS = 4
NUM_SAMPLES = 16
NUM_TOKENS = 8
_LONGEST = 64  # tokens of a prompt
_MEASURED = 4  # samples by which the sizes of a probe are measured
_SHORTEST = 2  # of one of them: a token that is lost on the way, or there twice, is seen best beside few others
_MOST_EQUAL = 0.5  # of first tokens: with one seed more are equal, with two fewer

Draw = Callable[[Sequence[SampleRequest], SamplingParams, int], list[list[Completion]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rehearsal:
    """What an engine was shown to do: the noise on the base (nats), and by how much each probe was off (nats)."""

    noise: float
    errors: tuple[float, ...]
    surprise: float
    probe: Probe


class Rehearser:
    """Lets an engine serve two probes of a policy, and checks what it draws."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        draw: Draw,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: int,
    ):
        """Draw after the shortest of `prompts` (token ids) with `draw`, which checks the contract of completions."""
        self._policy, self._sampler, self._draw, self._seed = policy, sampler, draw, seed
        chosen = sorted(prompts, key=len)[:NUM_PROMPTS]
        self._prompts = [tuple(prompt[-_LONGEST:]) for prompt in chosen]
        self._prompts[-1] = self._prompts[-1][:_SHORTEST]
        self._sampling = SamplingParams(temperature=sampling.temperature or 1.0, max_tokens=NUM_TOKENS)
        self._draws = Draws()

    def run(self, *, version: int) -> Rehearsal:
        """Return the noise and the errors; the engine holds the second probe then.

        Raises ProofError for an engine whose base is another model, or that does anything else than serve what it was
        given; it says what that looks like.
        """
        policy, sampling = self._policy, self._sampling
        base = self._draw(self._requests(None), sampling, self._seed)
        with policy.adapter_off():
            noise = self._noise_of(drawn(self._answers(base), length=NUM_TOKENS))
        self._sampler.free_cache()
        tokens = drawn([(prompt, group[:_MEASURED]) for prompt, group in self._answers(base)], length=NUM_TOKENS)
        probes = [
            make_probe(policy, tokens, sampling, noise=noise, seed=derive_seed(self._seed, "probe", number))
            for number in range(2)
        ]
        self._sampler.restore_cache()
        errors = []
        for number, probe in enumerate(probes):
            self._sampler.load([snapshot_of(policy, probe, version=version - 2 + number)])
            previous = probes[number - 1] if number else None
            errors.append(self._check_probe(probe, previous, noise=noise))
        with computing(policy, probes[-1].start_D + probes[-1].added_D):
            self._check_seeds()
        return Rehearsal(noise=noise, errors=tuple(errors), surprise=self._draws.surprise, probe=probes[-1])

    def _requests(self, policy: int | None) -> list[SampleRequest]:
        return [
            SampleRequest(token_ids=prompt, num_samples=NUM_SAMPLES, key=("train", "probe", index), policy=policy)
            for index, prompt in enumerate(self._prompts)
        ]

    def _answers(self, completions: Sequence[Sequence[Completion]]) -> list[tuple[tuple[int, ...], list[Completion]]]:
        return [(prompt, list(group)) for prompt, group in zip(self._prompts, completions, strict=True)]

    def _noise_of(self, tokens: Drawn) -> float:
        """Return how far sampler and trainer differ on the base, nats; ProofError where they are two models."""
        scores = score(self._policy, tokens, self._sampling)
        difference_N = (tokens.sampler_N - scores.logprobs_N)[tokens.is_first_N]
        noise = max(root_mean_square(difference_N), LEAST_NOISE)
        if noise * self._sampling.temperature > MAX_NOISE:
            raise ProofError(messages.two_models(noise, MAX_NOISE, len(difference_N)))
        self._draws.add(messages.NAMES["base"], tokens, scores)
        return noise

    def _check_probe(self, probe: Probe, previous: Probe | None, *, noise: float) -> float:
        """Return by how much the sampler is off on a probe, nats; ProofError for more than the noise explains."""
        policy = self._policy
        completions = self._draw(self._requests(0), self._sampling, self._seed)
        refuse_copies(completions)
        tokens = drawn(self._answers(completions), length=NUM_TOKENS)
        error = self._check_error(tokens, probe, previous, noise=noise)
        with computing(policy, probe.start_D + probe.added_D):
            self._draws.add("a probe of the policy", tokens, score(policy, tokens, self._sampling))
        of_policy, of_base = self._requests(0), self._requests(None)
        order = [*of_policy[:1], *chain.from_iterable(zip(of_policy[1:], of_base, strict=False)), of_base[-1]]
        short = SamplingParams(temperature=self._sampling.temperature, max_tokens=2)
        mixed = dict(zip([(r.key[-1], r.policy) for r in order], self._draw(order, short, self._seed), strict=True))
        again = [mixed[index, 0] for index in range(len(self._prompts))]
        self._check_error(drawn(self._answers(again), length=2), probe, previous, noise=noise, is_mixed=True)
        if share_of_equal(completions, again) < _MOST_EQUAL:
            raise ProofError(messages.OTHER_DRAWS)
        beside = drawn(self._answers([mixed[index, None] for index in range(len(self._prompts))]), length=2)
        with policy.adapter_off():
            difference_N = beside.sampler_N - score(policy, beside, self._sampling).logprobs_N
        if (wrong := clipped_error(difference_N[beside.is_first_N], noise)) > MAX_ERROR * noise:
            raise ProofError(messages.base_beside(wrong, noise))
        return error

    def _check_error(
        self, tokens: Drawn, probe: Probe, previous: Probe | None, *, noise: float, is_mixed: bool = False
    ) -> float:
        """Return by how much the sampler is off on a probe, nats; ProofError for more than the noise explains, or for
        another part of the disturbance than all of it.
        """
        policy, is_first_N = self._policy, tokens.is_first_N
        sampler_N = tokens.sampler_N[is_first_N]
        with computing(policy, probe.start_D):
            start_N = score(policy, tokens, self._sampling).logprobs_N[is_first_N]
        with computing(policy, probe.start_D + probe.added_D):
            probe_N = score(policy, tokens, self._sampling).logprobs_N[is_first_N]
        error = clipped_error(sampler_N - probe_N, noise)
        if error <= MAX_ERROR * noise and not served_sums(sampler_N, probe_N, start_N).is_off:
            return error
        with policy.adapter_off():
            base_N = score(policy, tokens, self._sampling).logprobs_N[is_first_N]
        looks = messages.looks_like_base(sampler_N, probe_N, base_N, noise)
        if looks is None:
            looks = explain(policy, probe, previous, tokens, self._sampling, noise=noise)
        raise ProofError(messages.probe(root_mean_square(sampler_N - probe_N), noise, looks, is_mixed=is_mixed))

    def _check_seeds(self) -> None:
        """Refuse a sampler whose draws do not depend on the seed, where what it serves is uncertain enough to tell."""
        short = SamplingParams(temperature=self._sampling.temperature, max_tokens=2)
        found = [self._draw(self._requests(0), short, self._seed + number) for number in range(2)]
        scores = score(self._policy, drawn(self._answers(found[0]), length=2), self._sampling)
        if float(scores.expected_N.mean()) > 1.0 and share_of_equal(*found) > 1 - _MOST_EQUAL / 4:
            raise ProofError(messages.SAME_DRAWS)


def share_of_equal(some: Sequence[Sequence[Completion]], others: Sequence[Sequence[Completion]]) -> float:
    """Return the share of completions whose first tokens are equal to those in the same place."""
    pairs = [
        one.token_ids[0] == other.token_ids[0]
        for group, other_group in zip(some, others, strict=True)
        for one, other in zip(group, other_group, strict=True)
    ]
    return sum(pairs) / len(pairs)

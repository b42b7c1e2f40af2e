"""The rehearsal: before an engine is trusted, it serves probes as it would serve training, and is checked in all.

It draws as in a step of training: the same kind of requests, several samples a prompt, then a mixed batch of the policy
and the base, the same requests once more, and once with another seed. Nothing depends on how far the policy has been
trained, so a lie that is told from the start is seen before step 0, at any learning rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile

import torch

from rlora.errors import ProofError
from rlora.full.weights import Snapshot
from rlora.proof import messages
from rlora.proof.canary import Canary
from rlora.proof.draws import Draws, refuse_copies
from rlora.proof.evidence import (
    CHANCE,
    MAX_NOISE,
    chance_of_repeats,
    clipped_error,
    root_mean_square,
)
from rlora.proof.probe import (
    Probe,
    computing,
    disturbed_slots,
    effects_of,
    make_probe,
    snapshot_of,
    start_logprobs,
)
from rlora.proof.probe_error import MAX_PROBE_ERROR, probe_error
from rlora.proof.scoring import (
    Drawn,
    drawn,
    least_noise,
    logprobs_of,
    rounding_of,
    score,
)
from rlora.sampler.base import Sampler
from rlora.train.policy import Policy
from rlora.types import Completion, SampleRequest, SamplingParams

NUM_PROMPTS = 3
NUM_SAMPLES = 8
NUM_TOKENS = 8
_LONGEST = 64  # tokens of a prompt
_SEED = 0
_SHORT = 2  # tokens of the draws beside
_MEASURED = 4  # samples by which the sizes of a probe are measured
_NEARLY_ALL = 0.9  # of first tokens, where the same was asked of another place
_MOST_EQUAL = 0.5  # of first tokens: with one seed more are equal

Draw = Callable[[Sequence[SampleRequest], SamplingParams, int], list[list[Completion]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rehearsal:
    """What an engine was shown to do: the noise on the base (nats), by how much each probe was off (nats), how far the
    draws were from what is expected of them (standard deviations), and the canary of the last probe.

    `served` are the probes, with what was drawn from each.
    """

    noise: float
    errors: tuple[float, ...]
    surprise: float
    canary: Canary
    served: tuple[tuple[Snapshot, list[list[Completion]]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an engine drew from a probe in a batch with requests for the base, what it drew for those, and with another
    seed.
    """

    mixed: list[list[Completion]]
    beside: list[list[Completion]]
    with_other_seed: list[list[Completion]]


class Rehearser:
    """Lets an engine serve probes of a policy, and checks what it draws."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        draw: Draw,
        draw_canary: Callable[[int | None], Canary],
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        frees_cache: bool,
    ):
        """Draw after the shortest of `prompts` (token ids) with `draw`, which checks the contract of completions.

        What is drawn from the base, and so the noise that is measured, is the same whatever the run's seed.
        `frees_cache` says that the trainer can compute gradients only while the engine's cache is away.
        """
        self._frees_cache = frees_cache
        self._policy, self._sampler, self._seed = policy, sampler, _SEED
        self._draw, self._draw_canary = draw, draw_canary
        chosen = sorted(prompts, key=len)[:NUM_PROMPTS]
        self._prompts = [tuple(prompt[-_LONGEST:]) for prompt in chosen]
        self._sampling = SamplingParams(temperature=sampling.temperature or 1.0, max_tokens=NUM_TOKENS)
        self._draws = Draws()

    def run(self, *, version: int) -> Rehearsal:
        """Return the noise and the errors; the engine holds the last probe then.

        Raises ProofError for an engine whose base is another model, or that does anything else than serve what it was
        given; it says what that looks like.
        """
        policy, sampling = self._policy, self._sampling
        base = self._draw(self._requests(None, num_samples=2 * NUM_SAMPLES), sampling, self._seed)
        with policy.adapter_off():
            noise = self._noise_of(drawn(self._answers(base, most=2 * NUM_SAMPLES), length=NUM_TOKENS))
        self._free()
        tokens = drawn(self._answers(base, most=_MEASURED), length=NUM_TOKENS)
        effects = effects_of(policy, tokens, sampling, seed=self._seed)
        start_N = start_logprobs(policy, tokens, sampling, seed=self._seed)
        probes = [
            make_probe(policy, effects, tokens, start_N, sampling, number=number, seed=self._seed)
            for number in range(len(disturbed_slots(policy)))
        ]
        self._restore()
        errors, served = list[float](), list[tuple[Snapshot, list[list[Completion]]]]()
        for number, probe in enumerate(probes[:-1]):
            alone = self._serve(snapshot_of(policy, probe, version=version - len(probes) + number), served)
            self._free()
            errors.append(self._check(probe, probes[number - 1] if number else None, alone, noise=noise))
            self._restore()
        alone = self._serve(snapshot_of(policy, probes[-1], version=version - 1), served)
        answers = self._ask()
        with computing(policy, probes[-1].theta_D):
            canary = self._draw_canary(0)
        self._free()
        errors.append(self._check(probes[-1], probes[-2] if len(probes) > 1 else None, alone, noise=noise))
        self._check_beside(probes[-1], alone, answers, noise=noise)
        self._restore()
        return Rehearsal(
            noise=noise, errors=tuple(errors), surprise=self._draws.surprise, canary=canary, served=tuple(served)
        )

    def follow(self, done: Rehearsal, *, place: int, version: int) -> Rehearsal:
        """Hold that the engine serves this policy's place as it served that of another of its shape, and return what it
        was shown to do.

        The same probes are served, beginning with number `place`, so that places that are rehearsed in one batch have
        different ones at a time. Where an answer differs the policy is rehearsed by itself, which raises ProofError
        for what its place does wrong.
        """
        count = len(done.served)
        for number in range(count):
            snapshot, expected = done.served[(place + number) % count]
            found = self._serve(replace(snapshot, version=version - count + number), [])
            if not are_alike(found, expected, noise=done.noise):
                return self.run(version=version)
        return done

    def _free(self) -> None:
        if self._frees_cache:
            self._sampler.free_cache()

    def _restore(self) -> None:
        if self._frees_cache:
            self._sampler.restore_cache()

    def _serve(
        self, snapshot: Snapshot, served: list[tuple[Snapshot, list[list[Completion]]]]
    ) -> list[list[Completion]]:
        """Hand a probe over, and return what the engine draws from it as in a step of training; keep both."""
        self._sampler.load([snapshot])
        drawn = self._draw(self._requests(0), self._sampling, self._seed)
        served.append((snapshot, drawn))
        return drawn

    def _ask(self) -> Answers:
        """Return what the engine draws from the probe that it holds otherwise than by itself."""
        of_policy, of_base = self._requests(0), self._requests(None)
        order = [*of_policy[:1], *chain.from_iterable(zip(of_policy[1:], of_base, strict=False)), of_base[-1]]
        short = SamplingParams(temperature=self._sampling.temperature, max_tokens=_SHORT)
        mixed = dict(zip([(r.key[-1], r.policy) for r in order], self._draw(order, short, self._seed), strict=True))
        places = range(len(self._prompts))
        return Answers(
            mixed=[mixed[index, 0] for index in places],
            beside=[mixed[index, None] for index in places],
            with_other_seed=self._draw(of_policy, short, self._seed + 1),
        )

    def _requests(self, policy: int | None, *, num_samples: int = NUM_SAMPLES) -> list[SampleRequest]:
        return [
            SampleRequest(token_ids=prompt, num_samples=num_samples, key=("train", "probe", index), policy=policy)
            for index, prompt in enumerate(self._prompts)
        ]

    def _answers(
        self, completions: Sequence[Sequence[Completion]], *, most: int = NUM_SAMPLES
    ) -> list[tuple[tuple[int, ...], list[Completion]]]:
        return [(prompt, list(group[:most])) for prompt, group in zip(self._prompts, completions, strict=True)]

    def _noise_of(self, tokens: Drawn) -> float:
        """Return how far sampler and trainer differ on the base, nats; ProofError where they are two models."""
        scores = score(self._policy, tokens, self._sampling)
        difference_N = (tokens.sampler_N - scores.logprobs_N)[tokens.is_first_N]
        noise = max(root_mean_square(difference_N), least_noise(self._policy))
        if noise * self._sampling.temperature > MAX_NOISE:
            raise ProofError(messages.two_models(noise, MAX_NOISE, len(difference_N)))
        self._draws.add(messages.NAMES["base"], tokens, scores, trainer_noise=rounding_of(self._policy, noise))
        return noise

    def _check(
        self, probe: Probe, previous: Probe | None, alone: Sequence[Sequence[Completion]], *, noise: float
    ) -> float:
        """Return by how much the sampler is off on a probe, nats; ProofError for what it did not serve or draw."""
        policy = self._policy
        refuse_copies(alone)
        tokens = drawn(self._answers(alone), length=NUM_TOKENS)
        scores, error = probe_error(policy, probe, previous, tokens, self._sampling, noise=noise)
        self._draws.add("a probe of the policy", tokens, scores, trainer_noise=rounding_of(policy, noise))
        return error

    def _check_beside(
        self, probe: Probe, alone: Sequence[Sequence[Completion]], answers: Answers, *, noise: float
    ) -> None:
        """Raise ProofError for a batch of policy and base in which either is answered by something else, and for draws
        that do not follow their seed. These are few tokens, so only what is far off counts.
        """
        policy = self._policy
        mixed, beside = (drawn(self._answers(one), length=_SHORT) for one in (answers.mixed, answers.beside))
        with computing(policy, probe.theta_D):
            policy_N = logprobs_of(policy, mixed, self._sampling)
        with policy.adapter_off():
            base_N = logprobs_of(policy, beside, self._sampling)
        for tokens, found_N, message in (
            (mixed, policy_N, messages.policy_beside),
            (beside, base_N, messages.base_beside),
        ):
            error = clipped_error((tokens.sampler_N - found_N)[tokens.is_first_N], noise)
            if error > MAX_PROBE_ERROR * noise:
                raise ProofError(message(error, noise))
        if share_of_equal(alone, answers.mixed) < _MOST_EQUAL:
            raise ProofError(messages.OTHER_DRAWS)
        beginnings = [beginning_of(one) for group in alone for one in group]
        if chance_of_repeats(beginnings, list(chain.from_iterable(answers.with_other_seed))) < CHANCE:
            raise ProofError(messages.SAME_DRAWS)


def are_alike(some: Sequence[Sequence[Completion]], others: Sequence[Sequence[Completion]], *, noise: float) -> bool:
    """Return whether an engine drew the same twice: nearly all first tokens are equal, and as far as tokens are, their
    log-probabilities differ by less than the half of the noise (nats), to which a single tensor of a probe would add.
    """
    differences = [
        one_logprob - other_logprob
        for group, other_group in zip(some, others, strict=True)
        for one, other in zip(group, other_group, strict=True)
        for _, _, one_logprob, other_logprob in takewhile(
            lambda pair: pair[0] == pair[1],
            zip(one.token_ids, other.token_ids, one.logprobs, other.logprobs, strict=False),
        )
    ]
    if share_of_equal(some, others) < _NEARLY_ALL:
        return False
    return clipped_error(torch.tensor(differences), noise) <= noise / 2


def beginning_of(completion: Completion) -> Completion:
    """Return what is left of a completion where only `_SHORT` tokens may be drawn."""
    ids, logprobs = completion.token_ids[:_SHORT], completion.logprobs[:_SHORT]
    return replace(completion, token_ids=ids, logprobs=logprobs)


def share_of_equal(some: Sequence[Sequence[Completion]], others: Sequence[Sequence[Completion]]) -> float:
    """Return the share of completions whose first tokens are equal to those in the same place."""
    pairs = [
        one.token_ids[0] == other.token_ids[0]
        for group, other_group in zip(some, others, strict=True)
        for one, other in zip(group, other_group, strict=True)
    ]
    return sum(pairs) / len(pairs)

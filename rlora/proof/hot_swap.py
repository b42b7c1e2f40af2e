"""Hand each version of a policy to the sampler and prove that it is what the sampler serves.

Before the first version the engine is rehearsed (rehearsal.py): it serves probes, every tensor of which can be seen, so
that what it drops, scales, swaps or mixes up is named before anything is trained.

After each swap the version is told from the base and from the version before on a canary (comparison.py): tokens drawn
the ordinary way after a few fixed sequences, cut where the base is in doubt. The trainer keeps its log-probabilities
of every token there under base and previous version, so this costs one short forward pass. One more test needs no
statistics: a seeded canary that is bit-identical to the previous version's, or to the base's, although the trainer's
own log-probabilities of tokens in doubt differ, is stale.

The rollouts are checked before they are trained on (evidence.py): a sample of them is scored under the version and
under the base, which gives three answers that are pooled over steps, and all tokens of the step are checked once more
with the log-probabilities that the trainer computes anyway.
"""

from collections.abc import Sequence

import torch

from rlora.errors import NonFiniteError, ProofError, StaleAdapterError
from rlora.full.weights import Snapshot
from rlora.proof import messages
from rlora.proof.canary import CANARY_SAMPLES, CERTAIN, Canary, canary_prompts
from rlora.proof.comparison import Comparison, compare
from rlora.proof.draws import Draws, refuse_copies
from rlora.proof.evidence import MAX_ERROR, Pooled, Scores, clipped_error, root_mean_square, served_sums
from rlora.proof.peers import ALONE, Peers
from rlora.proof.rehearsal import Rehearser
from rlora.proof.scoring import Drawn, drawn, logprobs_of, rounding_of, score
from rlora.sampler.base import Sampler
from rlora.sampler.contract import check_completions
from rlora.train.policy import Policy
from rlora.train.token_log import TrainedTokens
from rlora.types import Completion, Group, SampleRequest, SamplingParams

MIN_UNCERTAIN = 3  # drawn tokens that must be uncertain before identical bits prove anything
_PLAIN = SamplingParams()
_CHECKED_TOKENS = 64  # of a step's, drawn
_CHECKED_LENGTH = 32  # of one completion, at most


class HotSwap:
    """Moves each version of the policy into the sampler; returns only when the sampler was shown to serve it."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: SamplingParams = _PLAIN,
        seed: int = 0,
        longest: int | None = None,
        frees_cache: bool = False,
        peers: Peers = ALONE,
    ):
        """Draw the canary after parts of `prompts` (token ids) of at most `longest` tokens, and rehearse with them.

        `sampling` is how the rollouts are drawn, that will be checked; `frees_cache` says that the engine gives its
        cache's memory to the trainer. `peers` are the other policies that the sampler serves.
        """
        self._policy, self._sampler, self._sampling, self._seed = policy, sampler, sampling, seed
        self._frees_cache, self._peers = frees_cache, peers
        self._own_prompts = [prompt[: longest or len(prompt)] for prompt in prompts]
        self._prompts = canary_prompts(policy, prompts, longest=longest)
        self._served: Snapshot | None = None
        self._previous: Snapshot | None = None
        self._canaries: dict[str, Canary] = {}  # of "base" and "previous"
        self._noise = 0.0  # of trainer against sampler on the base, nats; measured before the first swap
        self._num_checks = 0  # of this version
        self._served_fraction, self._draws = Pooled(), Draws()

    @property
    def num_tokens(self) -> int:
        """Rows of the model's embedding."""
        return self._policy.base.num_tokens

    def rehearse(self) -> dict[str, float]:
        """Let the engine serve probes of the policy, and draw the base's canary.

        Raises ProofError for an engine that does anything else than serve what it is given, and says what that is.
        """
        rehearser = Rehearser(
            self._policy,
            self._sampler,
            self._draw,
            self._draw_canary,
            self._own_prompts,
            self._sampling,
            frees_cache=self._frees_cache,
        )
        version = self._policy.version
        done = self._peers.rehearsal(
            (self._policy.config, self._sampling.temperature),
            lambda: rehearser.run(version=version),
            lambda done, place: rehearser.follow(done, place=place, version=version),
        )
        with self._policy.adapter_off():
            base = self._draw_canary(None)
        self._canaries = {"base": base, "previous": done.canary}
        on_canary = root_mean_square(base.pick(None) - base.pick(base.trainer_logprobs_PV))
        self._noise = max(done.noise, on_canary)
        return {
            "proof/noise": self._noise,
            "proof/probe_error": max(done.errors),
            "proof/probe_surprise": done.surprise,
        }

    def swap(self) -> dict[str, float]:
        """Load the policy's current version into the sampler and prove it on the canary; rehearse before the first.

        Raises StaleAdapterError when the sampler serves the previous version or the base, ProofError for other lies,
        and NonFiniteError, before anything is handed over, when the policy's log-probabilities are no numbers.
        """
        metrics = {} if self._canaries else self.rehearse()
        trainer_logprobs_PV = self._canary_table()
        if bool(trainer_logprobs_PV.isnan().any()):
            raise NonFiniteError(messages.no_numbers(self._policy))
        snapshot = self._policy.snapshot()
        self._sampler.load([snapshot])
        self._num_checks = 0
        canary = self._draw_canary(0, trainer_logprobs_PV=trainer_logprobs_PV)
        for other, stale in self._canaries.items():
            comparison = self._refuse_stale(canary, stale, messages.name(self._policy), messages.NAMES[other])
            metrics[f"proof/canary_served_fraction_{other}"] = comparison.served_fraction
            metrics[f"proof/canary_ratio_{other}"] = comparison.ratio
            metrics[f"proof/canary_is_decided_{other}"] = float(comparison.is_decided)
        for peer, other in self._peers.exchange(canary).items():
            self._refuse_peer(canary, other, peer)
        new_N = canary.pick(canary.trainer_logprobs_PV)
        error = clipped_error(canary.pick(None) - new_N, self._noise)
        if error > MAX_ERROR * self._noise and not rounding_of(self._policy, self._noise):  # too few tokens to round
            base_N = canary.pick(self._canaries["base"].trainer_logprobs_PV)
            raise ProofError(messages.neither("canary", self._policy, canary.pick(None), new_N, base_N, self._noise))
        metrics["proof/canary_error"] = error
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
        names = [messages.NAMES["base"], messages.name(self._policy)]
        if policy is not None:
            wanted, other, names = other, wanted, names[::-1]
        self._refuse_stale(self._draw_canary(policy, trainer_logprobs_PV=wanted.trainer_logprobs_PV), other, *names)

    def check(self, groups: Sequence[Group], *, policy: int | None = 0) -> dict[str, float]:
        """Check a sample of the rollouts of the current version, or of the base (`policy` None).

        Raises StaleAdapterError for rollouts of another version, ProofError for copies, for tokens of another
        distribution and for log-probabilities that no version has.
        """
        refuse_copies([[rollout.completion for rollout in group.rollouts] for group in groups])
        answers = self._some(groups)
        if not answers:  # every prompt was too long
            return {"proof/rollouts_error": 0.0}
        tokens = drawn(answers, length=_CHECKED_LENGTH)
        if policy is None:
            with self._policy.adapter_off():
                new = score(self._policy, tokens, self._sampling)
            base_logprobs_N = new.logprobs_N
        else:
            new = score(self._policy, tokens, self._sampling)
            with self._policy.adapter_off():
                base_logprobs_N = logprobs_of(self._policy, tokens, self._sampling)
        is_first_N = tokens.is_first_N
        sampler_N, new_N, base_N = (
            values_N[is_first_N] for values_N in (tokens.sampler_N, new.logprobs_N, base_logprobs_N)
        )
        error = clipped_error(sampler_N - new_N, self._noise)
        if policy is not None and error > 2 * self._noise:
            self._refuse_other_version(tokens, sampler_N, new_N, base_N)
        name = messages.NAMES["base"] if policy is None else messages.name(self._policy)
        self._check_sums(name, tokens, new, sampler_N, new_N, base_N)
        if error > MAX_ERROR * self._noise:
            raise ProofError(messages.neither("rollouts", self._policy, sampler_N, new_N, base_N, self._noise))
        served = self._served_fraction.last  # of this step alone: a run that goes on logs what it would have logged
        return {
            "proof/rollouts_error": error,
            "proof/rollouts_served_fraction": 1 + served.relative,
            "proof/rollouts_deviations": served.z,
            "proof/rollouts_surprise": self._draws.surprise,
        }

    def check_tokens(self, tokens: TrainedTokens) -> None:
        """Check all tokens of a step, with the log-probabilities that the trainer has of them before it is updated.

        Raises ProofError where they are further apart than the noise explains.
        """
        error = clipped_error(tokens.sampler_logprobs_N - tokens.trainer_logprobs_N, self._noise)
        if error > MAX_ERROR * self._noise:
            raise ProofError(messages.far_off(self._policy, error, self._noise, len(tokens.sampler_logprobs_N)))

    def _some(self, groups: Sequence[Group]) -> list[tuple[tuple[int, ...], list[Completion]]]:
        """Return completions with their prompts that have about `_CHECKED_TOKENS` tokens: of one group, another one at
        each check, and spread over it; of the next groups where one has too few.
        """
        answers: list[tuple[tuple[int, ...], list[Completion]]] = []
        first, lacking = self._policy.version + self._num_checks, _CHECKED_TOKENS
        self._num_checks += 1
        for number in range(len(groups)):
            group = groups[(first + number) % len(groups)]
            size = len(group.rollouts)
            order = sorted(range(size), key=lambda place: ((place - first) % size % 2, (place - first) % size))
            chosen: list[Completion] = []
            for place in order:  # every second one first
                if lacking > 0:
                    chosen.append(group.rollouts[place].completion)
                    lacking -= min(len(chosen[-1].token_ids), _CHECKED_LENGTH)
            answers.append((group.prompt.token_ids, chosen))
            if lacking <= 0:
                break
        return answers

    def _refuse_other_version(
        self, tokens: Drawn, sampler_N: torch.Tensor, new_N: torch.Tensor, base_N: torch.Tensor
    ) -> None:
        others = {"base": base_N}
        if self._previous is not None:
            with self._policy.swapped(self._previous):
                others["previous"] = score(self._policy, tokens, self._sampling).logprobs_N[tokens.is_first_N]
        for other, other_N in others.items():
            comparison = compare(sampler_N, new_N, other_N, noise=self._noise)
            if comparison.is_stale:
                raise StaleAdapterError(
                    messages.stale("rollouts", messages.name(self._policy), messages.NAMES[other], comparison)
                )

    def _check_sums(
        self, name: str, tokens: Drawn, new: Scores, sampler_N: torch.Tensor, new_N: torch.Tensor, base_N: torch.Tensor
    ) -> None:
        """Add this step's sums to those of the steps before, and refuse what deviates."""
        rounding = rounding_of(self._policy, self._noise)
        self._served_fraction.add(served_sums(sampler_N, new_N, base_N, trainer_noise=rounding))
        for sums in self._served_fraction.windows():
            if sums.is_off:
                raise ProofError(messages.part_served(name, sums))
        if self._sampling.temperature > 0:
            self._draws.add(name, tokens, new, trainer_noise=rounding)
        elif (gap := clipped_error(new.gap_N, self._noise)) > MAX_ERROR * self._noise:
            raise ProofError(messages.not_greedy(name, gap, self._noise))

    def _draw(self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int) -> list[list[Completion]]:
        """Return what the sampler draws, which keeps the contract of completions."""
        completions = self._sampler.sample(requests, sampling, seed=seed)
        check_completions(requests, completions, sampling, num_tokens=self.num_tokens)
        return completions

    @torch.no_grad()
    def _canary_table(self) -> torch.Tensor:
        """Return the trainer's log-probabilities (P, V) of every token after the canary's prompts, on the CPU."""
        logits_PV = self._policy.next_token_logits(torch.tensor(self._prompts, device=self._policy.device))
        return (logits_PV / (self._sampling.temperature or 1.0)).log_softmax(-1).cpu()

    def _draw_canary(self, policy: int | None, *, trainer_logprobs_PV: torch.Tensor | None = None) -> Canary:
        requests = [
            SampleRequest(token_ids=prompt, num_samples=CANARY_SAMPLES, key=("canary", index), policy=policy)
            for index, prompt in enumerate(self._prompts)
        ]
        temperature = self._sampling.temperature or 1.0
        completions = self._draw(requests, SamplingParams(temperature=temperature, max_tokens=1), self._seed)
        if trainer_logprobs_PV is None:
            trainer_logprobs_PV = self._canary_table()
        return Canary(
            drawn=tuple((row, c.token_ids[0], c.logprobs[0]) for row, cs in enumerate(completions) for c in cs),
            trainer_logprobs_PV=trainer_logprobs_PV,
        )

    def _refuse_peer(self, canary: Canary, other: Canary, peer: str) -> None:
        """Raise StaleAdapterError when another policy's version was served, where the two can be told apart."""
        own, others = canary.pick(canary.trainer_logprobs_PV), canary.pick(other.trainer_logprobs_PV)
        comparison = compare(canary.pick(None), own, others, noise=self._noise)
        if comparison.is_stale:
            served = messages.peer(peer)
            raise StaleAdapterError(messages.stale("canary", messages.name(self._policy), served, comparison))

    def _refuse_stale(self, canary: Canary, stale: Canary, wanted: str, served: str) -> Comparison:
        """Compare what was drawn with another version's canary; StaleAdapterError when that version drew it."""
        x, a, b = (canary.pick(of) for of in (None, canary.trainer_logprobs_PV, stale.trainer_logprobs_PV))
        comparison = compare(x, a, b, noise=self._noise)
        num_telling = int(((a != b) & (x < -CERTAIN)).sum())
        is_identical = canary.drawn == stale.drawn and num_telling >= MIN_UNCERTAIN
        if is_identical or comparison.is_stale:
            raise StaleAdapterError(messages.stale("canary", wanted, served, comparison, is_identical=is_identical))
        return comparison

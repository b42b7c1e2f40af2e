"""The records that pass between the parts of rlora; standard library only, so any part can be read and tested alone.

Axes, used as suffixes of names everywhere: P problems of a step, G rollouts of a problem, B rows of a
batch, T tokens, V vocabulary, R rank, I inputs, O outputs, D numbers of a policy. Log-probabilities are natural (nats).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from zlib import crc32

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # vLLM raises a lower one to this; 0 is greedy


class VerdictKind(StrEnum):
    """What the verifier concluded about a completion, and why."""

    CORRECT = "correct"
    WRONG = "wrong"
    NOT_WORKED_OUT = "not_worked_out"  # a formula that leaves to do what the gold answer has done, as a copy does
    NO_ANSWER = "no_answer"  # no text of the completion qualifies as its answer
    UNPARSED = "unparsed"  # an answer was found but is not an expression that can be compared
    TIMEOUT = "timeout"  # comparing took longer or more memory than allowed; the worker was killed
    TRUNCATED = "truncated"  # cut off by the token limit before it answered


class StopReason(StrEnum):
    """Why a completion ended."""

    END = "end"  # an end-of-sequence token, which is the completion's last token
    LENGTH = "length"  # the token limit
    STOP_STRING = "stop_string"  # evaluation only


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A turn of a conversation: who speaks (system, user, assistant or tool), and what is said.

    Example:
        >>> Message(role="user", content="What is 2 + 3?").role
        'user'
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with a checkable answer. `id` is unique in its set, as in "aime2024/I-7".

    Where the question is the end of a conversation, `messages` are all its turns, and `question` what the last one,
    the user's, says.
    """

    id: str
    question: str
    answer: str
    source: str
    level: str = ""
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem rendered for one model: the exact token ids that the sampler is given, and their text."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the sampler generated for a prompt.

    `logprobs[t]` is the log-probability (nats) of `token_ids[t]` under the distribution it was drawn from, that is
    after temperature. An end-of-sequence token that ended the completion is its last token. `policy` is the policy's
    number in the sampler and `version` its step. `prompt` is a digest (`digest_of`) of the tokens that the engine says
    it was given as a prompt; None if it does not say.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: StopReason
    policy: int
    version: int
    prompt: int | None = None


def digest_of(token_ids: Sequence[int]) -> int:
    """Return a digest (32 bits) of token ids and of their number."""
    return crc32(array("q", token_ids).tobytes(), len(token_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A problem and one completion of it: what a judge is given."""

    problem: Problem
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says of a completion: the reward that it earns, and the kind of verdict, which is counted.

    `extracted` is the text taken as the answer ("" if none), `reason` says in a few words why ("" if the judge does
    not), `seconds` is what judging took. `measures` are verdicts by other rules, by name, which are reported beside
    the score and train nothing: a mathematics judge that takes the last number of a text adds what the "strict" rule
    says, that takes none. `parts` are the rewards, by name, of which `reward` is the weighted sum; none where it is no
    sum.

    Example:
        >>> Verdict(kind=VerdictKind.WRONG, reward=0.25, reason="right, but four times too long").is_correct
        False
    """

    kind: VerdictKind
    reward: float
    extracted: str = ""
    reason: str = ""
    seconds: float = 0.0
    measures: "Mapping[str, Verdict]" = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_correct(self) -> bool:
        """Whether the completion counts as right."""
        return self.kind is VerdictKind.CORRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion with its verdict."""

    completion: Completion
    verdict: Verdict

    @property
    def reward(self) -> float:
        """What the completion earned, which is its verdict's to say."""
        return self.verdict.reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one prompt by one version of one policy."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ; a group whose rewards are all equal carries no gradient."""
        return len({rollout.reward for rollout in self.rollouts}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """A prompt of which `num_samples` completions are wanted from one policy that the sampler serves.

    `key` seeds the request: the same key, prompt, policy version and run seed give the same completions whatever else
    is sampled beside it. `policy` None means the base model without an adapter. `seed` is the run's seed where a call
    has requests of several runs; None takes the call's. The samples are those that follow `first` others of the key.
    """

    token_ids: tuple[int, ...]
    num_samples: int
    key: tuple[str | int, ...]
    policy: int | None = 0
    seed: int | None = None
    first: int = 0

    def seed_path(self, seed: int) -> tuple[str | int, ...]:
        """Return what the request's draws derive from, in a call whose run has this seed."""
        return (seed if self.seed is None else self.seed, "sample", *self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. Nothing else shapes the distribution: top-k, min-p and penalties are off."""

    temperature: float = 1.0
    """Logits are divided by it, in sampler and trainer; 0 is greedy (evaluation only)."""
    top_p: float = 1.0
    """Share of the probability that is sampled from; below 1 in evaluation only."""
    max_tokens: int = 256
    """Tokens after which a completion is cut off."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; evaluation only."""

"""Where the members of a cohort meet: what all of them ask the engine is asked in one call.

Each member has a seat, which is its sampler. A request goes to the engine under the member's number and with its seed,
and comes back as if the member were alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from rlora.cohort.turns import Turn, end_all
from rlora.errors import ConfigError, LayoutError
from rlora.full.weights import Snapshot
from rlora.lora.config import LoraConfig, layer_kinds
from rlora.proof.canary import Canary
from rlora.proof.rehearsal import Rehearsal
from rlora.sampler.base import EngineSpec, Sampler
from rlora.types import Completion, SampleRequest, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Load:
    snapshots: Sequence[Snapshot]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    requests: Sequence[SampleRequest]
    sampling: SamplingParams
    seed: int

    @property
    def is_step(self) -> bool:
        """Whether it is a step's: all members wait for one another there, so that they stay together."""
        return bool(self.requests) and self.requests[0].key[0] == "train" and self.requests[0].key[1] != "probe"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Exchange:
    canary: Canary


@dataclass(frozen=True, slots=True)
class _Round:
    """Wait until all others have computed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """A member has reached a step at which all are compared; it waits until all have, or have ended."""

    step: int
    score: float


class Meeting:
    """Lets members compute by turns, and answers what they ask: of the engine in one call, of one another at once."""

    def __init__(
        self,
        make_sampler: Callable[[EngineSpec], Sampler],
        *,
        decide: Callable[[int, Mapping[str, float]], Mapping[str, bool]],
        num_seats: int,
    ):
        """Build the engine when it is first asked, for up to `num_seats` members.

        `decide` is told the scores of all members at a milestone, by name, and says who goes on.
        """
        self._make_sampler, self._decide, self._num_seats = make_sampler, decide, num_seats
        self._turns: list[Turn] = []
        self._seats: dict[str, Seat] = {}
        self._sampler: Sampler | None = None
        self._spec: EngineSpec | None = None  # that it was built from
        self._rehearsals: dict[Any, Rehearsal | None] = {}  # by the kind of the policy; None while it is done
        self._leaving: set[str] = set()

    def add(self, name: str, work: Callable[["Seat"], Any]) -> None:
        """Seat a member, which `work` trains; also while others run, whom it does not disturb.

        Raises ConfigError where the seats are taken.
        """
        taken = {seat.number for seat in self._seats.values()}
        if len(taken) == self._num_seats:
            raise ConfigError(f"the cohort has {self._num_seats} seats, and all are taken; {name} finds none.")
        seat = Seat(self, name, min(set(range(self._num_seats)) - taken))
        self._seats[name] = seat
        self._turns.append(Turn(name, lambda turn: work(seat.taken_by(turn))))

    def remove(self, name: str) -> None:
        """Have a member leave when it next asks for something; what it has saved stays."""
        self._leaving.add(name)

    def run(self) -> dict[str, Any]:
        """Return what each member's work returned, once all have ended; what one raises ends all and is raised."""
        results: dict[str, Any] = {}
        answers: dict[str, Any] = {}
        try:
            while self._turns:
                for turn in list(self._turns):
                    is_waiting = turn.question is not None and turn.name not in answers  # for the others
                    if is_waiting and turn.name not in self._leaving:
                        continue
                    if turn.name in self._leaving:
                        turn.end()
                        self._leave(turn)
                        continue
                    turn.go_on(answers.pop(turn.name, None))
                    if turn.has_ended:
                        self._leave(turn)
                        results[turn.name] = _result_of(turn)
                answers = self._answers({turn.name: turn.question for turn in self._turns})
        finally:
            end_all(self._turns)
            if self._sampler is not None:
                self._sampler.close()
                self._sampler = None
        return results

    @property
    def num_members(self) -> int:
        """How many have not ended."""
        return len(self._turns)

    def rehearsal(
        self,
        seat: "Seat",
        kind: Any,
        rehearse: Callable[[], Rehearsal],
        follow: Callable[[Rehearsal, int], Rehearsal],
    ) -> Rehearsal:
        """Return what the engine was shown to do with a member, by its own rehearsal or after another of its kind."""
        if kind not in self._rehearsals:
            self._rehearsals[kind] = None
            self._rehearsals[kind] = done = rehearse()
            return done
        while (done := self._rehearsals[kind]) is None:
            seat.wait_for_a_round()
        return follow(done, seat.number)

    def _leave(self, turn: Turn) -> None:
        self._turns.remove(turn)
        self._leaving.discard(turn.name)
        del self._seats[turn.name]

    def _answers(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answers to what members ask; of milestones only once all have reached one."""

        def of(kind: type[Any]) -> dict[str, Any]:
            return {name: question for name, question in asked.items() if isinstance(question, kind)}

        answers: dict[str, Any] = dict.fromkeys(of(_Round))
        if loads := of(_Load):
            self._engine.load([self._seats[name].sent(one) for name, load in loads.items() for one in load.snapshots])
            answers |= dict.fromkeys(loads)
        samples = of(_Sample)
        steps = {name for name, one in samples.items() if one.is_step}
        if len(steps) + len(of(Milestone)) < len(asked):
            samples = {name: one for name, one in samples.items() if name not in steps}
        answers |= self._drawn(samples)
        exchanged = of(_Exchange)
        for name in exchanged:
            answers[name] = {other: one.canary for other, one in exchanged.items() if other != name}
        milestones = of(Milestone)
        if milestones and len(milestones) == len(asked):
            step = min(one.step for one in milestones.values())
            reached = {name: one.score for name, one in milestones.items() if one.step == step}
            answers |= self._decide(step, reached)
        return answers

    def _drawn(self, asked: Mapping[str, _Sample]) -> dict[str, Any]:
        """Return the completions of each member's requests; those that are drawn alike are drawn in one call, and what
        several ask the base alike is drawn once.
        """
        answers: dict[str, Any] = {}
        for sampling in dict.fromkeys(one.sampling for one in asked.values()):
            together = {name: one for name, one in asked.items() if one.sampling == sampling}
            sent = {
                name: [self._seats[name].asked(request, one.seed) for request in one.requests]
                for name, one in together.items()
            }
            distinct = list(dict.fromkeys(request for requests in sent.values() for request in requests))
            drawn = self._engine.sample(distinct, sampling, seed=0)
            if len(drawn) != len(distinct):  # whose they are cannot be told: the contract says how many are missing
                given = iter(drawn)
                answers |= {name: list(islice(given, len(requests))) for name, requests in sent.items()}
                continue
            of_request = dict(zip(distinct, drawn, strict=True))
            answers |= {
                name: [received(request, of_request[request]) for request in requests]
                for name, requests in sent.items()
            }
        return answers

    @property
    def _engine(self) -> Sampler:
        if self._sampler is None:
            self._spec = joint_spec([seat.spec for seat in self._seats.values()], self._num_seats)
            self._sampler = self._make_sampler(self._spec)
        return self._sampler

    def check_fits(self, shape: LoraConfig) -> None:
        """Raise ConfigError where the engine runs, and was started for smaller adapters or fewer layers."""
        built_for = None if self._spec is None else self._spec.lora
        if built_for is None:
            return
        if shape.served.rank > built_for.rank or not layer_kinds(shape.layers) <= layer_kinds(built_for.layers):
            raise ConfigError(
                f"the engine was started for rank {built_for.rank} on {built_for.layers} layers, and cannot serve rank "
                f"{shape.served.rank} on {shape.layers}: start the cohort with a member of that shape."
            )


class Seat:
    """A member's place: the Sampler that it is given, and its Peers in the proof."""

    def __init__(self, meeting: Meeting, name: str, number: int):
        """Serve the member's one policy under `number`."""
        self.name, self.number, self._meeting = name, number, meeting
        self._turn: Turn | None = None
        self._spec: EngineSpec | None = None

    def taken_by(self, turn: Turn) -> "Seat":
        """Ask as the member whose thread this is."""
        self._turn = turn
        return self

    def _ask(self, question: Any) -> Any:
        assert self._turn is not None
        return self._turn.ask(question)

    @property
    def spec(self) -> EngineSpec:
        """What the member's own engine would be built from."""
        assert self._spec is not None
        return self._spec

    def built_from(self, spec: EngineSpec) -> "Seat":
        """Be the sampler that is built from `spec`; the engine itself is built once all have said what they need."""
        self._spec = spec
        return self

    def sent(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot under the member's number."""
        return replace(snapshot, policy=self.number)

    def asked(self, request: SampleRequest, seed: int) -> SampleRequest:
        """Return a request under the member's number, with its seed."""
        return replace(request, policy=None if request.policy is None else self.number, seed=seed)

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Serve the member's new version."""
        self._ask(_Load(snapshots=snapshots))

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        """Return the completions of each request, in order."""
        return self._ask(_Sample(requests=requests, sampling=sampling, seed=seed))

    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        """Give this member's canary, and return those of the others that were drawn in the same call, by name."""
        return self._ask(_Exchange(canary=canary))

    def rehearsal(
        self, kind: Any, rehearse: Callable[[], Rehearsal], follow: Callable[[Rehearsal, int], Rehearsal]
    ) -> Rehearsal:
        """Return what the engine was shown to do with this member: the first of each kind rehearses while the others of
        its kind wait, and those follow it together.
        """
        return self._meeting.rehearsal(self, kind, rehearse, follow)

    def wait_for_a_round(self) -> None:
        """Let all others compute once."""
        self._ask(_Round())

    def goes_on(self, milestone: Milestone) -> bool:
        """Wait until all members have reached a milestone, and return whether this one goes on."""
        return self._ask(milestone)

    def base_weights(self) -> Mapping[str, torch.Tensor]:
        """Raise LayoutError: the members' base is one already, which is not the engine's."""
        raise LayoutError("a cohort's base is its own.")

    def free_cache(self) -> None:
        """Nothing: others may still sample."""

    def restore_cache(self) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing: the engine is all members'."""


def _result_of(turn: Turn) -> Any:
    """Return what a member's work returned; what it raised names the member."""
    try:
        return turn.result()
    except Exception as error:
        error.add_note(f"(in the member {turn.name})")
        raise


def received(request: SampleRequest, completions: Sequence[Completion]) -> list[Completion]:
    """Return completions as if the policy that was asked were the only one; those of another are of none."""
    asked = request.policy or 0
    return [replace(one, policy=0 if one.policy == asked else -1) for one in completions]


def joint_spec(specs: Sequence[EngineSpec], num_policies: int) -> EngineSpec:
    """Return what an engine is built from that serves all of several members at once."""
    first = specs[0]
    shapes = [spec.lora for spec in specs if spec.lora is not None]
    modules = dict.fromkeys(module for spec in specs for module in spec.target_modules)
    return replace(
        first,
        lora=joint_shape(shapes),
        target_modules=tuple(modules),
        max_length=max(spec.max_length for spec in specs),
        num_policies=num_policies,
    )


def joint_shape(shapes: Sequence[LoraConfig]) -> LoraConfig:
    """Return the adapters' shape that all of several fit in: the largest rank, on all of their layers."""
    layers = "+".join(dict.fromkeys(part for shape in shapes for part in shape.layers.split("+")))
    return replace(max(shapes, key=lambda shape: shape.rank), layers=layers)

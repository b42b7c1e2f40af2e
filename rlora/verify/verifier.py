"""The verifier: from a completion and its gold answer to a verdict."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar, final

from rlora.errors import ConfigError
from rlora.system.progress import Count, counting
from rlora.types import Verdict, VerdictKind
from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.explain import Explanation
from rlora.verify.extraction.extract import gold_text
from rlora.verify.judging import JudgeRequest, Outcome, judge_cheaply
from rlora.verify.reading.normalize import INVISIBLE
from rlora.verify.workers.faults import RAISED, Fault, Faults, described
from rlora.verify.workers.pool import Failure, Job, Limits, Pool
from rlora.verify.workers.task import Reply, Task, reply_of
from rlora.verify.workers.threads import for_each

_Found = TypeVar("_Found")
_JOB = Job(module="rlora.verify.workers.judge_pair", title="the verifier")
_WALL_FACTOR = 5
_END = 200  # characters of a completion that could not be judged, in place of its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierConfig:
    """How much the comparison of one answer may cost."""

    num_workers: int = 2
    """Worker processes (at least 1); they start when the first answer needs one."""
    deadline_seconds: float = 1.0
    """CPU seconds that comparing one answer may take; five times as much wall time is the backstop."""
    memory_mb: int = 1024
    """Address space of a worker, in MiB (at least 256)."""

    def __post_init__(self) -> None:
        """Refuse limits below their least values."""
        for name, least in (("num_workers", 1), ("deadline_seconds", 0.01), ("memory_mb", 256)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}, must be at least {least}; raise it")


@final
class Verifier:
    """Judges completions against gold answers; usable from any thread, and best as a context manager.

    `judge` blocks until the verdict; async code calls it with `asyncio.to_thread` where the wait would matter.
    """

    def __init__(self, config: VerifierConfig = VerifierConfig()) -> None:
        """Keep the configuration; workers start when first needed."""
        self.config = config
        self._faults = Faults()
        limits = Limits(
            cpu_seconds=config.deadline_seconds,
            wall_seconds=_WALL_FACTOR * config.deadline_seconds,
            memory_mb=config.memory_mb,
        )
        self._pool = Pool(_JOB, limits, num_workers=config.num_workers)

    def judge(
        self,
        text: str,
        gold: str,
        *,
        is_truncated: bool = False,
        question: str = "",
        last_number: bool = False,
        is_number: bool = False,
        is_worked_out: bool = True,
    ) -> Verdict:
        """Return the verdict on one completion; the arguments are those of `JudgeRequest`."""
        request = JudgeRequest(
            text=text,
            gold=gold,
            is_truncated=is_truncated,
            question=question,
            last_number=last_number,
            is_number=is_number,
            is_worked_out=is_worked_out,
        )
        return self._finish(*self._judge_here(request))

    def judge_many(self, items: Sequence[JudgeRequest], *, with_strict: bool = False) -> list[Verdict]:
        """Return the verdicts on many completions, in their order; slow ones use all workers at once.

        `with_strict` adds to each, as its measure "strict", the verdict of the rule that takes no last number. Where
        that rule goes the same way, which is known from how the answer was found, it is the same verdict; the others
        alone are judged a second time.
        """
        verdicts: list[Verdict | None] = [None] * len(items)
        started: list[tuple[Outcome, float]] = []
        with counting("completions", len(items)) as count:
            for i, item in enumerate(items):
                found, seconds = self._judge_here(item)
                started.append((found, seconds))
                if found.kind is not None:
                    verdicts[i] = self._finish(found, seconds)
                    count.add()
            self._judge_slow(started, verdicts, count)
        judged = [verdict for verdict in verdicts if verdict is not None]
        if not with_strict:
            return judged
        again = [i for i, (found, _) in enumerate(started) if not found.is_strict]
        strict = dict(enumerate(judged))
        strict |= zip(again, self.judge_many([replace(items[i], last_number=False) for i in again]), strict=True)
        return [replace(verdict, measures={"strict": strict[i]}) for i, verdict in enumerate(judged)]

    def _judge_slow(self, started: list[tuple[Outcome, float]], verdicts: list[Verdict | None], count: Count) -> None:
        slow = [i for i, (found, _) in enumerate(started) if found.kind is None]

        def work(index: int) -> None:
            verdicts[index] = self._finish(*started[index])
            count.add()

        for_each(slow, work, num_threads=self.config.num_workers)

    def equal(self, a: str, b: str) -> bool:
        """Whether two answers are the same, exactly and symmetrically, within the deadline; else False."""
        found = self._guarded(lambda: _equal_here(a, b), answer=b, gold=a)
        if isinstance(found, Task):
            return self._asked(found).kind is VerdictKind.CORRECT
        return found is True

    def _judge_here(self, request: JudgeRequest, trace: list[Step] | None = None) -> tuple[Outcome, float]:
        """Return what can be said without a worker, and the seconds it took; never raises, whatever the texts."""
        start = time.perf_counter()
        text = request.text
        found = self._guarded(lambda: judge_cheaply(request, trace), answer=text, gold=request.gold)
        if isinstance(found, Fault):
            if trace is not None:
                trace.append(Step(rule=f"{RAISED} {found}", verdict=None))
            extracted = INVISIBLE.sub("", text[-_END:])
            found = Outcome(
                kind=VerdictKind.UNPARSED, extracted=extracted, is_strict=not request.last_number, fault=found
            )
        return found, time.perf_counter() - start

    def _guarded(self, work: Callable[[], _Found], *, answer: str, gold: str) -> _Found | Fault:
        """Return what `work` finds about two texts in this process; what it raises, which is counted and said, if so.

        A step that is repeated samples the same completion again, so an exception here would end a run for good.
        """
        try:
            return work()
        except Exception as failure:  # as in a worker; MemoryError too, since a text can ask for any amount
            error = described(failure)
            self._faults.add(error, answer, gold)
            return error

    def _finish(self, found: Outcome, seconds: float, trace: list[Step] | None = None) -> Verdict:
        if found.kind is not None:
            return _verdict(found.kind, found.extracted, seconds, found.fault)
        start = time.perf_counter()
        task = Task(gold=found.gold, answer=found.extracted, is_rounding=True, is_traced=trace is not None)
        answer = self._asked(task)
        if trace is not None:
            trace.extend(answer.steps)
            if answer.error:
                trace.append(Step(rule=f"the worker's comparison raised {answer.error}", verdict=None))
        return _verdict(answer.kind, found.extracted, seconds + time.perf_counter() - start, answer.error)

    def _asked(self, task: Task) -> Reply:
        """Return a worker's reply: TIMEOUT if the task passed a deadline or the memory limit."""
        message = self._pool.ask(task.message())
        if isinstance(message, Failure):  # whatever ends worker after worker at this task may be the task after all
            return Reply(kind=VerdictKind.TIMEOUT)
        reply = reply_of(message)
        if reply.error:
            self._faults.add(reply.error, task.answer, task.gold)
        return reply

    def explain(self, request: JudgeRequest) -> Explanation:
        """Return the verdict on a completion with what led to it, from the code that judges."""
        trace: list[Step] = []
        found, seconds = self._judge_here(request, trace)
        verdict = self._finish(found, seconds, trace)
        return Explanation(request=request, verdict=verdict, steps=tuple(trace), is_by_worker=found.kind is None)

    @property
    def errors(self) -> dict[str, int]:
        """How often judging ended in an exception, here or in a worker, by its type and line; each was logged once."""
        return dict(self._faults.counts)

    def close(self) -> None:
        """End the workers; judging that needs one afterwards raises VerifierError."""
        self._pool.close()

    def __enter__(self) -> Self:
        """Return the verifier itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()


def _verdict(kind: VerdictKind, extracted: str, seconds: float, fault: str) -> Verdict:
    return Verdict(
        kind=kind,
        reward=float(kind is VerdictKind.CORRECT),
        extracted=extracted,
        reason=f"{RAISED} {fault}" if fault else "",
        seconds=seconds,
    )


def _equal_here(a: str, b: str) -> bool | Task:
    """Return whether two answers are the same, or what a worker must decide."""
    left, right = gold_text(a), gold_text(b)
    if left == right:
        return True
    verdict = cheap_verdict(left, right, is_rounding=False)
    return Task(gold=left, answer=right, is_rounding=False) if verdict is None else verdict

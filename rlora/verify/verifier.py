"""The verifier: from a completion and its gold answer to a verdict."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, final

from rlora.errors import ConfigError
from rlora.types import Verdict, VerdictKind
from rlora.verify.equal import cheap_verdict
from rlora.verify.extract import extract, gold_text
from rlora.verify.nodes import contains, is_worked_out
from rlora.verify.normalize import plain_latex
from rlora.verify.pool import Pool
from rlora.verify.prose import right_side
from rlora.verify.relations import named_value
from rlora.verify.structure import parse_answer


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """A completion to judge: `is_truncated` if the token limit cut it; `question` exposes a mere repetition.

    `is_number` asks for a number that has been worked out: an expression of the same value is WRONG, since a policy
    that is paid for "27 + 85" learns to repeat the question (it did, docs/log.md).
    """

    text: str
    gold: str
    is_truncated: bool = False
    question: str = ""
    last_number: bool = True
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """An answer that the cheap rules could not decide."""

    extracted: str
    gold: str


def _judge_cheaply(request: JudgeRequest) -> "_Pending | tuple[VerdictKind, str]":
    found = extract(
        request.text, is_truncated=request.is_truncated, question=request.question, last_number=request.last_number
    )
    if found.kind is not None:
        return found.kind, found.text
    gold, answer = gold_text(request.gold), found.text
    if gold == answer and gold:
        return VerdictKind.CORRECT, answer
    left, right = parse_answer(gold), parse_answer(answer)
    if left is None or right is None:
        same = bool(gold) and _squeezed(gold) == _squeezed(answer)
        return (VerdictKind.CORRECT if same else VerdictKind.UNPARSED if right is None else VerdictKind.WRONG), answer
    is_compound = found.is_plain and right.op == "rel" and left.op != "rel" and not named_value(right)
    if is_compound and (request.last_number or not contains(right.args[0], "num")):  # b - a = 4, but not 2x + 3 = 7
        answer = right_side(answer)
        right = parse_answer(answer) or right
    if request.is_number and not is_worked_out(right):
        return VerdictKind.WRONG, answer
    if right != left and not is_worked_out(right) and right.args and _squeezed(answer) in _squeezed(request.question):
        return VerdictKind.NO_ANSWER, answer  # an expression copied from the problem, not computed
    verdict = cheap_verdict(gold, answer, is_rounding=True)
    if verdict:
        return VerdictKind.CORRECT, answer
    if right.op == "text" and left.op != "text":
        return VerdictKind.UNPARSED, answer
    return _Pending(extracted=answer, gold=gold) if verdict is None else (VerdictKind.WRONG, answer)


def _squeezed(text: str) -> str:
    return "".join(plain_latex(text).split())


@final
class Verifier:
    """Judges completions against gold answers; usable from any thread, and best as a context manager.

    `judge` blocks until the verdict; async code calls it with `asyncio.to_thread` where the wait would matter.
    """

    def __init__(self, config: VerifierConfig = VerifierConfig()) -> None:
        """Keep the configuration; workers start when first needed."""
        self.config = config
        self._pool = Pool(config.num_workers, config.deadline_seconds, config.memory_mb)

    def judge(
        self,
        text: str,
        gold: str,
        *,
        is_truncated: bool = False,
        question: str = "",
        last_number: bool = True,
        is_number: bool = False,
    ) -> Verdict:
        """Return the verdict on one completion; the arguments are those of `JudgeRequest`."""
        request = JudgeRequest(
            text=text,
            gold=gold,
            is_truncated=is_truncated,
            question=question,
            last_number=last_number,
            is_number=is_number,
        )
        return self._finish(*_timed(request))

    def judge_many(self, items: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return the verdicts on many completions, in their order; slow ones use all workers at once."""
        started = [_timed(item) for item in items]
        verdicts: list[Verdict | None] = [None] * len(items)
        slow = [i for i, (found, _) in enumerate(started) if isinstance(found, _Pending)]
        for i, (found, seconds) in enumerate(started):
            if not isinstance(found, _Pending):
                verdicts[i] = self._finish(found, seconds)
        self._judge_slow(slow, started, verdicts)
        return [verdict for verdict in verdicts if verdict is not None]

    def _judge_slow(self, slow: list[int], started: list, verdicts: list[Verdict | None]) -> None:
        queue = iter(slow)
        lock = threading.Lock()
        errors: list[BaseException] = []

        def work() -> None:
            while not errors:
                with lock:
                    i = next(queue, None)
                if i is None:
                    return
                try:
                    verdicts[i] = self._finish(*started[i])
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(min(self.config.num_workers, len(slow)) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def equal(self, a: str, b: str) -> bool:
        """Whether two answers are the same, exactly and symmetrically, within the deadline; else False."""
        left, right = gold_text(a), gold_text(b)
        if left == right:
            return True
        verdict = cheap_verdict(left, right, is_rounding=False)
        if verdict is not None:
            return verdict
        answer = self._pool.ask({"gold": left, "answer": right, "is_rounding": False})
        return answer is not None and answer["kind"] == VerdictKind.CORRECT

    def _finish(self, found: "_Pending | tuple[VerdictKind, str]", seconds: float) -> Verdict:
        if isinstance(found, tuple):
            return Verdict(kind=found[0], extracted=found[1], seconds=seconds)
        start = time.perf_counter()
        answer = self._pool.ask({"gold": found.gold, "answer": found.extracted, "is_rounding": True})
        kind = VerdictKind.TIMEOUT if answer is None else VerdictKind(str(answer["kind"]))
        return Verdict(kind=kind, extracted=found.extracted, seconds=seconds + time.perf_counter() - start)

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


def _timed(request: JudgeRequest) -> "tuple[_Pending | tuple[VerdictKind, str], float]":
    start = time.perf_counter()
    found = _judge_cheaply(request)
    return found, time.perf_counter() - start

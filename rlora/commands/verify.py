"""Judge answers against gold answers, and say why."""

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import tyro

from rlora.config import with_home
from rlora.errors import ConfigError, DataError
from rlora.system.files import write_atomically
from rlora.types import Verdict
from rlora.verify import JudgeRequest, Verifier, VerifierConfig

_BATCH = 2000  # rows judged together: enough to keep the workers busy, few enough to show progress in the output
_DESCRIPTION = """\
Judge answers against gold answers, by the rules of docs/verifier.md.

`rlora verify FILE.jsonl` reads one JSON object a line: "gold" (the right answer) and "pred" (the completion, or the \
answer alone), and as wanted "question", "truncated" (true if the token limit cut it off), "last_number", "number" \
and "worked_out" (true or false, instead of the options below). It writes one JSON line a row, in order: "kind" \
(correct, wrong, not_worked_out, no_answer, unparsed, timeout or truncated), "correct", "extracted", "seconds"; and a \
summary on stderr.

`rlora verify --gold G --answer A` explains one verdict: what was taken as the answer, how both were read, and which \
rule decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """The options of `rlora verify`."""

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FILE.jsonl")] = None
    """JSON lines with `gold` and `pred`; - reads standard input."""
    gold: Annotated[str | None, tyro.conf.arg(metavar="G")] = None
    """The right answer, to explain one verdict."""
    answer: Annotated[str | None, tyro.conf.arg(metavar="A")] = None
    """The completion or answer to judge against it."""
    question: Annotated[str, tyro.conf.arg(metavar="Q")] = ""
    """The question of --gold and --answer, which an answer must not merely repeat."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where the verdicts on FILE are written, whole or not at all; standard output by default."""
    workers: int = 2
    """Processes for what only slow arithmetic decides; they start when needed."""
    deadline: float = 1.0
    """CPU seconds that one such comparison may take."""
    last_number: bool = False
    """Whether the last number of prose counts where nothing is marked as the answer."""
    number: bool = False
    """Whether a number is asked for, so that any expression is refused."""
    worked_out: bool = True
    """Whether an answer that is less worked out than its gold is refused, where the question is given."""


def _check(options: VerifyOptions) -> None:
    if (options.gold is None) != (options.answer is None):
        raise ConfigError("--gold and --answer go together; give both to explain one verdict")
    if (options.file is None) == (options.gold is None):
        raise ConfigError("give either FILE.jsonl, or --gold and --answer; rlora verify --help explains")
    if options.gold is not None and options.output is not None:
        raise ConfigError("--output is for FILE.jsonl; an explanation goes to standard output")
    if options.file is not None and options.question:
        raise ConfigError("--question goes with --gold and --answer; FILE.jsonl has a field `question`")


def main(arguments: Sequence[str]) -> None:
    """Run `rlora verify`; raises DataError for a bad row and ConfigError for options that do not go together."""
    options = tyro.cli(VerifyOptions, args=arguments, prog="rlora verify", description=_DESCRIPTION)
    options = with_home(options, only_paths=True)
    _check(options)
    config = VerifierConfig(num_workers=options.workers, deadline_seconds=options.deadline)
    with Verifier(config) as verifier:
        if options.file is None:
            _explain(verifier, options)
        else:
            requests = _requests(options.file, options)
            try:
                _judge_file(verifier, options, requests)
            except BrokenPipeError:  # the reader has seen enough, as in `rlora verify FILE | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush finds a reader
                raise SystemExit(1) from None


def _explain(verifier: Verifier, options: VerifyOptions) -> None:
    assert options.gold is not None
    assert options.answer is not None
    request = JudgeRequest(
        text=options.answer,
        gold=options.gold,
        question=options.question,
        last_number=options.last_number,
        is_number=options.number,
        is_worked_out=options.worked_out,
    )
    for line in verifier.explain(request).lines():
        print(line.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))


def _requests(path: Path, options: VerifyOptions) -> list[JudgeRequest]:
    """Return all rows of the file, so that a bad one is reported before any is judged."""
    try:
        lines = sys.stdin.readlines() if str(path) == "-" else path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a UTF-8 file of JSON lines") from error
    return [_request(line, f"{path}, line {i}", options) for i, line in enumerate(lines, 1) if line.strip()]


def _request(line: str, place: str, options: VerifyOptions) -> JudgeRequest:
    try:
        row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)  # 0.50 keeps its decimals
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error}); each line must be an object with `gold` and `pred`") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a {type(row).__name__}, must be an object with `gold` and `pred`")
    return JudgeRequest(
        text=_text(row, "pred", place),
        gold=_text(row, "gold", place),
        question=_text(row, "question", place, ""),
        is_truncated=_flag(row, "truncated", place, False),
        last_number=_flag(row, "last_number", place, options.last_number),
        is_number=_flag(row, "number", place, options.number),
        is_worked_out=_flag(row, "worked_out", place, options.worked_out),
    )


def _text(row: Mapping[str, Any], name: str, place: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and name not in row:
        raise DataError(f"{place}: no field `{name}`; it has {', '.join(sorted(row)) or 'none'}")
    if not isinstance(value, str):
        raise DataError(f"{place}: `{name}` is {json.dumps(value)[:80]}, must be text or a number")
    return value


def _flag(row: Mapping[str, Any], name: str, place: str, default: bool) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"{place}: `{name}` is {json.dumps(value)[:80]}, must be true or false")
    return value


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def _judge_file(verifier: Verifier, options: VerifyOptions, requests: Sequence[JudgeRequest]) -> None:
    kinds: Counter[str] = Counter()
    start = time.perf_counter()
    with _output(options.output) as file:
        for first in range(0, len(requests), _BATCH):
            for verdict in verifier.judge_many(requests[first : first + _BATCH]):
                kinds[verdict.kind] += 1
                file.write(json.dumps(_row(verdict)) + "\n")
    seconds = time.perf_counter() - start
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    print(
        f"{len(requests)} rows in {seconds:.2f} s ({len(requests) / max(seconds, 1e-9):.0f} verdicts/s): {counts}",
        file=sys.stderr,
    )
    for error, count in verifier.errors.items():
        print(f"{count} judgements raised {error} and are unparsed", file=sys.stderr)


def _row(verdict: Verdict) -> dict[str, object]:
    return {
        "kind": verdict.kind,
        "correct": verdict.is_correct,
        "extracted": verdict.extracted,
        "seconds": round(verdict.seconds, 6),
    }

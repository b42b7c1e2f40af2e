"""The verifier beside Math-Verify 0.9.0, on one core and in one run: `python -m benchmarks.verify PART`.

Parts: `speed` (golds of MATH-500 and GSM8K against themselves, boxed), `pairs` (generated answers), `hostile` (answers
made to hang, among ordinary ones; rlora alone, since Math-Verify's timeout needs the main thread and ends no C code).
"""

import json
import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT, Figure, child
from benchmarks.verify_completions import cases
from benchmarks.verify_hostile import hostile, mixed, ordinary
from rlora.verify import JudgeRequest, Verifier, VerifierConfig
from rlora.verify.extraction.extract import gold_text
from rlora.verify.judging import judge_cheaply
from rlora.verify.reading import answer

DATA_DIR = Path(os.environ.get("RLORA_DATA", ROOT.parent / "shared" / "data"))
SETS = {"MATH-500": ("math/math500.jsonl", 10), "GSM8K": ("gsm8k/test.jsonl", 5)}
NUM_PASSES = 5
NUM_ROUNDS = 30
SEED = 20261122
AGAINST = "Math-Verify 0.9.0"


def _one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _math_verify() -> Callable[[str, str], bool]:
    import math_verify  # bench-only, from .bench-site

    def judge(text: str, gold: str) -> bool:
        return bool(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(text)))

    return judge


def _rates(judges: Sequence[Callable[[], Sequence[bool]]]) -> list[tuple[float, int]]:
    """Return for each judge the median verdicts a second of some passes in turns, and how many were right in the last.

    Seconds are those of the process's CPU, since a busy machine gives each judge another share of it.
    """
    seconds: list[list[float]] = [[] for _ in judges]
    right: list[Sequence[bool]] = [[] for _ in judges]
    for _ in range(NUM_PASSES):
        for i, judge_all in enumerate(judges):
            answer.parsed.cache_clear()  # each pass meets its answers for the first time
            start = time.process_time()
            right[i] = judge_all()
            seconds[i].append(time.process_time() - start)
    return [(len(found) / statistics.median(passes), sum(found)) for found, passes in zip(right, seconds, strict=True)]


def speed() -> dict[str, Any]:
    _one_core()
    theirs = _math_verify()
    result: dict[str, Any] = {}
    for name, (path, _) in SETS.items():
        rows = [json.loads(line) for line in (DATA_DIR / path).read_text(encoding="utf-8").splitlines()]
        golds = [gold_text(row["answer"]) for row in rows]
        items = [JudgeRequest(text=rf"The answer is $\boxed{{{gold}}}$.", gold=gold) for gold in golds]
        respelled = [
            JudgeRequest(text=rf"\boxed{{\displaystyle {gold}}}".replace("\\frac", "\\dfrac"), gold=gold)
            for gold in golds
        ]
        with Verifier() as verifier:
            verifier.judge_many(items[:20])
            theirs(items[0].text, items[0].gold)
            judges = [
                lambda v=verifier, items=items: [verdict.is_correct for verdict in v.judge_many(items)],
                lambda v=verifier, items=respelled: [verdict.is_correct for verdict in v.judge_many(items)],
                lambda items=items: [theirs(item.text, item.gold) for item in items],
            ]
            (ours, num_right), (spelled, _), (rate, num_theirs) = _rates(judges)
        result[name] = {
            "ours": ours,
            "respelled": spelled,
            "theirs": rate,
            "right": [num_right, num_theirs, len(items)],
        }
    return result


def _rated(labels: Sequence[bool], found: Sequence[bool], seconds: float) -> dict[str, float]:
    accepted = sum(not label and is_right for label, is_right in zip(labels, found, strict=True))
    refused = sum(label and not is_right for label, is_right in zip(labels, found, strict=True))
    return {
        "accepted": accepted / labels.count(False),
        "refused": refused / labels.count(True),
        "ms": 1000 * seconds / len(labels),
    }


def pairs() -> dict[str, Any]:
    _one_core()
    made = cases(NUM_ROUNDS, SEED)
    labels = [case.is_equal for case in made]
    items = [
        JudgeRequest(text=case.text, gold=case.gold, is_truncated=case.is_truncated, last_number=True) for case in made
    ]
    with Verifier() as verifier:
        verifier.judge_many(ordinary(100))  # the workers start
        start = time.perf_counter()
        ours = [verdict.is_correct for verdict in verifier.judge_many(items)]
        our_seconds = time.perf_counter() - start
    judge = _math_verify()
    judge("1", "1")
    start = time.perf_counter()
    theirs = [judge(case.text, case.gold) for case in made]
    their_seconds = time.perf_counter() - start
    faults = Counter(case.category for case, found in zip(made, theirs, strict=True) if found != case.is_equal)
    return {
        "ours": _rated(labels, ours, our_seconds),
        "theirs": _rated(labels, theirs, their_seconds),
        "equal": labels.count(True),
        "unequal": labels.count(False),
        "our_faults": [case.text for case, found in zip(made, ours, strict=True) if found != case.is_equal][:10],
        "their_faults": dict(faults.most_common(4)),
    }


def hostile_batch() -> dict[str, Any]:
    config = VerifierConfig()
    plain, bad = ordinary(), hostile()
    items, places = mixed(plain, bad)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Verifier(config) as verifier:
        verifier.judge_many(plain[:100])  # the workers start
        start = time.perf_counter()
        alone = verifier.judge_many(plain)
        middle = time.perf_counter()
        together = verifier.judge_many(items)
        end = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the workers have ended, and what they forked
    worker_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept = sum(together[i].kind is verdict.kind for i, verdict in zip(places, alone, strict=True))
    kinds = Counter(verdict.kind.value for verdict in together) - Counter(verdict.kind.value for verdict in alone)
    return {
        "extra": (end - middle) - (middle - start),
        "alone": middle - start,
        "worker_seconds": worker_seconds,
        "deadlines": kinds["timeout"] * config.deadline_seconds,
        "changed": len(plain) - kept,
        "kinds": dict(kinds),
        "past_guard": sum(judge_cheaply(item).kind is None for item in bad),
        "allowed": 5 + kinds["timeout"] * config.deadline_seconds / config.num_workers,
    }


PARTS = {"speed": speed, "pairs": pairs, "hostile": hostile_batch}


def measure() -> Iterator[Figure]:
    """Measure made answers, each set in a process of its own."""
    yield from _pair_figures(child("-m", "benchmarks.verify", "pairs"))
    yield from _hostile_figures(child("-m", "benchmarks.verify", "hostile"))


def measure_golds() -> Iterator[Figure]:
    """Measure the golds of data sets."""
    yield from _speed_figures(child("-m", "benchmarks.verify", "speed"))


def missing_data() -> list[str]:
    """Return which files of `measure_golds` are not here, as a sentence that says where they should be."""
    files = [path for path, _ in SETS.values() if not (DATA_DIR / path).is_file()]
    return [f"{' and '.join(files)} in the folder that RLORA_DATA names ({DATA_DIR} lacks them)"] if files else []


def _speed_figures(found: dict[str, Any]) -> list[Figure]:
    return [
        Figure(
            name=f"verdicts on {name}",
            value=found[name]["ours"] / found[name]["theirs"],
            unit="ratio",
            target=target,
            at_most=False,
            against=AGAINST,
            note="{ours:.0f} ({respelled:.0f} spelled otherwise) against {theirs:.0f} a second; "
            "right {right[0]} and {right[1]} of {right[2]}".format(**found[name]),
        )
        for name, (_, target) in SETS.items()
    ]


def _pair_figures(found: dict[str, Any]) -> list[Figure]:
    ours, theirs = found["ours"], found["theirs"]
    worst = ", ".join(f"{name} {count}" for name, count in found["their_faults"].items())
    notes = {
        "accepted": f"of {found['unequal']} unequal by construction; {AGAINST}: {theirs['accepted']:.1%}",
        "refused": f"of {found['equal']} equal by construction; {AGAINST}: {theirs['refused']:.1%}; "
        f"its faults: {worst}",
    }
    shares = [
        Figure(
            name=f"pairs wrongly {kind}", value=ours[kind], unit="share", target=target, against="", note=notes[kind]
        )
        for kind, target in (("accepted", 0.0), ("refused", 0.005))
    ]
    note = f"{ours['ms']:.2f} against {theirs['ms']:.2f} ms a row"
    time_a_row = ours["ms"] / theirs["ms"]
    return [*shares, Figure(name="time a pair", value=time_a_row, unit="ratio", target=0.1, against=AGAINST, note=note)]


def _hostile_figures(found: dict[str, Any]) -> list[Figure]:
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found["kinds"].items()))
    return [
        Figure(
            name="hostile batch, extra time",
            value=found["extra"],
            unit="s",
            target=found["allowed"],
            against="the 10,000 ordinary answers alone",
            note=f"100 hostile among them ({kinds}), {found['past_guard']} past the guard; "
            f"alone {found['alone']:.1f} s; the target is 5 s and the deadlines / workers; "
            f"the workers used {found['worker_seconds']:.1f} s of CPU, of which deadlines {found['deadlines']:.0f} s",
        ),
        Figure(
            name="hostile batch, verdicts changed",
            value=found["changed"],
            unit="of 10,000",
            target=0,
            against="",
            note="",
        ),
    ]


if __name__ == "__main__":
    print(f"RESULT{json.dumps(PARTS[sys.argv[1]]())}")

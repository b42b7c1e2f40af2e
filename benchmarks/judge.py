"""What a judge of one's own costs beside its own time: `python -m benchmarks.judge`.

256 completions of 2,000 characters are judged by a function in one worker process (with two, the function's own time
would be halved, and hide the cost) and in this process; the difference, a completion, is what the processes cost. The
start of the worker, which happens once in a run, is stated beside it.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks.figures import Figure, child
from rlora.rewards import Judge, JudgeConfig, as_judge, judged, open_judge, opened
from rlora.types import Completion, Problem, Sample, StopReason
from rlora.verify import Verifier

NUM_COMPLETIONS, NUM_ROUNDS, CHARACTERS = 256, 9, 2000
OWN_SECONDS = 0.001


def busy(completion: str, problem: Problem) -> float:
    """Compute for a millisecond, as a reward of one's own may."""
    end = time.perf_counter() + OWN_SECONDS
    while time.perf_counter() < end:
        pass
    return float(completion.endswith(problem.answer))


def free(completion: str, problem: Problem) -> float:
    return float(completion.endswith(problem.answer))


def _samples() -> list[Sample]:
    problem = Problem(id="bench/1", question="What is 3 + 4?", answer="7", source="bench")
    return [
        Sample(
            problem=problem,
            completion=Completion(
                token_ids=(1,),
                logprobs=(0.0,),
                text=f"{number:0{CHARACTERS}d}",
                stop=StopReason.END,
                policy=0,
                version=0,
            ),
        )
        for number in range(NUM_COMPLETIONS)
    ]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cost(name: str, here: Judge) -> dict[str, float]:
    """Return seconds of one start and, in the median, of 256 completions in a worker, here, and of the difference."""
    samples = _samples()
    with (
        Verifier() as verifier,
        opened(open_judge(f"benchmarks.judge:{name}", verifier, config=JudgeConfig(num_workers=1))) as judge,
    ):
        start = _seconds(lambda: judged(judge, samples[:1]))
        rounds = [
            (_seconds(lambda: judged(judge, samples)), _seconds(lambda: judged(here, samples)))
            for _ in range(NUM_ROUNDS)
        ]
    return {
        "start": start,
        "there": statistics.median(there for there, _ in rounds),
        "own": statistics.median(own for _, own in rounds),
        "cost": statistics.median((there - own) / NUM_COMPLETIONS for there, own in rounds),
    }


def costs() -> dict[str, dict[str, float]]:
    functions = {"free": free, "busy": busy}
    return {name: _cost(name, as_judge(function, name=name)) for name, function in functions.items()}


def measure() -> Iterator[Figure]:
    """Measure in a process of its own."""
    found = child("-m", "benchmarks.judge")
    for name, title in (("free", "a judge of one's own, over its time"), ("busy", "the same, of 1 ms")):
        one = found[name]
        yield Figure(
            name=title,
            value=1000 * one["cost"],
            unit="ms",
            target=2,
            against=f"the function in this process, {NUM_COMPLETIONS} completions",
            note=f"one worker: {one['there']:.3f} s, here {one['own']:.3f} s; its start {one['start']:.2f} s, once",
        )


if __name__ == "__main__":
    print(f"RESULT{json.dumps(costs())}")

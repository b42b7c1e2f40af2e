"""How large a report is and how fast, on a run of 1,000 steps x 64 rollouts: `python -m benchmarks.report`.

The run directory is written by rlora's own writers around a toy run's configuration: rollouts of about 100 tokens,
worked solutions of made-up word problems that are wrong in two cases of three. With a Chromium on the machine
(`make setup-browser`) the page is opened too: seconds to its first paint, milliseconds of filters over all rollouts.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from rlora.loop import run
from rlora.recipes import find_recipe
from rlora.report.live import LiveRun
from rlora.report.runs import read_run
from rlora.report.write import json_text, page_of, write_report
from rlora.store.rollouts import RolloutFolder, RolloutsConfig
from rlora.store.token_values import TokenValues
from rlora.system.records import line_of
from rlora.types import Completion, Group, Problem, Prompt, Rollout, StopReason, Verdict, VerdictKind

NUM_STEPS, NUM_PROBLEMS, NUM_SAMPLES = 1000, 8, 8
_THINGS = ["apples", "books", "coins", "stamps", "marbles", "pencils", "cookies", "flowers", "tickets", "bottles"]
_PEOPLE = ["the baker", "the farmer", "the teacher", "the driver", "the painter", "the gardener"]
_ASIDES = [
    "let us check this step by step", "each box is counted once", "nothing else is given away", "we only need the rest",
    "that is the total before anything is given away", "so we subtract", "this is a multiplication", "as stated above",
]  # fmt: skip


def _solution(numbers: random.Random, first: int, second: int, third: int, thing: str, who: str) -> str:
    slip = numbers.choice([0, 0, 1, -1, 10, first])
    total, left = first * second + slip, first * second + slip - third
    ways = [
        f"First, {who} has {first} boxes with {second} {thing} each, so that is {first} * {second} = {total} {thing}.",
        f"There are {first} boxes. Each holds {second} {thing}. In all there are ${first} \\times {second} = {total}$.",
        f"Let $x$ be the number of {thing} at the start. Then $x = {first} \\cdot {second} = {total}$.",
    ]
    asides = "; ".join(numbers.sample(_ASIDES, 3))
    return (
        f"{numbers.choice(ways)} Here {asides} ({numbers.randrange(10**6)}).\n"
        f"After giving away {third} {thing}, {who} has {total} - {third} = {left} {thing} left. "
        f"{numbers.choice(['So the answer is', 'Therefore, the final answer is', 'That makes'])} \\boxed{{{left}}}."
    )


def _groups(numbers: random.Random, step: int) -> Iterator[Group]:
    for _ in range(NUM_PROBLEMS):
        place = numbers.randrange(2000)
        own = random.Random(place)
        first, second, third = own.randint(3, 40), own.randint(3, 60), own.randint(2, 90)
        thing, who = own.choice(_THINGS), own.choice(_PEOPLE)
        gold = str(first * second - third)
        question = (
            f"{who.capitalize()} has {first} boxes of {second} {thing} and gives {third} of them away. "
            f"How many {thing} are left?"
        )
        problem = Problem(id=f"bench/{place}", question=question, answer=gold, source="bench")
        rollouts = []
        for _ in range(NUM_SAMPLES):
            text = _solution(numbers, first, second, third, thing, who)
            said = text.rpartition("{")[2].partition("}")[0]
            is_right = said == gold
            ids = tuple(numbers.randrange(49152) for _ in range(len(text) // 3 + 1))
            rollouts.append(
                Rollout(
                    completion=Completion(
                        token_ids=ids,
                        logprobs=tuple(-numbers.expovariate(3) for _ in ids),
                        text=text,
                        stop=StopReason.END,
                        policy=0,
                        version=step,
                    ),
                    verdict=Verdict(
                        kind=VerdictKind.CORRECT if is_right else VerdictKind.WRONG,
                        reward=float(is_right),
                        extracted=said,
                    ),
                )
            )
        yield Group(prompt=Prompt(problem=problem, text=question, token_ids=(1,)), rollouts=tuple(rollouts))


def _values(noise: np.random.Generator, groups: list[Group]) -> TokenValues:
    texts = [rollout.completion.text for group in groups for rollout in group.rollouts]
    counts = [len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts]
    lengths = np.full(sum(counts), 3, dtype=np.uint8)
    ends = np.cumsum(counts)
    for text, end in zip(texts, ends, strict=True):
        lengths[end - 1] = len(text.encode()) % 3  # three bytes a token, the rest in the last one
    return TokenValues(
        num_tokens_C=np.array(counts, dtype=np.int32),
        advantages_C=np.array(
            [
                rollout.reward - sum(other.reward for other in group.rollouts) / NUM_SAMPLES
                for group in groups
                for rollout in group.rollouts
            ],
            dtype=np.float32,
        ),
        num_bytes_N=lengths,
        difference_N=noise.normal(0, 0.03, sum(counts)).astype(np.float16),
        entropy_N=noise.exponential(0.6, sum(counts)).astype(np.float16),
    )


def make_run(folder: Path, *, num_steps: int = NUM_STEPS) -> Path:
    """Return a run directory with so many steps, all rollouts kept."""
    preset = find_recipe("arithmetic").presets["toy"]
    path = run(replace(preset, run_dir=str(folder / "run")))
    (row,) = read_run(path).rows[-1:]
    numbers, noise = random.Random(0), np.random.default_rng(0)
    shutil.rmtree(path / "rollouts")
    rollouts = RolloutFolder(path / "rollouts", RolloutsConfig(keep_last=num_steps))
    with (path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(num_steps):
            groups = list(_groups(numbers, step))
            rollouts.save(step, groups)
            rollouts.save_tokens(step, _values(noise, groups).to_bytes())
            changed = {name: value * (0.8 + 0.4 * numbers.random()) for name, value in row.items()}
            mean = sum(rollout.reward for group in groups for rollout in group.rollouts) / NUM_PROBLEMS / NUM_SAMPLES
            file.write(line_of({**changed, "step": step, "reward/mean": mean}) + "\n")
    rollouts.flush()
    rollouts.close()
    return path


def _append(path: Path, step: int, numbers: random.Random, noise: np.random.Generator, row: dict[str, float]) -> None:
    """Write a step as a run does: its rollouts, then its row."""
    rollouts = RolloutFolder(path / "rollouts", RolloutsConfig(keep_last=10**6))
    groups = list(_groups(numbers, step))
    rollouts.save(step, groups)
    rollouts.save_tokens(step, _values(noise, groups).to_bytes())
    rollouts.flush()
    rollouts.close()
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line_of({**row, "step": step}) + "\n")


def watch_figures(path: Path, *, num_steps: int = 20, polls: int = 5) -> Iterator[Figure]:
    """Yield the CPU time that `rlora watch` takes of a run that has steps already and goes on; a page asks for more
    every 2 s.
    """
    live, numbers, noise = LiveRun(path), random.Random(1), np.random.default_rng(1)
    row = dict(read_run(path).rows[-1])
    first = int(row["step"]) + 1
    live.page("/more")
    after = live.more("")["next"]
    of_steps, of_polls = [], []
    for step in range(first, first + num_steps):
        _append(path, step, numbers, noise, row)
        start = time.process_time()
        answer = live.more(after)
        json_text(answer)
        of_steps.append(time.process_time() - start)
        assert answer["hasMore"]
        assert answer["rollouts"]
        after, start = answer["next"], time.process_time()
        for _ in range(polls):
            live.more(after)
        of_polls.append((time.process_time() - start) / polls)
    about = f"CPU time after {first:,} steps, {NUM_PROBLEMS * NUM_SAMPLES} rollouts each"
    yield _figure("watch, a step that is new", 1e3 * statistics.median(of_steps), "ms", 200, about)
    yield _figure("watch, nothing new", 1e3 * statistics.median(of_polls), "ms", 20, about)


def _figure(name: str, value: float, unit: str, target: float, note: str) -> Figure:
    return Figure(name=f"report: {name}", value=value, unit=unit, target=target, against="fixed", note=note)


def figures(*, num_steps: int) -> Iterator[Figure]:
    """Yield what a report of a large run costs."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_run(Path(folder), num_steps=num_steps)
        start = time.perf_counter()
        page = page_of([read_run(path)], {"run": []}, max_rollouts=num_steps * NUM_PROBLEMS * NUM_SAMPLES)
        file = Path(folder) / "report.html"
        write_report(page, file)
        seconds = time.perf_counter() - start
        count = len(page.pack)
        num_tokens = sum(page.pack.index["tokens"]) / count
        about = f"{count:,} rollouts of {num_tokens:.0f} tokens"
        yield _figure("written in", seconds, "s", 20, f"read and written, {about}")
        yield _figure("size", file.stat().st_size / 1e6, "MB", 30, about)
        yield from watch_figures(path)
        if shutil.which("chromium") is None:
            print("No Chromium here: make setup-browser, to measure the page in it.", file=sys.stderr)
            return
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
        from support.browser import open_page

        with open_page(file, seconds=120) as opened:
            yield _figure("first paint", opened.first_paint_seconds(), "s", 2, "from navigation, in Chromium")
            opened.run("window.rlora.ready.then(() => true)")
            for name, what in (("kind", "a verdict"), ("text", "words, all texts read before")):
                opened.run("(async () => { await window.rlora.browser.inflateAll(); return true; })()", seconds=120)
                value = json.dumps({"kind": "0", "text": "giving away 17"}[name])
                took = opened.run(
                    f"""(async () => {{
                        document.getElementById("filters").elements.{name}.value = {value};
                        await window.rlora.browser.filter();
                        document.getElementById("filters").elements.{name}.value = "";
                        return window.rlora.browser.reported.filterMilliseconds;
                    }})()""",
                    seconds=120,
                )
                yield _figure(f"filter by {name}", took, "ms", 300, what)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    for figure in figures(num_steps=parser.parse_args().steps):
        print(figure)

"""How far a piece of work is: counted where it is done, drawn on a terminal alone, and never in anyone's way."""

import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from support.runs import toy
from support.terminals import terminal

from rlora.loop import run
from rlora.sampler.vllm.counted import counted_steps
from rlora.system.progress import Count, counted_as, counting, watching
from rlora.train.batching import BatchConfig

SIZE = {"num_steps": 1, "problems_per_step": 16, "samples_per_problem": 8}


def slow(completion, problem):
    time.sleep(0.008)
    return float(len(completion))


@pytest.mark.unit
def test_a_watch_sees_the_innermost_piece_of_work_and_nothing_afterwards() -> None:
    with watching() as watch:
        assert watch.text() == ""
        with counting("problems", 3) as outer:
            outer.add()
            with counting("completions", 8) as inner:
                inner.add(8, tokens=0)
                assert watch.text() == "8/8 completions"
            assert watch.text().startswith("1/3 problems, left ")
        with pytest.raises(ZeroDivisionError), counting("completions", 8):
            _ = 1 / 0
        assert watch.text() == ""
        with counted_as("problems"), counting("completions", 5):
            assert watch.text() == "0/5 problems"
    with counting("completions", 8) as count:
        count.add(3)
        assert watch.text() == ""


@pytest.mark.unit
def test_a_count_says_tokens_a_second_and_the_time_left(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rlora.system.progress.time.monotonic", lambda: now[0])
    count = Count("completions", 64)
    now[0] += 2
    assert count.text() == "0/64 completions"
    count.add(8, tokens=1000)
    assert count.text() == "8/64 completions, 500 tokens/s, left 0:14"
    count.add(56, tokens=3000)
    assert count.text() == "64/64 completions, 2000 tokens/s"


@pytest.mark.unit
def test_threads_count_together_and_each_has_a_watch_of_its_own() -> None:
    with watching() as watch, counting("completions", 40_000) as count:
        seen = []

        def work() -> None:
            for _ in range(10_000):
                count.add(tokens=2)
            with counting("others", 1):
                seen.append(watch.text())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (count.done, count.tokens) == (40_000, 80_000)
        assert not any("others" in text for text in seen)


@pytest.mark.loop
def test_on_a_terminal_sampling_verifying_training_and_evaluation_show_how_far_they_are(tmp_path, monkeypatch) -> None:
    config = toy(tmp_path / "run", batch=BatchConfig(tokens_per_micro_batch=32, tokens_per_row=32), **SIZE)
    with terminal(monkeypatch) as found:
        monkeypatch.setattr(sys, "stderr", found.stream)
        run(config, reward=slow)
    text = found.text
    sampled = re.findall(r"0/1 sample \d+ s .*\n+  (\d+)/128 completions, \d+ tokens/s, left \d+:\d\d", text)
    judged = re.findall(r"0/1 verify \d+ s .*\n+  (\d+)/128 completions, left \d+:\d\d", text)
    trained = re.findall(r"0/1 train \d+ s .*\n+  (\d+)/\d+ micro-batches", text)
    scored = re.findall(r"1/1 final evaluation \d/4 \d+ s .*\n+  (\d+)/8 problems", text)
    for drawn in (sampled, judged, trained, scored):
        assert len(drawn) >= 2
    assert list(map(int, judged)) == sorted(map(int, judged))
    assert "step    1/1  reward " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.loop
def test_in_a_file_there_are_lines_alone(tmp_path, monkeypatch) -> None:
    with (tmp_path / "screen").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        run(toy(tmp_path / "run", **SIZE))
    said = (tmp_path / "screen").read_text()
    assert "\x1b" not in said
    assert "\r" not in said
    assert not re.search(r"\d+/\d+ (completions|micro-batches|problems)", said)
    assert said.count("\nstep ") == 1


@pytest.mark.unit
def test_what_vllm_finishes_is_counted_between_its_steps() -> None:
    """On an object with the two methods of vLLM's engine that are used; tests/test_vllm.py has the real one."""
    going = [3, 1, 0]
    sample, longer = SimpleNamespace(token_ids=(1, 2)), SimpleNamespace(token_ids=(1, 2, 3))
    outputs = [
        [SimpleNamespace(finished=True, outputs=[sample])],
        [SimpleNamespace(finished=False, outputs=[sample])],
        [SimpleNamespace(finished=True, outputs=[sample, longer, longer])],
    ]

    class Engine:
        num_steps = 0

        def step(self):
            self.num_steps += 1
            return outputs[self.num_steps - 1]

        def get_num_unfinished_requests(self):
            return going[self.num_steps - 1]

    engine = Engine()
    with watching() as watch, counted_steps(engine, 4):
        seen = []
        for expected in outputs:
            assert engine.step() is expected
            seen.append((watch.counts[0].done, watch.counts[0].tokens))
    assert seen == [(1, 2), (3, 2), (4, 10)]
    assert "step" not in vars(engine)


@pytest.mark.unit
def test_an_engine_that_steps_elsewhere_is_not_counted_and_one_that_was_patched_stays_so() -> None:
    with watching() as watch, counted_steps(SimpleNamespace(), 4):
        assert watch.text() == ""
    engine = SimpleNamespace(step=list, get_num_unfinished_requests=lambda: 4)
    with counted_steps(engine, 4):
        assert engine.step is not list
        assert engine.step() == []
    assert engine.step is list

"""An evaluation that goes on: with more samples, after other questions, and on damaged results."""

import json
import subprocess
import sys

import pytest
from support.evaluations import Counting, rows, toy
from support.policies import ROOT

from rlora.errors import RunDirError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.evaluation.samples import SampleFile
from rlora.sampler.build import build_sampler
from rlora.store.run_dir import read_json, write_json
from rlora.system.records import line_of
from rlora.types import Problem

pytestmark = pytest.mark.unit


def test_more_samples_keep_those_that_are_there_and_draw_what_is_missing(tmp_path) -> None:
    output, samplers = tmp_path / "out", []

    def counting(spec) -> Counting:
        samplers.append(Counting(build_sampler(spec)))
        return samplers[-1]

    evaluate_benchmarks(toy(output, limit=3, samples=2))
    before = rows(output / "samples-digits-base.jsonl")
    results = evaluate_benchmarks(toy(output, limit=5, samples=5), make_sampler=counting)
    after = rows(output / "samples-digits-base.jsonl")
    assert after[: len(before)] == before
    assert sorted((row["problem"], row["sample"]) for row in after) == sorted(
        (problem, number) for problem in {row["problem"] for row in after} for number in range(5)
    )
    assert len(after) == 25
    assert len({row["text"] for row in after if row["problem"] == before[0]["problem"]}) > 2  # not the same again
    (sampler,) = samplers
    assert len(sampler.keys) == 5
    scores = results["benchmarks"]["digits"]["arms"]["base"]
    assert scores["avg@5"]["mean"] == pytest.approx(sum(row["verdict"] == "correct" for row in after) / 25)

    fewer = evaluate_benchmarks(toy(output, limit=3, samples=2), make_sampler=counting)
    assert len(samplers) == 1  # nothing is loaded
    right = sum(row["verdict"] == "correct" for row in before)
    assert fewer["benchmarks"]["digits"]["arms"]["base"]["avg@2"]["mean"] == pytest.approx(right / 6)


def test_samples_that_answer_another_question_are_refused(tmp_path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "2 + 3?", "answer": "5"}\n')
    config = toy(tmp_path / "out", benchmark=str(own), samples=2)
    evaluate_benchmarks(config)
    own.write_text('{"question": "1 + 4?", "answer": "5"}\n')
    with pytest.raises(RunDirError, match="own/1 answer another prompt than it has now; the question or the"):
        evaluate_benchmarks(config)


@pytest.mark.parametrize("change", [b"0.", b'"seed": 0', b"digits"])
def test_results_that_were_changed_are_refused(tmp_path, change) -> None:
    config, stored = toy(tmp_path / "out", limit=2, samples=2), tmp_path / "out" / "results.json"
    evaluate_benchmarks(config)
    whole = stored.read_bytes()
    stored.write_bytes(whole.replace(change, change.replace(b"0", b"7").replace(b"digits", b"digit5"), 1))
    with pytest.raises(RunDirError, match="was changed since it was written"):
        evaluate_benchmarks(config)
    values = json.loads(whole)
    del values["sha256"]  # as those of before
    write_json(stored, values)
    evaluate_benchmarks(config)
    assert stored.read_bytes() == whole


def test_an_evaluation_of_before_goes_on(tmp_path) -> None:
    output = tmp_path / "out"
    evaluate_benchmarks(toy(output, limit=3, samples=2))
    config = read_json(output / "config.json")
    config["config"]["samples"] = 2
    write_json(output / "config.json", config)
    evaluate_benchmarks(toy(output, limit=3, samples=3))
    assert len(rows(output / "samples-digits-base.jsonl")) == 9


def test_a_block_of_samples_that_a_kill_cut_short_is_drawn_again(tmp_path) -> None:
    path, problem = tmp_path / "x.jsonl", Problem(id="a", question="", answer="1", source="t")
    for number in (2, 5):
        SampleFile(path, num_samples=number).append([], [problem])
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    path.write_text("".join(lines[:4]))
    assert SampleFile(path, num_samples=5).num_there(problem) == 2
    path.write_text("".join(lines[:1]))
    assert SampleFile(path, num_samples=5).num_there(problem) == 0
    of_before = [
        {name: value for name, value in json.loads(line).items() if name not in ("of", "crc")} for line in lines
    ]
    path.write_text("".join(line_of(row) + "\n" for row in of_before))
    assert SampleFile(path, num_samples=5).num_there(problem) == 5
    path.write_text(line_of({**of_before[0], "of": 0}) + "\n")
    with pytest.raises(RunDirError, match="line 1, is not a sample: of is 0"):
        SampleFile(path, num_samples=5)


@pytest.mark.parametrize("shell", ["{} 2>&1 | :", "{} >&- 2>&-", "{} 2>/dev/full >/dev/full"])
def test_an_evaluation_whose_output_nobody_takes_ends_well(tmp_path, shell) -> None:
    options = f"--preset toy --limit 2 --samples 2 --no-base --output {tmp_path / 'out'}"
    command = shell.format(f"({sys.executable} -m rlora eval {options}; echo $? > {tmp_path / 'code'})")
    subprocess.run(["bash", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert (tmp_path / "out" / "results.md").is_file()
    assert (tmp_path / "code").read_text() == "0\n"

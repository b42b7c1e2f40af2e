"""Evaluation on benchmarks: samples that are kept, resumed and scored; what is evaluated; what is refused."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from rich.console import Console
from support.evaluations import Counting, rows, toy
from support.liars import ServesBase
from support.policies import ROOT, TOY_MODEL, make_policy

from rlora.commands.eval import parse
from rlora.config import to_json
from rlora.errors import AdapterError, ConfigError, DataError, ProofError, RunDirError
from rlora.evaluation.config import PRESETS, EvalConfig
from rlora.evaluation.engine import Benchmark
from rlora.evaluation.progress import Display
from rlora.evaluation.report import table_rows, warnings
from rlora.evaluation.run import evaluate_benchmarks, training_problems
from rlora.evaluation.samples import SampleFile
from rlora.evaluation.score import subset_sizes
from rlora.evaluation.subject import resolve
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import save_adapter
from rlora.sampler.base import EngineSpec, Sampler, SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.system.lock import FolderLock
from rlora.system.records import line_of
from rlora.tasks import DataConfig, task
from rlora.tasks.prompts import PromptConfig
from rlora.types import Problem

pytestmark = pytest.mark.loop
RANK = LoraConfig(rank=2)


@pytest.fixture(scope="module")
def adapter(toy_dir, tmp_path_factory) -> str:
    """An adapter that changes the toy's answers, as version 7 of a policy."""
    policy = make_policy(toy_dir, lora=RANK, scale_b=0.3)
    policy.version = 7
    folder = tmp_path_factory.mktemp("adapters") / "seventh"
    save_adapter(policy.snapshot(), folder)
    (folder / "rlora.json").write_text(json.dumps({"version": 7, "base_model": "toy"}))
    return str(folder)


@pytest.fixture(scope="module")
def done(adapter, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("eval") / "out"
    return output, evaluate_benchmarks(toy(output, adapter=adapter, samples=6))


def test_the_folder_holds_samples_results_and_a_table(done) -> None:
    output, results = done
    assert {path.name for path in output.iterdir()} == {
        "config.json",
        "lock",
        "log.txt",
        "results.json",
        "results.md",
        "samples-digits-base.jsonl",
        "samples-digits-policy.jsonl",
    }
    assert json.loads((output / "results.json").read_text()) == results
    assert results["subject"]["version"] == 7
    assert len(results["subject"]["adapter_sha256"]) == 64
    assert results["template"] == "plain"
    assert results["environment"]["packages"]["torch"]
    assert {"temperature", "top_p", "max_tokens", "seed", "samples", "stop"} <= results["config"].keys()
    table = (output / "results.md").read_text()
    assert "| digits (8 problems) | avg@6 |" in table
    assert "version 7 on toy; 6 samples a problem, temperature 1, top-p 1, at most 8 tokens, template plain" in table


def test_scores_equal_those_computed_from_the_samples_one_by_one(done) -> None:
    output, results = done
    found = results["benchmarks"]["digits"]
    by_arm = {}
    for arm in ("policy", "base"):
        by_problem: dict[str, list[bool]] = {}
        for row in rows(output / f"samples-digits-{arm}.jsonl"):
            by_problem.setdefault(row["problem"], []).append(row["verdict"] == "correct")
            assert row["version"] == (7 if arm == "policy" else -1)
        assert len(by_problem) == 8
        assert all(len(one) == 6 for one in by_problem.values())
        by_arm[arm] = by_problem
        scores = found["arms"][arm]
        mean = sum(map(sum, by_problem.values())) / 48
        assert scores["avg@6"]["mean"] == pytest.approx(mean)
        for k in (2, 4, 6):
            subsets = [any(subset) for one in by_problem.values() for subset in combinations(one, k)]
            assert scores[f"pass@{k}"]["mean"] == pytest.approx(sum(subsets) / len(subsets))
            assert 0 <= scores[f"maj@{k}"]["mean"] <= scores[f"pass@{k}"]["mean"]
        strict = sum(row["strict_verdict"] == "correct" for row in rows(output / f"samples-digits-{arm}.jsonl")) / 48
        assert scores["strict avg@6"]["mean"] == pytest.approx(strict)
        assert strict <= mean
        low, high = scores["avg@6"]["ci95"]
        assert low <= mean <= high
        assert low < high
        all_rows = rows(output / f"samples-digits-{arm}.jsonl")
        assert scores["truncated_share"] == sum(row["stop"] == "length" for row in all_rows) / 48
        assert scores["mean_tokens"] == sum(row["num_tokens"] for row in all_rows) / 48
        assert sum(scores["verdict_shares"].values()) == pytest.approx(1)
    gap = found["arms"]["policy"]["avg@6"]["mean"] - found["arms"]["base"]["avg@6"]["mean"]
    assert found["difference"]["avg@6"]["mean"] == pytest.approx(gap)
    assert rows(output / "samples-digits-policy.jsonl") != rows(output / "samples-digits-base.jsonl")


def test_the_adapter_is_proven_and_a_lying_sampler_is_caught(done, adapter, tmp_path) -> None:
    assert done[1]["proof"]["proof/canary_served_fraction_base"] == pytest.approx(1, abs=1e-3)
    assert done[1]["proof"]["proof/canary_is_decided_base"] == 1
    with pytest.raises(ProofError, match="It looks like the base model"):
        evaluate_benchmarks(
            toy(tmp_path / "lie", adapter=adapter), make_sampler=lambda spec: ServesBase(build_sampler(spec))
        )
    assert not (tmp_path / "lie" / "samples-digits-policy.jsonl").exists()


def test_a_proof_that_could_not_tell_is_reported(done, toy_dir, tmp_path) -> None:
    policy = make_policy(toy_dir, lora=RANK, scale_b=0.0)
    save_adapter(policy.snapshot(), tmp_path / "faint")
    results = evaluate_benchmarks(toy(tmp_path / "out", adapter=str(tmp_path / "faint"), limit=1))
    assert "differ by too little for the proof to tell" in warnings(results)[0]
    assert not any("too little" in warning for warning in warnings(done[1]))


def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_samples(done, adapter, tmp_path) -> None:
    output, results = done
    config = toy(tmp_path, adapter=adapter, samples=6)
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmarks(config, make_sampler=lambda spec: Counting(build_sampler(spec), calls=3))
    kept = rows(tmp_path / "samples-digits-policy.jsonl")
    assert len(kept) == 3 * 2 * 6  # 16 completions a batch: 2 problems of 6
    with (tmp_path / "samples-digits-policy.jsonl").open("a") as file:
        file.write(line_of({**kept[0], "problem": "arithmetic/test/9+0"}) + "\n")  # a kill in the middle
        file.write('{"problem": "arith')
    counters = []

    def counted(spec: EngineSpec) -> Sampler:
        counters.append(Counting(build_sampler(spec)))
        return counters[-1]

    again = evaluate_benchmarks(config, make_sampler=counted)
    assert [policy for _, policy in counters[0].keys] == [0, 0] + [None] * 8
    for arm in ("policy", "base"):
        name = f"samples-digits-{arm}.jsonl"
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
    assert again["benchmarks"] == results["benchmarks"]

    def never(spec: EngineSpec) -> Sampler:
        raise AssertionError("all samples are there")

    assert evaluate_benchmarks(config, make_sampler=never)["benchmarks"] == results["benchmarks"]


def test_the_batch_does_not_change_the_samples_and_a_limit_takes_the_first_problems(done, adapter, tmp_path) -> None:
    config = toy(tmp_path, adapter=adapter, samples=6, limit=5, completions_per_batch=1000, base=False)
    results = evaluate_benchmarks(config)
    name = "samples-digits-policy.jsonl"
    assert rows(tmp_path / name) == rows(done[0] / name)[: 5 * 6]
    assert results["benchmarks"]["digits"]["num_problems"] == 5
    assert results["benchmarks"]["digits"]["arms"].keys() == {"policy"}
    whole = evaluate_benchmarks(dataclasses.replace(config, limit=0, base=True))
    assert whole["benchmarks"] == done[1]["benchmarks"]


def test_another_configuration_in_the_same_folder_is_refused_with_the_fields(done, adapter, toy_dir, tmp_path) -> None:
    output, _ = done
    with pytest.raises(RunDirError) as refused:
        evaluate_benchmarks(toy(output, adapter=adapter, samples=4, temperature=0.5, seed=3))
    assert "config.seed: 0 -> 3" in str(refused.value)
    assert "config.temperature: 1.0 -> 0.5" in str(refused.value)
    policy = make_policy(toy_dir, lora=RANK, seed=2)
    save_adapter(policy.snapshot(), tmp_path / "other")
    with pytest.raises(RunDirError, match=r"subject\.adapter_sha256: .*\n.*subject\.version: 7 -> 0"):
        evaluate_benchmarks(toy(output, adapter=str(tmp_path / "other"), samples=6))
    with pytest.raises(RunDirError, match="is not the folder of an evaluation; choose another --output"):
        evaluate_benchmarks(toy(tmp_path))


def test_a_folder_is_claimed_as_a_runs_is(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    lock = FolderLock(tmp_path / "out")
    with pytest.raises(RunDirError, match=rf"written by process {os.getpid()} .* or choose another --output"):
        evaluate_benchmarks(toy(tmp_path / "out"))
    lock.release()
    (tmp_path / "out" / ".config.json.7.tmp").write_text("{")  # of a process that was killed before anything was there
    evaluate_benchmarks(toy(tmp_path / "out", limit=1, samples=1))
    assert not list((tmp_path / "out").glob(".*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"below cannot be made \(.*choose another --output"):
        evaluate_benchmarks(toy(tmp_path / "file" / "below"))


def test_another_benchmark_joins_the_same_folder(tmp_path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"q": f"{i} ?", "a": i % 10}) + "\n" for i in range(3)))
    output = tmp_path / "out"
    fields = {"question_field": "q", "answer_field": "a"}
    evaluate_benchmarks(toy(output, limit=2, **fields))
    results = evaluate_benchmarks(toy(output, benchmark=str(own), **fields))
    assert set(results["benchmarks"]) == {"digits", str(own)}
    assert [one["num_problems"] for one in results["benchmarks"].values()] == [2, 3]
    assert {row["problem"] for row in rows(output / "samples-own-base.jsonl")} == {"own/1", "own/2", "own/3"}
    own.write_text(own.read_text().replace('"a": 0', '"a": 5'))
    with pytest.raises(RunDirError, match="own/1 had the answer '0', and has '5' now; the data changed"):
        evaluate_benchmarks(toy(output, benchmark=str(own), **fields))


def test_prompts_that_are_too_long_count_as_wrong_and_are_reported(tmp_path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"question": "a" * size, "answer": "1"}) + "\n" for size in (3, 300)))
    config = toy(
        tmp_path / "out", benchmark=str(own), sampler=SamplerConfig(kind="torch", max_prompt_tokens=150), samples=1
    )
    results = evaluate_benchmarks(config)
    scores = results["benchmarks"][str(own)]["arms"]["base"]
    assert scores["num_prompts_too_long"] == 1
    assert rows(tmp_path / "out" / "samples-own-base.jsonl")[-1]["stop"] == "prompt"
    found = warnings(results)
    assert any("1 prompts are too long and count as wrong" in warning for warning in found)
    assert any("one sample a problem on 2 problems says little, " in warning for warning in found)
    assert evaluate_benchmarks(config)["benchmarks"] == results["benchmarks"]


@pytest.mark.data
def test_one_sample_on_aime_prints_the_interval_with_a_warning(data_dir, tmp_path, capsys) -> None:
    config = toy(tmp_path, benchmark="aime2024", samples=1, limit=3, data_dir=str(data_dir), max_tokens=4)
    config = dataclasses.replace(config, sampler=SamplerConfig(kind="torch", max_prompt_tokens=500))
    results = evaluate_benchmarks(config)
    printed = capsys.readouterr()
    warning = "aime2024, base: one sample a problem on 3 problems says little, 0.0 % [0.0, "
    assert warning in printed.err
    assert warning in (tmp_path / "results.md").read_text()
    assert "strict avg@1" not in results["benchmarks"]["aime2024"]["arms"]["base"]
    assert results["benchmarks"]["aime2024"]["instruction"] == task("aime2024").instruction


def test_a_damaged_samples_file_is_refused_with_the_line(tmp_path) -> None:
    (tmp_path / "x.jsonl").write_text('{"problem": "a"}\nnonsense\n')
    with pytest.raises(RunDirError, match="line 2: Expecting value"):
        SampleFile(tmp_path / "x.jsonl", num_samples=1)


def test_a_kept_sample_is_read_back_as_it_was(tmp_path) -> None:
    file = SampleFile(tmp_path / "x.jsonl", num_samples=2)
    problem = Problem(id="a\u2028b", question="", answer="1", source="t")
    assert problem not in file
    file.append([], [problem])
    again = SampleFile(tmp_path / "x.jsonl", num_samples=2)
    assert problem in again
    assert list(again.rows(problem)) == list(file.rows(problem))
    assert [row["sample"] for row in again.rows(problem)] == [0, 1]


def fake_run(folder: Path, adapter: str, *, data: object, instruction: str | None) -> str:
    folder.mkdir()
    (folder / "adapter").symlink_to(adapter)
    config = {"model": to_json(TOY_MODEL), "prompt": to_json(PromptConfig(instruction=instruction)), "data": data}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_run_is_evaluated_with_its_model_version_and_prompts(adapter, tmp_path) -> None:
    run = fake_run(tmp_path / "first", adapter, data={"name": "math"}, instruction="Be brief.")
    subject = resolve(EvalConfig(run=run))
    assert (subject.model, subject.version, subject.lora) == (TOY_MODEL, 7, RANK)
    assert subject.trained_on == "math"
    assert subject.prompt_for("math500").instruction == "Be brief."
    assert subject.prompt_for("aime2024").instruction is None
    assert resolve(EvalConfig(run=run, instruction="")).prompt_for("math500").instruction == ""
    assert resolve(EvalConfig(run=run, template="plain")).prompt.template == "plain"
    assert resolve(EvalConfig(run=run, dtype="bfloat16")).model.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="--model is 'x', but the run trained on 'toy'"):
        resolve(EvalConfig(run=run, model="x"))
    run = fake_run(tmp_path / "third", adapter, data={"name": "digits"}, instruction=None)
    results = evaluate_benchmarks(dataclasses.replace(toy("x", run=run), output=None))
    assert (tmp_path / "third" / "eval" / "v000007" / "results.json").is_file()
    assert results["subject"]["trained_on"] == "digits"


def test_a_benchmark_that_the_run_was_trained_on_is_reported(adapter, tmp_path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(json.dumps({"question": f"Which number follows {i}?", "answer": i + 1}) + "\n" for i in range(20))
    )
    data = to_json(DataConfig(name="jsonl", train=str(own)))
    run = fake_run(tmp_path / "run", adapter, data=data, instruction=None)
    results = evaluate_benchmarks(toy(tmp_path / "out", run=run, benchmark=f"{own},digits", base=False))
    assert [one["num_trained_on"] for one in results["benchmarks"].values()] == [18, 0]
    assert warnings(results)[0] == f"Warning: {own}: the run was trained on 18 of its problems."
    own.unlink()
    assert training_problems(resolve(EvalConfig(run=run))) is None
    assert training_problems(resolve(EvalConfig(adapter=adapter))) is None


def test_progress_is_a_bar_on_a_terminal(tmp_path) -> None:
    problems = tuple(Problem(id=str(i), question="", answer="", source="t") for i in range(4))
    benchmark = Benchmark(name="b", task=task("digits"), problems=problems, renderer=None)  # type: ignore[arg-type]
    file = SampleFile(tmp_path / "x.jsonl", num_samples=1)
    file.append([], problems[:1])
    console = Console(force_terminal=True, highlight=False, width=100, file=io.StringIO())
    with Display(console, benchmark, "base", file) as progress:
        progress.advance(3, 500)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "b, base: 1 of 4 problems are there" in shown
    assert "4/4" in shown


def test_a_finished_run_can_be_evaluated(tmp_path) -> None:
    from support.recipes import presets

    from rlora.loop import run

    preset = presets(ROOT / "recipes" / "arithmetic.py")["toy"]
    run_dir = run(dataclasses.replace(preset, run_dir=str(tmp_path / "run"), num_steps=1))
    results = evaluate_benchmarks(dataclasses.replace(toy("x", run=str(run_dir)), output=None))
    assert results["subject"]["version"] == 1
    assert results["subject"]["trained_on"] == "digits"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, ConfigError, "say what to evaluate: --run RUN, --adapter FOLDER, or --model NAME"),
        ({"run": "/nowhere"}, RunDirError, "/nowhere is not a run directory"),
        ({"adapter": "/nowhere"}, AdapterError, "/nowhere holds no adapter_config.json"),
        ({"samples": 0}, ConfigError, "samples is 0"),
        ({"sampler": SamplerConfig(kind="torch", share_base="on")}, ConfigError, "sampler.share_base is 'on'"),
        ({"max_tokens": 0}, ConfigError, "max_tokens is 0"),
        ({"limit": -1}, ConfigError, "limit is -1"),
        ({"num_threads": 0}, ConfigError, "num_threads is 0"),
        ({"temperature": -1.0}, ConfigError, "temperature is -1.0"),
        ({"temperature": 0.0}, ConfigError, "greedy decoding gives one completion a problem, not 4"),
        ({"top_p": 0.0}, ConfigError, "top_p is 0.0"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"template": "odd"}, ConfigError, "template is 'odd'"),
        ({"benchmark": " , "}, ConfigError, "benchmark is empty"),
        ({"benchmark": "digits,digits"}, ConfigError, "two benchmarks are called digits"),
        ({"benchmark": "a/x.jsonl,b/x.jsonl"}, ConfigError, r"two benchmarks are called x\."),
        ({"benchmark": "aime1999"}, ConfigError, "'aime1999' is unknown"),
        ({"benchmark": "/no/where.jsonl"}, ConfigError, "/no/where.jsonl is not a file"),
        (
            {"max_tokens": 500},
            ConfigError,
            "need 900 positions, the model has 512; lower .* or --max-tokens",
        ),
        ({"benchmark": "jsonl"}, DataError, "no file of your own was named"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_sampled(changes, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message):
        evaluate_benchmarks(toy(tmp_path / "out", **changes))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_run_without_an_adapter_and_an_adapter_without_a_base_are_refused(adapter, tmp_path) -> None:
    run = fake_run(tmp_path / "run", str(tmp_path / "nothing"), data={"name": "math"}, instruction=None)
    with pytest.raises(AdapterError, match="holds no adapter; has the run finished a step"):
        resolve(EvalConfig(run=run))
    folder = tmp_path / "nameless"
    folder.mkdir()
    for file in Path(adapter).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stored = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not name its base model; add --model NAME"):
        resolve(EvalConfig(adapter=str(folder)))
    (folder / "rlora.json").write_text("{}")
    with pytest.raises(AdapterError, match="does not state the version"):
        resolve(EvalConfig(adapter=str(folder), model="toy"))


def test_subset_sizes() -> None:
    assert [subset_sizes(n) for n in (1, 2, 6, 32)] == [(), (2,), (2, 4, 6), (2, 4, 8, 16, 32)]


def test_table_without_a_policy_has_no_empty_columns() -> None:
    estimate = {"mean": 0.5, "ci95": [0.25, 0.75]}
    arm = {"avg@1": estimate, "truncated_share": 0.125, "mean_tokens": 5.2}
    results = {"benchmarks": {"b": {"num_problems": 3, "arms": {"base": arm}}}}
    assert table_rows(results) == [
        ["benchmark", "measure", "base"],
        ["b (3 problems)", "avg@1", "50.0 % [25.0, 75.0]"],
        ["", "truncated", "12.5 %"],
        ["", "mean tokens", "5"],
    ]


def test_command_line() -> None:
    parsed = parse(["--preset", "cpu", "--run", "runs/x", "--no-base", "--benchmark", "aime2024", "--top-p", "0.9"])
    expected = dataclasses.replace(
        PRESETS["cpu"], run="runs/x", model=None, base=False, benchmark="aime2024", top_p=0.9
    )
    assert parsed == expected
    assert parse(["--preset", "cpu"]).model == "bundled"
    assert parse(["--adapter=folder", "--model", "m"]).model == "m"


@pytest.mark.parametrize("command", [["recipes/evaluate.py"], ["-m", "rlora", "eval"]])
def test_recipe_and_command_are_the_same(command, tmp_path) -> None:
    arguments = ["--preset", "toy", "--output", str(tmp_path / "out"), "--limit", "2", "--no-base"]
    done = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "digits (2 problems)" in done.stdout
    assert "digits, base: 2/2 problems" in done.stderr
    refused = subprocess.run(
        [sys.executable, *command, *arguments, "--samples", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.strip() == "ConfigError: samples is 0; it must be at least 1."

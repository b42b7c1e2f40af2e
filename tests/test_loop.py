"""The whole loop on the toy model with the torch sampler."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.liars import ServesBase, ServesPrevious
from support.policies import ROOT
from support.runs import rows, toy, without_clock

from rlora.errors import AdapterError, ConfigError, DataError, NonFiniteError, ProofError, RunDirError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from rlora.model.sources import ModelConfig
from rlora.sampler.base import SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.tasks import DataConfig
from rlora.tracking import TrackingConfig
from rlora.train.losses import LOSSES
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams

pytestmark = pytest.mark.loop


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of four steps with enough samples that some groups have signal."""
    return run(toy(tmp_path_factory.mktemp("toy") / "run", samples_per_problem=64))


def test_run_directory_holds_everything_needed_to_judge_the_run(finished) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "run.json",
        "lock",
        "log.txt",
        "trajectory",
        "checkpoints",
        "rollouts",
        "adapter",
        "adapter-best",
        "summary.json",
    }
    assert json.loads((finished / "config.json").read_text())["samples_per_problem"] == 64
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert [row["step"] for row in rows(finished)] == [0, 1, 2, 3]
    assert json.loads((finished / "adapter" / "rlora.json").read_text())["version"] == 4


def test_rollouts_are_readable_and_agree_with_the_metrics(finished) -> None:
    for row in rows(finished):
        lines = (finished / "rollouts" / f"step-{row['step']:06d}.jsonl").read_text().splitlines()
        rollouts = [json.loads(line) for line in lines]
        assert len(rollouts) == row["rollout/num_completions"] == 4 * 64
        assert sum(one["reward"] for one in rollouts) / len(rollouts) == pytest.approx(row["reward/mean"])
        assert {one["version"] for one in rollouts} == {row["step"]}
        for one in rollouts:
            assert (one["verdict"] == "correct") == (one["reward"] == 1.0)
            assert one["verdict"] != "correct" or one["extracted"] == one["gold"]
        kinds = [one["verdict"] for one in rollouts]
        for kind in set(kinds):
            assert row[f"verdict/{kind}_share"] == pytest.approx(kinds.count(kind) / len(kinds))
        truncated = sum(one["stop"] == "length" for one in rollouts) / len(rollouts)
        assert row["rollout/truncated_share"] == pytest.approx(truncated)


def test_trainer_and_sampler_agree_in_fp32_at_every_step(finished) -> None:
    trained = [row for row in rows(finished) if not row["optimizer/is_empty_batch"]]
    assert len(trained) >= 2
    for row in trained:
        assert row["agreement/mean_abs_logprob_difference"] <= 1e-4
        assert row["agreement/kl_k3"] <= 1e-6


def test_summary_is_complete_and_consistent(finished) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["num_problems"] == 8
    for who in ("base", "policy"):
        low, high = summary[who]["ci95"]
        assert 0 <= low <= summary[who]["accuracy"] <= high <= 1
        assert high > low
    difference = summary["policy"]["accuracy"] - summary["base"]["accuracy"]
    assert summary["difference"]["mean"] == pytest.approx(difference)
    assert summary["num_steps"] == 4
    assert summary["policy_bytes"] == 4 * summary["num_parameters"] == 4 * 2048
    assert summary["train_seconds"] == pytest.approx(sum(row["seconds/step"] for row in rows(finished)))
    assert set(summary["seconds_by_phase"]) == {"evaluate", "sample", "verify", "train", "swap", "save"}
    assert 0 <= summary["max_kl_k3"] <= 1e-6
    assert summary["max_mean_abs_logprob_difference"] <= 1e-4


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path) -> None:
    again = run(toy(tmp_path / "again", samples_per_problem=64))
    assert [without_clock(row) for row in rows(again)] == [without_clock(row) for row in rows(finished)]
    for step in range(4):
        name = f"rollouts/step-{step:06d}.jsonl"
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    adapter = "adapter/adapter_model.safetensors"
    assert (again / adapter).read_bytes() == (finished / adapter).read_bytes()
    other = run(toy(tmp_path / "other", samples_per_problem=64, seed=1))
    assert (other / adapter).read_bytes() != (finished / adapter).read_bytes()


def test_reward_rises(tmp_path) -> None:
    """The toy cannot read, but it can learn to say one digit and stop."""
    run_dir = run(
        toy(
            tmp_path / "run",
            num_steps=40,
            problems_per_step=8,
            samples_per_problem=64,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            evaluation=EvaluationConfig(num_problems=4),
        )
    )
    rewards = [row["reward/mean"] for row in rows(run_dir)]
    assert sum(rewards[-10:]) > 2 * sum(rewards[:10])


@pytest.mark.parametrize("learning_rate", [1e-3, 3e-5])
@pytest.mark.parametrize("lie", [ServesBase, ServesPrevious])
def test_a_lying_sampler_stops_the_run_within_one_step(tmp_path, lie, learning_rate) -> None:
    config = toy(tmp_path / "run", samples_per_problem=64, optimizer=OptimizerConfig(learning_rate=learning_rate))
    with pytest.raises(ProofError, match="the sampler does not serve what it is given"):
        run(config, make_sampler=lambda engine_spec: lie(build_sampler(engine_spec)))
    assert not (tmp_path / "run" / "rollouts" / "step-000000.jsonl").exists()


def test_an_init_adapter_is_proven_before_the_first_sample(finished, tmp_path) -> None:
    config = toy(tmp_path / "run", num_steps=1, init_adapter=str(finished / "adapter"))
    run_dir = run(config)
    first = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    start = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert max(float((first[name] - start[name]).abs().max()) for name in start) <= 0.011  # one update of 0.01
    with pytest.raises(ProofError, match="It looks like the base model"):
        run(
            toy(tmp_path / "lie", init_adapter=str(finished / "adapter")),
            make_sampler=lambda engine_spec: ServesBase(build_sampler(engine_spec)),
        )


def test_a_foreign_directory_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirError, match="is not a run directory"):
        run(toy(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": DataConfig(name="gsm9k")}, ConfigError, "unknown"),
        ({"model": ModelConfig(name="/nowhere")}, ConfigError, "is not a folder"),
        ({"data": DataConfig(name="gsm8k", data_dir="/nowhere")}, DataError, "--data-dir is '/nowhere'"),
        ({"sampling": SamplingParams(top_p=0.5)}, ConfigError, "top_p"),
        ({"init_adapter": "/nowhere"}, AdapterError, "holds no adapter_config.json"),
    ],
)
def test_bad_input_leaves_no_directory_behind(tmp_path, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        run(toy(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RunDirError, match=r"run cannot be made \(.*choose another --run-dir"):
            run(toy(path))


def test_bounds_end_a_run_well(tmp_path) -> None:
    late = run(toy(tmp_path / "late", stop_after_hours=0.0))
    assert len(rows(late)) == 1
    good = run(toy(tmp_path / "good", stop_at_reward=0.0))
    assert len(rows(good)) == 1
    assert (good / "summary.json").exists()


def test_best_adapter_is_that_of_the_best_held_out_score(finished) -> None:
    scores = {row["step"]: row["evaluation/accuracy"] for row in rows(finished) if "evaluation/accuracy" in row}
    assert scores.keys() == {0, 2}
    final = json.loads((finished / "summary.json").read_text())["policy"]["accuracy"]
    version = json.loads((finished / "adapter-best" / "rlora.json").read_text())["version"]
    assert version == (4 if final >= max(scores.values()) else max(scores, key=lambda step: (scores[step], -step)))


def test_non_finite_gradient_ends_the_run_and_keeps_the_last_policy(tmp_path, monkeypatch) -> None:
    plain = LOSSES["importance_weighted"]
    calls = []

    def exploding(inputs, config):
        calls.append(1)
        outputs = plain(inputs, config)
        return dataclasses.replace(outputs, loss_N=outputs.loss_N * (float("inf") if len(calls) > 12 else 1.0))

    monkeypatch.setitem(LOSSES, "importance_weighted", exploding)
    with pytest.raises(NonFiniteError):
        run(toy(tmp_path / "run", samples_per_problem=64, num_steps=30))
    done = len(rows(tmp_path / "run"))
    assert done >= 2
    assert json.loads((tmp_path / "run" / "adapter" / "rlora.json").read_text())["version"] == done


def test_an_update_after_which_nothing_can_be_computed_ends_the_run_and_keeps_the_last_policy(tmp_path) -> None:
    config = toy(tmp_path / "run", samples_per_problem=64, num_steps=30)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e25))
    with pytest.raises(NonFiniteError, match=r"log-probabilities of version \d+ of the policy are not numbers"):
        run(config)
    done = len(rows(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "adapter" / "rlora.json").read_text())["version"] == done


def records_of(log: bytes) -> bytes:
    """Return the records of a .wandb file, without the headers that cut them at blocks of 32 KiB."""
    records, at = bytearray(), 7
    while at + 7 <= len(log):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        size = int.from_bytes(log[at + 4 : at + 6], "little")
        records += log[at + 7 : at + 7 + size]
        at += 7 + size
    return bytes(records)


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_gets_the_same_metrics(tmp_path) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=2, tracking=TrackingConfig(wandb="offline")))
    (log,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    records = records_of(log.read_bytes())
    assert [name for name in rows(run_dir)[0] if name.encode() not in records] == []
    assert b"final/greedy/policy" in records


def test_wandb_online_without_a_login_is_refused_before_anything_is_written(tmp_path) -> None:
    command = [sys.executable, "-m", "rlora", "train", "arithmetic", "--preset", "toy", "--tracking.wandb", "online"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "ConfigError: tracking.wandb is 'online', and there is no login: No API key configured." in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["arithmetic", "gsm8k"])
def test_recipe_scripts_run_the_toy_preset(recipe, tmp_path, data_dir) -> None:
    command = [sys.executable, f"recipes/{recipe}.py", "--preset", "toy", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--num-steps", "2", "--data-dir", str(data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "step    2/2" in done.stderr
    assert "95 % intervals" in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("shell", ["{} 2>&1 | head -1", "{} >&- 2>&-", "{} 2>/dev/full >/dev/full", "{} 2>&1 | :"])
def test_a_run_whose_output_nobody_takes_goes_on_to_its_end(tmp_path, shell) -> None:
    command = f"{sys.executable} -m rlora train arithmetic --preset toy --num-steps 4 --run-dir {tmp_path / 'run'}"
    command = shell.format(f"({command}; echo $? > {tmp_path / 'code'})")
    subprocess.run(["bash", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert (tmp_path / "code").read_text() == "0\n"
    assert len(rows(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "summary.json").exists()


def test_recipe_script_explains_an_error_in_one_message(tmp_path) -> None:
    command = [sys.executable, "recipes/arithmetic.py", "--preset", "toy", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*command, "--lora.rank", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == "ConfigError: lora.rank is 0; it must be from 1 to 512. Try --lora.rank 1."


def test_metrics_page_defines_exactly_what_a_run_logs(finished) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    defined = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    logged = {name for row in rows(finished) for name in row}
    assert logged - defined == set()
    options = {"loss/kl_to_base", "rollout/num_passed_over", "reward/PART_mean"}
    assert defined - logged == options  # only with options that are off


def test_a_held_out_problem_that_is_too_long_counts_as_wrong_as_in_a_benchmark(tmp_path, capsys) -> None:
    for name, sizes in (("train", (3, 4, 5, 6)), ("test", (7, 300, 8))):
        lines = [json.dumps({"question": "a" * size, "answer": "1"}) + "\n" for size in sizes]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    config = toy(
        tmp_path / "run",
        num_steps=1,
        data=DataConfig(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl")),
        sampler=SamplerConfig(kind="torch", max_prompt_tokens=150),
        evaluation=EvaluationConfig(every=1, num_problems=0),
    )
    summary = json.loads((run(config) / "summary.json").read_text())
    assert (summary["num_problems"], summary["num_prompts_too_long"]) == (3, 1)
    said = capsys.readouterr()
    assert "3 held-out problems, 1 of them too long and so wrong" in " ".join((said.out + said.err).split())
    assert rows(tmp_path / "run")[0]["evaluation/accuracy"] in (0, 1 / 3, 2 / 3)

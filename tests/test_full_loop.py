"""Runs with --method full: the same loop, resumed exactly, evaluated and exported. Toy model in bf16, torch sampler."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.evaluations import toy as toy_evaluation
from support.liars import ServesBase, ServesPrevious
from support.runs import SIZE, assert_same_run, rows, stopped, toy

from rlora.commands.cli import main
from rlora.errors import CheckpointError, ConfigError, ModelError, ProofError, RunDirError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.sources import TOY, ModelConfig
from rlora.sampler.build import build_sampler
from rlora.store.checkpoint import CheckpointConfig, CheckpointFolder
from rlora.train.optimizer import OptimizerConfig

pytestmark = pytest.mark.loop
WEIGHTS = "model.safetensors"
NUM_WEIGHTS = 80_832  # of the toy, its untied unembedding included


def full(run_dir: Path, **changes):
    settings = {
        "method": "full",
        "model": ModelConfig(name=TOY),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "checkpoint": CheckpointConfig(every=2, keep_last=9),
    }
    return toy(run_dir, **{**SIZE, **settings, **changes})


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    run_dir = run(full(tmp_path_factory.mktemp("full") / "run"))
    assert [row["optimizer/is_empty_batch"] for row in rows(run_dir)] == [0.0] * 5
    return run_dir


def test_a_run_directory_holds_a_model_in_place_of_the_adapter(straight) -> None:
    names = {path.name for path in straight.iterdir()}
    assert {"model", "model-best", "checkpoints", "summary.json"} <= names
    assert not {"adapter", "adapter-best"} & names
    stamp = json.loads((straight / "model" / "rlora.json").read_text())
    weights = (straight / "model" / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert set(stamp.pop("base")) == {"config", "template", "tokenizer", "weights"}
    assert stamp == {"version": 5, "base_model": "toy", "sha256": {"model.safetensors": digest}}
    summary = json.loads((straight / "summary.json").read_text())
    assert (summary["method"], summary["num_parameters"]) == ("full", NUM_WEIGHTS)
    assert summary["policy_bytes"] == 2 * NUM_WEIGHTS
    served = load_file(straight / "model" / WEIGHTS)
    checkpoint = CheckpointFolder(straight / "checkpoints").load(5)
    assert served.keys() == checkpoint.tensors().keys()
    for name, tensor in checkpoint.tensors().items():
        assert torch.equal(served[name], tensor.bfloat16())
    model = transformers.AutoModelForCausalLM.from_pretrained(straight / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_WEIGHTS


def test_every_weight_moved_and_sampler_and_trainer_agree(straight) -> None:
    start, end = (CheckpointFolder(straight / "checkpoints").load(step).tensors() for step in (0, 5))
    assert all(float((end[name] - start[name]).abs().max()) > 1e-4 for name in start)
    for row in rows(straight):
        assert row["agreement/mean_abs_logprob_difference"] < 0.02
        assert row["optimizer/step_size"] == row["optimizer/learning_rate"] == 1e-3
    assert rows(straight)[-1]["proof/canary_is_decided_base"] == 1


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_equals_the_straight_one(straight, tmp_path, after) -> None:
    stopped(full(tmp_path / "run"), after=after)
    run(full(tmp_path / "run"))
    assert_same_run(tmp_path / "run", straight, pattern="model*/*")


def test_checkpoints_are_rarer_unless_asked_for(tmp_path) -> None:
    run(full(tmp_path / "run", num_steps=1, checkpoint=CheckpointConfig()))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["checkpoint"]
    assert stored == {"every": 10, "keep_last": 1, "keep_every": 0, "trajectory": 0}
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").steps() == [1]


def test_reward_rises(tmp_path) -> None:
    changes = {"num_steps": 25, "problems_per_step": 8, "evaluation": EvaluationConfig(num_problems=4)}
    run_dir = run(full(tmp_path / "run", **changes, optimizer=OptimizerConfig(learning_rate=3e-4)))
    rewards = [row["reward/mean"] for row in rows(run_dir)]
    assert sum(rewards[-8:]) > 2 * sum(rewards[:8])


@pytest.mark.parametrize("learning_rate", [1e-3, 3e-5])
@pytest.mark.parametrize("lie", [ServesBase, ServesPrevious])
def test_a_lying_sampler_stops_the_run_within_one_step(tmp_path, lie, learning_rate) -> None:
    config = full(tmp_path / "run", optimizer=OptimizerConfig(learning_rate=learning_rate))
    with pytest.raises(ProofError, match="the sampler does not serve what it is given"):
        run(config, make_sampler=lambda engine_spec: lie(build_sampler(engine_spec)))
    assert not (tmp_path / "run" / "rollouts" / "step-000000.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(rank=2)}, "has no adapters: leave the --lora options out"),
        ({"init_adapter": "somewhere"}, "has no adapter to start from: merge it"),
        ({"optimizer": OptimizerConfig(b_rate_ratio=4.0)}, "has no A and B"),
        ({"method": "half"}, "method is 'half'; it must be one of lora, full"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(full(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_neither_a_run_nor_a_branch_changes_its_method(straight, tmp_path) -> None:
    lora = dataclasses.replace(full(straight), method="lora")
    with pytest.raises(RunDirError, match="method: 'full' -> 'lora'"):
        run(lora)
    with pytest.raises(CheckpointError, match="method: 'full' -> 'lora'"):
        run(dataclasses.replace(lora, branch=str(tmp_path / "new")))


@pytest.mark.parametrize(("rate", "is_warned"), [(1e-3, True), (3e-4, False)])
def test_a_rate_for_adapters_is_warned_of(tmp_path, capsys, rate, is_warned) -> None:
    run(full(tmp_path / "run", num_steps=1, optimizer=OptimizerConfig(learning_rate=rate)))
    assert ("is above the known window" in capsys.readouterr().err) == is_warned


def test_evaluation_scores_the_newest_model_beside_its_base(straight, tmp_path) -> None:
    results = evaluate_benchmarks(toy_evaluation(tmp_path / "eval", run=str(straight), dtype=None))
    subject = results["subject"]
    assert (subject["version"], subject["adapter_sha256"], len(subject["weights_sha256"])) == (5, None, 64)
    assert results["proof"]["proof/canary_is_decided_base"] == 1
    assert set(results["benchmarks"]["digits"]["arms"]) == {"policy", "base"}
    alone = evaluate_benchmarks(toy_evaluation(tmp_path / "alone", model=str(straight / "model"), dtype="bfloat16"))
    as_policy = results["benchmarks"]["digits"]["arms"]["policy"]
    assert alone["benchmarks"]["digits"]["arms"]["base"] == as_policy
    with pytest.raises(ConfigError, match="the run trained weights of bfloat16"):
        evaluate_benchmarks(toy_evaluation(tmp_path / "x", run=str(straight), dtype="float32"))
    with pytest.raises(ModelError, match="has the run written a checkpoint"):
        evaluate_benchmarks(toy_evaluation(tmp_path / "x", run=str(straight), adapter=str(tmp_path)))


def test_export_writes_the_model_of_any_kept_step(straight, tmp_path, capsys) -> None:
    main(["export", str(straight), "--to", str(tmp_path / "newest")])
    assert (tmp_path / "newest" / WEIGHTS).read_bytes() == (straight / "model" / WEIGHTS).read_bytes()
    main(["export", str(straight), "--step", "2", "--to", str(tmp_path / "second")])
    assert (tmp_path / "second" / WEIGHTS).read_bytes() != (straight / "model" / WEIGHTS).read_bytes()
    assert json.loads((tmp_path / "second" / "rlora.json").read_text())["version"] == 2
    card = (tmp_path / "newest" / "README.md").read_text()
    for line in (
        "# Fully fine-tuned model: toy",
        "| trained | every weight |",
        "vllm serve FOLDER",
        "full-fine-tuning",
    ):
        assert line in card
    with pytest.raises(SystemExit):
        main(["export", str(straight), "--merge", "--to", str(tmp_path / "merged")])
    assert "there is no adapter to merge" in capsys.readouterr().err

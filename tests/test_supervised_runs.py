"""Supervised runs of the toy model: what they leave, how they go on, and where their policies go."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.policies import ROOT
from support.runs import rows, without_clock
from support.supervised import sums, toy_sft, write

import rlora
from rlora.commands.check import check_recipe
from rlora.commands.cli import main
from rlora.commands.runs import state_of
from rlora.errors import AdapterError, CheckpointError, ConfigError, DataError, RunDirError
from rlora.lora.config import LoraConfig
from rlora.recipes import find_recipe
from rlora.store.checkpoint import CheckpointConfig
from rlora.supervised.config import HeldOutConfig, SupervisedConfig
from rlora.supervised.data import ConversationsConfig
from rlora.supervised.loop import run
from rlora.supervised.state import SupervisedRun
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig

pytestmark = pytest.mark.loop


class Stop(Exception):
    """What a test stops a run with."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    return run(toy_sft(folder))


def test_a_run_learns_and_leaves_what_judges_it(finished) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    base, policy = (summary[name]["nats"] for name in ("base", "policy"))
    assert policy["mean"] < base["mean"] - 0.05
    assert summary["difference"]["nats"]["ci95"][1] < 0
    assert base["ci95"][0] < base["mean"] < base["ci95"][1]
    assert summary["policy"]["bits"]["mean"] == pytest.approx(policy["mean"] / math.log(2))
    logged = rows(finished)
    assert [row["step"] for row in logged] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in logged if "evaluation/loss" in row] == [0, 2, 4]
    assert logged[0]["evaluation/loss"] == pytest.approx(base["mean"])
    assert (finished / "adapter" / "adapter_model.safetensors").is_file()
    assert (finished / "adapter-best" / "adapter_model.safetensors").is_file()
    assert not list(finished.glob("rollouts/*"))


def test_the_page_defines_exactly_what_a_run_logs(finished) -> None:
    page = (ROOT / "docs" / "supervised.md").read_text()
    defined = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert {name for row in rows(finished) for name in row} == defined


def assert_same(here, there) -> None:
    assert [without_clock(row) for row in rows(here)] == [without_clock(row) for row in rows(there)]
    for pattern in ("adapter*/*.safetensors", "model*/*.safetensors", "checkpoints/*/tensors.safetensors"):
        files = {str(path.relative_to(there)): path.read_bytes() for path in there.glob(pattern)}
        assert {str(path.relative_to(here)): path.read_bytes() for path in here.glob(pattern)} == files
    summaries = [json.loads((each / "summary.json").read_text()) for each in (here, there)]
    for name in ("base", "policy", "difference", "best_nats", "num_steps", "epochs"):
        assert summaries[0][name] == summaries[1][name]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch, after) -> None:
    """The run is stopped before, between and after its checkpoints: behind the row of a step, and before it."""
    config, finish, left = toy_sft(tmp_path), SupervisedRun.finish, [after]

    def stops(self, values) -> None:
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        finish(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedRun, "finish", stops)
        with pytest.raises(Stop):
            run(config)
    assert_same(run(config), finished)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_ended_by_a_signal_goes_on_bit_for_bit(finished, tmp_path, sign, code) -> None:
    config = toy_sft(tmp_path)
    arguments = ["--preset", "toy", "--num-steps", "5", "--run-dir", config.run_dir, "--train", config.data.train]
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        for _ in range(1000):
            if (tmp_path / "run" / "checkpoints" / "step-000002").is_dir():
                break
            time.sleep(0.05)
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    if sign == signal.SIGINT:
        assert "is whole: the last checkpoint is of step" in said
        assert "To go on from there" in said
    done = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout + done.stderr
    assert_same(tmp_path / "run", finished)


def test_more_steps_go_on_and_a_finished_run_is_left_as_it_is(finished, tmp_path, capsys) -> None:
    config = toy_sft(tmp_path, num_steps=3)
    run(config)
    assert_same(run(replace(config, num_steps=5)), finished)
    before = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    run(replace(config, num_steps=5))
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(RunDirError, match="belongs to a run of another configuration"):
        run(replace(config, seed=1))


def test_other_examples_are_refused_and_a_branch_takes_them(tmp_path) -> None:
    config = toy_sft(tmp_path)
    run(replace(config, num_steps=2))
    write(tmp_path / "sums.jsonl", sums(50))
    with pytest.raises((CheckpointError, RunDirError), match="training examples are not those"):
        run(config)
    branched = run(replace(config, branch=str(tmp_path / "other") + "@2"))
    assert [row["step"] for row in rows(branched)] == [2, 3, 4]


def test_updates_are_counted_from_the_epochs(tmp_path) -> None:
    config = toy_sft(tmp_path, num_steps=0, epochs=0.25, evaluation=HeldOutConfig(every=0))
    folder = run(config)
    assert len(rows(folder)) == 4  # a quarter of 54 examples, 4 an update
    assert json.loads((folder / "config.json").read_text())["num_steps"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoraConfig(rank=2, variant="pissa")},
        {"lora": LoraConfig(rank=8, layers="attention", variant="rslora")},
        {"lora": LoraConfig(), "method": "full", "checkpoint": CheckpointConfig(every=2, keep_last=9)},
        {"batch": BatchConfig(tokens_per_row=128, recompute=True)},
        {"memory_budget": 1.0},
    ],
    ids=["pissa", "rslora", "full", "recompute", "budget"],
)
def test_other_policies_learn_too_and_go_on(tmp_path, options) -> None:
    rate = 1e-4 if options.get("method") == "full" else 1e-3
    config = toy_sft(tmp_path, num_steps=4, optimizer=OptimizerConfig(learning_rate=rate), **options)
    straight = run(config)
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["difference"]["nats"]["mean"] < 0
    halved = replace(config, run_dir=str(tmp_path / "halved"))
    run(replace(halved, num_steps=2))
    assert_same(run(halved), straight)


def test_recomputed_layers_move_no_bit(finished, tmp_path) -> None:
    again = run(toy_sft(tmp_path, batch=replace(toy_sft(tmp_path).batch, recompute=True)))
    assert (again / "adapter/adapter_model.safetensors").read_bytes() == (
        finished / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_conversations_are_given_by_a_script(tmp_path, finished) -> None:
    config = toy_sft(tmp_path)
    results = rlora.fine_tune(config, [row["messages"] for row in sums()])
    assert results.summary()["num_examples"] == 6
    assert results.metrics()[-1]["loss/value"] < results.metrics()[0]["loss/value"]
    held_out = rlora.fine_tune(
        replace(config, run_dir=str(tmp_path / "b"), num_steps=1), sums(), test=sums(9, first=70)
    )
    assert held_out.summary()["num_examples"] == 9
    with pytest.raises(DataError, match="test was given without conversations"):
        rlora.fine_tune(config, test=sums())


def test_runs_are_listed_with_their_loss(finished, capsys) -> None:
    state = state_of(finished)
    assert (state.state, state.step, state.accuracy) == ("finished", 5, None)
    main(["runs", str(finished)])
    assert f"{state.loss:.3f} nats" in capsys.readouterr().out


def test_rl_goes_on_from_a_supervised_adapter_of_the_same_rank(finished, tmp_path) -> None:
    arguments = ["train", "arithmetic", "--preset", "toy", "--num-steps", "1", "--evaluation.num-problems", "2"]
    adapter = ["--init-adapter", str(finished / "adapter")]
    main([*arguments, *adapter, "--lora.rank", "2", "--run-dir", str(tmp_path / "rl")])
    assert len(rows(tmp_path / "rl")) == 1
    with pytest.raises(SystemExit):
        main([*arguments, *adapter, "--lora.rank", "1", "--run-dir", str(tmp_path / "rl1")])


def test_another_rank_is_refused_with_the_way_there_and_the_way_works(finished, tmp_path, capsys) -> None:
    arguments = ["train", "arithmetic", "--preset", "toy", "--num-steps", "1", "--evaluation.num-problems", "2"]
    with pytest.raises(SystemExit):
        main([*arguments, "--init-adapter", str(finished / "adapter"), "--run-dir", str(tmp_path / "rl")])
    said = " ".join(capsys.readouterr().err.split())
    assert "has rank 2, the run has 1; pass --lora.rank 2, or merge it into its base" in said
    assert f"rlora export {finished} --merge --to NEW" in said
    assert "--model.name NEW" in said
    merged = tmp_path / "merged"
    main(["export", str(finished), "--merge", "--to", str(merged)])
    assert "nats a token (KL) from the adapter" in capsys.readouterr().out
    main([*arguments, "--model.name", str(merged), "--run-dir", str(tmp_path / "rl")])
    assert len(rows(tmp_path / "rl")) == 1
    taught = toy_sft(tmp_path, "again", num_steps=1, model=replace(toy_sft(tmp_path).model, name=str(merged)))
    loss = json.loads((run(taught) / "summary.json").read_text())["base"]["nats"]["mean"]
    summary = json.loads((finished / "summary.json").read_text())
    assert loss == pytest.approx(summary["policy"]["nats"]["mean"], abs=1e-4)


def test_an_adapter_is_exported_with_a_card(finished, tmp_path) -> None:
    main(["export", str(finished), "--to", str(tmp_path / "adapter")])
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "supervised fine-tuning on the assistant's turns of sums.jsonl" in card
    assert "held-out loss of the policy, nats a token" in card
    there = load_file(finished / "adapter" / "adapter_model.safetensors")
    here = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())


def test_a_supervised_run_is_scored_on_a_benchmark(finished, tmp_path, capsys) -> None:
    output = ["--output", str(tmp_path / "eval"), "--preset", "toy", "--samples", "1", "--limit", "4"]
    main(["eval", "--run", str(finished), "--benchmark", "digits", "--temperature", "0", *output])
    assert "digits" in capsys.readouterr().out


def test_check_knows_the_supervised_window(tmp_path) -> None:
    train = ["--train", str(write(tmp_path / "sums.jsonl", sums())), "--preset", "toy"]
    said = " ".join(check_recipe("sft", train))
    assert "54 examples of" in said
    assert "14 updates of 4; 6 examples held out" in said
    assert "15 times full fine-tuning's" in said
    assert "Warning" in " ".join(check_recipe("sft", [*train, "--optimizer.learning-rate", "1"]))


def test_a_sweep_refuses_a_supervised_recipe() -> None:
    with pytest.raises(ConfigError, match="sft is a recipe of supervised training, which runs alone: rlora train sft"):
        find_recipe("sft")


@pytest.mark.parametrize(
    ("rows_", "message"),
    [
        ([{"text": "a"}] * 20, "none of the 20 conversations of .* can be used. 20 without messages: .*only text"),
        (
            [{"messages": [{"role": "assistant", "content": "a"}]}] * 20,
            "20 with roles in odd order: .*first it must be system or user",
        ),
        (sums(5), "5 examples of bad are too few to hold out a tenth of them"),
        (sums(1) * 20, "all examples of bad are also in the test"),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_error_before_anything_loads(tmp_path, rows_, message) -> None:
    data = ConversationsConfig(train=str(write(tmp_path / "bad.jsonl", rows_)))
    with pytest.raises(DataError, match=message):
        run(toy_sft(tmp_path, data=data))
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_or_cut_is_said(tmp_path, capsys) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    long = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 400}]}
    data = ConversationsConfig(train=str(write(tmp_path / "mixed.jsonl", [*sums(30), bad, long])))
    run(toy_sft(tmp_path, data=data, num_steps=1))
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert "mixed: 1 of 32 conversations are left out: 1 with an empty assistant's turn" in text
    assert "mixed: 1 examples were cut to 256 tokens" in text


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0.0}, "epochs is 0.0; it must be above 0"),
        ({"examples_per_step": 0}, "examples_per_step at least 1"),
        ({"max_tokens": 1}, "max_tokens is 1; it must be at least 2"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"memory_budget": -1.0}, "memory_budget is -1.0; it must be above 0 GiB"),
        ({"optimizer": OptimizerConfig(updates_per_batch=2)}, "updates_per_batch is for sampled batches"),
        ({"batch": BatchConfig(mask_truncated=True)}, "mask_truncated is for completions"),
        ({"init_adapter": "a", "lora": LoraConfig(variant="pissa")}, "leave --init-adapter out"),
        ({"method": "full", "lora": LoraConfig(rank=2)}, "leave the --lora options out"),
        ({"method": "full", "init_adapter": "a"}, "rlora export --merge"),
        ({"method": "full", "optimizer": OptimizerConfig(b_rate_ratio=2)}, "leave --optimizer.b-rate-ratio out"),
        ({"evaluation": HeldOutConfig(every=-1)}, "evaluation.every"),
        ({"data": ConversationsConfig(name="tulu")}, "'tulu' is unknown; it must be one of tulu3, open"),
        ({"data": ConversationsConfig(test="a.jsonl")}, "test is given without train"),
        ({"data": ConversationsConfig(train="none.jsonl")}, "train is 'none.jsonl', which is not a file"),
        ({"data": ConversationsConfig(limit=-1)}, "limit is -1"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SupervisedConfig(run_dir="x", **options).check()


@pytest.mark.unit
def test_a_schedule_that_ends_before_the_run_is_refused() -> None:
    config = SupervisedConfig(run_dir="x", optimizer=OptimizerConfig(schedule="cosine"))
    with pytest.raises(ConfigError, match=r"cosine over 100 updates, and the run has 313: .*schedule-steps 313"):
        config.with_updates(10_000)
    assert config.with_updates(1_000).num_steps == 32


def test_an_example_longer_than_the_models_positions_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="--max-tokens is 4096, and the model has 512 positions"):
        run(toy_sft(tmp_path, max_tokens=4096))


def test_an_adapter_of_another_rank_does_not_start_supervised_training_either(finished, tmp_path) -> None:
    config = toy_sft(tmp_path, init_adapter=str(finished / "adapter"), lora=LoraConfig(rank=4))
    with pytest.raises(AdapterError, match="has rank 2, the run has 4"):
        run(config)
    start = run(replace(config, lora=LoraConfig(rank=2), num_steps=1))
    summary = json.loads((finished / "summary.json").read_text())
    assert rows(start)[0]["evaluation/loss"] == pytest.approx(summary["policy"]["nats"]["mean"], abs=1e-6)


def test_rl_trains_on_conversations_and_keeps_them_with_the_rollouts(tmp_path) -> None:
    rows_ = [
        {"messages": [{"role": "system", "content": "short"}, *row["messages"], {"role": "user", "content": "1?"}]}
        for row in sums(12)
    ]
    train = write(tmp_path / "own.jsonl", [{**row, "answer": "1"} for row in rows_])
    test = write(tmp_path / "test.jsonl", [{"question": "2?", "answer": "2"}])
    arguments = ["train", "arithmetic", "--preset", "toy", "--num-steps", "1", "--evaluation.num-problems", "1"]
    files = ["--train", str(train), "--test", str(test), "--reward", "number"]
    main([*arguments, *files, "--run-dir", str(tmp_path / "rl"), "--sampler.max-prompt-tokens", "200"])
    rollout = rlora.Results(tmp_path / "rl").rollouts()[0]
    assert rollout["question"] == "1?"
    assert [message["role"] for message in rollout["messages"]] == ["system", "user", "assistant", "user"]
    main(["export", str(tmp_path / "rl"), "--merge", "--to", str(tmp_path / "merged")])

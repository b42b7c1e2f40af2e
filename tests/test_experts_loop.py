"""Mixtures of experts through the whole loop with the torch sampler: reward, agreement, resume, export, refusals."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from support.mixtures import CLASSES, NUM_ACTIVE, make_mixture
from support.runs import rows, stopped, toy, without_clock

from rlora.commands.cli import main
from rlora.errors import ConfigError
from rlora.evaluation.config import PRESETS
from rlora.evaluation.held_out import EvaluationConfig
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.peft.foreign import padded_tensors, stored_shape
from rlora.model.sources import ModelConfig
from rlora.sampler.base import SamplerConfig, is_vllm_installed
from rlora.train.policy import Policy
from rlora.train.trainer import OptimizerConfig

pytestmark = pytest.mark.loop
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module", params=CLASSES)
def mixture(request, tmp_path_factory):
    return make_mixture(tmp_path_factory.mktemp("mixture") / request.param, request.param)


def of(folder, run_dir, **changes):
    """Return the toy run on a mixture, its adapters of rank 4, and so 2 an expert."""
    fields = {"lora": LoraConfig(rank=4), "samples_per_problem": 64, **changes}
    return toy(run_dir, model=ModelConfig(name=str(folder), dtype="float32"), **fields)


@pytest.fixture(scope="module")
def finished(mixture, tmp_path_factory):
    """A run of four steps."""
    return run(of(mixture, tmp_path_factory.mktemp("experts") / "run"))


def test_trainer_and_sampler_agree_at_every_step(finished) -> None:
    trained = [row for row in rows(finished) if not row["optimizer/is_empty_batch"]]
    assert len(trained) >= 2
    for row in trained:
        assert row["agreement/mean_abs_logprob_difference"] <= 1e-4
        assert row["agreement/kl_k3"] <= 1e-6
    stored = load_file(finished / ADAPTER)
    moved = [name for name, tensor in stored.items() if ".experts." in name and "lora_B" in name and tensor.any()]
    assert len(moved) >= 12  # the toy's few characters reach some experts of each layer only


def test_a_stopped_run_goes_on_to_the_same_bytes(mixture, finished, tmp_path) -> None:
    config = of(mixture, tmp_path / "run")
    stopped(config, after=2)
    again = run(config)
    assert [without_clock(row) for row in rows(again)] == [without_clock(row) for row in rows(finished)]
    for name in (ADAPTER, "adapter/adapter_config.json", "rollouts/step-000003.jsonl"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


@torch.no_grad()
def test_the_export_reads_back_equal_and_merges(mixture, finished, tmp_path) -> None:
    main(["export", str(finished), "--to", str(tmp_path / "adapter")])
    assert (tmp_path / ADAPTER).read_bytes() == (finished / ADAPTER).read_bytes()
    config, base = stored_shape(tmp_path / "adapter")
    assert (config, base) == (LoraConfig(rank=4), str(mixture))
    policy = Policy.load(mixture, ModelConfig(name="m", dtype="float32"), config, seed=0)
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    policy.flat.assign(padded_tensors(tmp_path / "adapter", config, shapes))
    main(["export", str(finished), "--to", str(tmp_path / "merged"), "--merge"])
    merged = Policy.load(tmp_path / "merged", ModelConfig(name="m", dtype="float32"), config, seed=1)
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert float((policy.next_token_logits(tokens) - merged.next_token_logits(tokens)).abs().max()) < 1e-4
    with policy.adapter_off():
        assert float((policy.next_token_logits(tokens) - merged.next_token_logits(tokens)).abs().max()) > 1e-3


def test_reward_rises_with_experts_alone(mixture, tmp_path) -> None:
    run_dir = run(
        of(
            mixture,
            tmp_path / "run",
            num_steps=30,
            problems_per_step=8,
            lora=LoraConfig(rank=NUM_ACTIVE, layers="experts"),
            optimizer=OptimizerConfig(learning_rate=3e-3),
            evaluation=EvaluationConfig(num_problems=4),
        )
    )
    rewards = [row["reward/mean"] for row in rows(run_dir)]
    assert sum(rewards[-10:]) > 2 * sum(rewards[:10])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=3), "lora.rank is 3, .* 2 experts: each would get 1.5. Try --lora.rank 2 or 4"),
        (LoraConfig(layers="unembedding+mpl"), "lora.layers is 'unembedding\\+mpl'"),
    ],
)
def test_a_rank_or_layers_that_do_not_fit_leave_no_directory_behind(mixture, tmp_path, lora, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(of(mixture, tmp_path / "run", lora=lora))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not is_vllm_installed() or torch.cuda.is_available(), reason="needs vLLM without a GPU")
@pytest.mark.parametrize("kind", ["vllm", "auto"])
def test_vllm_on_a_cpu_is_refused_before_anything_loads(mixture, finished, tmp_path, kind) -> None:
    def fail(_spec):
        raise AssertionError

    config = of(mixture, tmp_path / "run", sampler=SamplerConfig(kind=kind, max_prompt_tokens=64))
    with pytest.raises(ConfigError, match=r"cannot serve adapters of experts. Take --sampler.kind torch, .* attention"):
        run(config, make_sampler=fail)
    assert not (tmp_path / "run").exists()
    attention = dataclasses.replace(config, lora=LoraConfig(rank=4, layers="attention"))
    with pytest.raises(AssertionError):
        run(attention, make_sampler=fail)
    subject = dataclasses.replace(PRESETS["toy"], output=str(tmp_path / "eval"), run=str(finished), model=None)
    with pytest.raises(ConfigError, match="cannot serve adapters of experts"):
        evaluate_benchmarks(dataclasses.replace(subject, sampler=dataclasses.replace(subject.sampler, kind=kind)))


def test_the_summary_counts_every_experts_numbers(finished) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["num_parameters"] == sum(tensor.numel() for tensor in load_file(finished / ADAPTER).values())

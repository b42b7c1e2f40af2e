"""Runs of the toy with every kind of adapter: trained, proven, resumed, exported, merged and scored."""

import pytest
import torch
from safetensors.torch import load_file
from support.policies import TOY_MODEL
from support.runs import SIZE, assert_same_run, rows, stopped, toy

from rlora.commands.cli import main
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.peft.foreign import padded_tensors, stored_shape
from rlora.model.sources import ModelConfig, model_dir
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy

pytestmark = pytest.mark.loop

ADAPTERS = {
    "rank 32": {"lora": LoraConfig(rank=32)},
    "rank 512": {"lora": LoraConfig(rank=512)},
    "LoRA+": {"optimizer": OptimizerConfig(learning_rate=1e-3, b_rate_ratio=16.0)},
    "rsLoRA": {"lora": LoraConfig(rank=8, alpha=8, variant="rslora")},
    "PiSSA": {"lora": LoraConfig(rank=2, variant="pissa", layers="all+unembedding")},
    "unembedding": {"lora": LoraConfig(rank=2, layers="all+unembedding")},
    "unembedding alone": {"lora": LoraConfig(rank=8, layers="unembedding")},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_run_agrees_with_its_sampler_and_resumes_exactly(name, tmp_path) -> None:
    options = {**SIZE, "num_steps": 3, "optimizer": OptimizerConfig(learning_rate=3e-3), **ADAPTERS[name]}
    straight = run(toy(tmp_path / "straight", **options))
    for row in rows(straight):
        assert not row["optimizer/is_empty_batch"]
        assert row["agreement/mean_abs_logprob_difference"] <= 1e-4
    assert rows(straight)[-1]["proof/canary_is_decided_base"] == 1  # the update moved what is sampled
    stopped(toy(tmp_path / "run", **options), after=2)
    run(toy(tmp_path / "run", **options))
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_policy_of_a_run_is_exported_merged_and_scored(name, tmp_path, capsys) -> None:
    options = {**SIZE, "num_steps": 2, "optimizer": OptimizerConfig(learning_rate=1e-2), **ADAPTERS[name]}
    run_dir = run(toy(tmp_path / "run", **options))
    main(["export", str(run_dir), "--to", str(tmp_path / "adapter")])
    newest = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    exported = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert exported.keys() == newest.keys()
    assert all(torch.equal(tensor, newest[key]) for key, tensor in exported.items())

    main(["export", str(run_dir), "--to", str(tmp_path / "merged"), "--merge"])
    config, _ = stored_shape(tmp_path / "adapter")
    folder = model_dir(TOY_MODEL)
    policy = Policy.load(folder, TOY_MODEL, config, seed=0)
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    policy.flat.assign(padded_tensors(tmp_path / "adapter", config, shapes))
    merged = Policy.load(tmp_path / "merged", ModelConfig(dtype="float32"), LoraConfig(), seed=0)
    base = Policy.load(folder, TOY_MODEL, LoraConfig(), seed=0)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [one.next_token_logits(tokens) for one in (policy, merged, base)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert float((logits[0] - logits[2]).abs().max()) > 1e-3

    capsys.readouterr()
    main(["eval", "--preset", "toy", "--run", str(run_dir), "--limit", "2", "--samples", "2"])
    assert "version 2 on toy" in capsys.readouterr().out

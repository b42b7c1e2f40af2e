"""Every linear layer of a block is adapted, whatever it is called, and what is not is named; no update is said too."""

import dataclasses

import pytest
import torch
import transformers
from support.outside import config_of, jsonl

from rlora.errors import ConfigError
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.inject import adapter_shapes, left_out

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WITH_MLP = {**SMALL, "intermediate_size": 64}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 2}


def empty(kind: str, **fields):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**fields))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("kind", "fields", "mlp"),
    [
        ("OPT", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, {"fc1", "fc2"}),
        ("OPT", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16}, {"fc1", "fc2"}),
        ("Llama", WITH_MLP, {"gate_proj", "up_proj", "down_proj"}),
        ("Phi", WITH_MLP, {"fc1", "fc2"}),
        ("GPTNeoX", WITH_MLP, {"dense_h_to_4h", "dense_4h_to_h"}),
        ("Bloom", BLOOM, {"dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_layers_of_a_block_are_adapted_whatever_they_are_called(kind, fields, mlp) -> None:
    model = empty(kind, **fields)

    def adapted(layers: str) -> set[str]:
        return {name.rpartition(".lora_")[0] for name in adapter_shapes(model, LoraConfig(layers=layers))}

    assert {name.rpartition(".")[2] for name in adapted("mlp")} == mlp
    assert adapted("all") == adapted("mlp") | adapted("attention")
    in_blocks = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".0." in f".{name}."
    }
    assert adapted("all") == in_blocks
    beside = {"decoder.project_in", "decoder.project_out"} if fields.get("word_embed_proj_dim") == 16 else set()
    assert set(left_out(model, "all")) == beside
    assert left_out(model, "attention") == []


@pytest.mark.unit
def test_matrices_that_are_no_linear_layers_are_named() -> None:
    with pytest.raises(ConfigError, match=r"has no linear layers .* matrices in its blocks are of Conv1D"):
        adapter_shapes(empty("GPT2", vocab_size=64, n_embd=32, n_layer=1, n_head=2), LoraConfig())


@pytest.mark.loop
def test_a_run_without_an_update_says_so_with_the_verdicts(tmp_path, capfd) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": "see the solution below"} for n in range(20)]
    config = config_of(tmp_path / "run", train=jsonl(tmp_path / "t.jsonl", rows), num_steps=6, problems_per_step=2)
    run(dataclasses.replace(config, samples_per_problem=4))
    said = capfd.readouterr().err
    assert "Warning: 0 of 5 updates were made: no group had rewards that differ, so nothing was trained." in said
    assert "Warning: 0 of 6 updates were made" in said
    assert "Of 48 completions: " in said
    assert " % no_answer" in said

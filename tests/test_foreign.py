"""Adapters from elsewhere: of some layers only, with other scalings, and of kinds that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policies import make_policy

from rlora.errors import AdapterError
from rlora.lora.config import LoraConfig
from rlora.lora.peft.foreign import padded_tensors, stored_shape
from rlora.lora.peft.peft_format import check_adapter, load_adapter_tensors, save_adapter

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(toy_policy, tmp_path) -> Path:
    save_adapter(toy_policy.snapshot(), tmp_path)
    return tmp_path


def change(folder: Path, **fields) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shapes(policy) -> dict[str, tuple[int, ...]]:
    return {slot.name: slot.shape for slot in policy.flat.slots}


def test_rank_scale_and_base_are_read(folder) -> None:
    assert stored_shape(folder) == (LoraConfig(rank=2), "toy")
    change(folder, use_rslora=True, lora_alpha=8)
    config, _ = stored_shape(folder)
    assert config == LoraConfig(rank=2, alpha=8, variant="rslora")
    assert config.scale == pytest.approx(8 / 2**0.5)
    assert config.effective_alpha == pytest.approx(8 * 2**0.5)


def test_an_adapter_of_some_layers_is_filled_up_with_zeros(folder, toy_policy, toy_dir) -> None:
    stored = load_file(folder / "adapter_model.safetensors")
    some = {name: tensor for name, tensor in stored.items() if ".q_proj." in name}
    save_file(some, folder / "adapter_model.safetensors")
    config, _ = stored_shape(folder)
    tensors = padded_tensors(folder, config, shapes(toy_policy))
    assert tensors.keys() == shapes(toy_policy).keys()
    for name, tensor in tensors.items():
        expected = toy_policy.snapshot().tensors[name] if ".q_proj." in name else torch.zeros_like(tensor)
        assert torch.equal(tensor, expected), name
    other = make_policy(toy_dir, seed=3)
    other.flat.assign(tensors)
    with torch.no_grad():
        tokens = torch.tensor([[5, 6, 7]])
        assert not torch.equal(other.next_token_logits(tokens), toy_policy.next_token_logits(tokens))


def test_a_tensor_without_a_place_is_refused(folder, toy_policy) -> None:
    stored = load_file(folder / "adapter_model.safetensors")
    stored["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 64)
    save_file(stored, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"has 1 tensors the policy lacks, first lm_head\.lora_A"):
        padded_tensors(folder, LoraConfig(rank=2), shapes(toy_policy))
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(AdapterError, match="cannot be read"):
        padded_tensors(folder, LoraConfig(rank=2), shapes(toy_policy))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern={'q_proj': 4}; only one rank and scale for all is read"),
        ({"alpha_pattern": {"q_proj": 4}}, "has alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"bias": "all"}, r"trains biases \(bias='all'\)"),
        ({"use_dora": True}, "is not a plain LoRA adapter"),
        ({"r": None}, "has r=None and lora_alpha=.*; both must be numbers above 0"),
        ({"r": 0}, "has r=0"),
        ({"r": "1"}, "has r='1'"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"r": 10**9}, "r=1000000000 and lora_alpha=.*; both must be numbers above 0, and at most"),
        ({"r": 3}, "has r=3, and adapter_model.safetensors holds factors of rank"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"rank_pattern": {"([a-z.0-9_]+)*!": 3}}, "has rank_pattern=.*; only one rank and scale for all is read"),
        ({"rank_pattern": {"q": "2"}}, "its ranks must be numbers"),
        ({"lora_bias": True}, "has lora_bias=true, which is not read"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out=true"),
        ({"init_lora_weights": "lora_ga"}, "was started by init_lora_weights='lora_ga', which is not known to leave"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "a_later_kind"}, "init_lora_weights='a_later_kind'"),
        ({"init_lora_weights": 1}, "init_lora_weights=1"),
        ({"use_qalora": True}, "has use_qalora=True, which is not known to be plain LoRA"),
        ({"alora_invocation_tokens": [1, 2]}, r"has alora_invocation_tokens=\[1, 2\], which is not known"),
        ({"kasa_config": {"x": 1}}, "has kasa_config"),
        ({"layer_replication": [[0, 2]], "a_later_field": "x"}, "has a_later_field='x', layer_replication="),
    ],
)
def test_kinds_that_are_not_served_are_refused(folder, fields, message) -> None:
    change(folder, **fields)
    with pytest.raises(AdapterError, match=message):
        stored_shape(folder)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_as_it_was_are_read(folder, start) -> None:
    change(folder, init_lora_weights=start, qalora_group_size=16, megatron_core="megatron.core", a_later_field=None)
    assert stored_shape(folder)[0] == LoraConfig(rank=2)


def test_numbers_that_are_not_finite_are_refused_with_their_tensor(folder, toy_policy) -> None:
    stored = load_file(folder / "adapter_model.safetensors")
    name = sorted(stored)[3]
    stored[name][0, 0] = float("nan")
    save_file(stored, folder / "adapter_model.safetensors")
    for read in (padded_tensors, load_adapter_tensors):
        with pytest.raises(AdapterError, match=r"layers\.0\..*lora_B holds numbers that are not finite"):
            read(folder, LoraConfig(rank=2), shapes(toy_policy))


@pytest.mark.parametrize("text", ["{ broken", "[]", '{"peft_type": "LORA", "lora_alpha": 32}'])
def test_what_is_no_configuration_is_refused(folder, text) -> None:
    (folder / "adapter_config.json").write_text(text)
    for read in (stored_shape, lambda folder: check_adapter(folder, LoraConfig(rank=2))):
        with pytest.raises(AdapterError, match=r"is not JSON|is not a configuration|has r=None"):
            read(folder)


def test_a_folder_without_an_adapter_is_refused(tmp_path) -> None:
    with pytest.raises(AdapterError, match=r"holds no adapter_config.json"):
        stored_shape(tmp_path)

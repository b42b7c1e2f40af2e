"""Adapters of experts in files: PEFT, reading back, the merge; vLLM's own reader."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.mixtures import CLASSES, as_linear, make_mixture
from support.policies import make_policy
from support.rollouts import completion, group

from rlora.errors import AdapterError
from rlora.lora.config import LoraConfig
from rlora.lora.flat import FlatVector
from rlora.lora.peft.foreign import padded_tensors, stored_shape
from rlora.lora.peft.peft_format import load_adapter_tensors, save_adapter
from rlora.model.sources import ModelConfig
from rlora.sampler.base import is_vllm_installed
from rlora.store.merge import save_merged
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.policy import Policy

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore::DeprecationWarning:peft")]
TOKENS = [3, 14, 15, 9, 26, 5, 35, 8, 9]


@pytest.fixture(scope="module", params=CLASSES)
def mixture(request, tmp_path_factory):
    return make_mixture(tmp_path_factory.mktemp("mixture") / request.param, request.param)


def score(policy: Policy) -> torch.Tensor:
    (part,) = build_batch(
        [group(TOKENS[:3], [completion(TOKENS[3:])], [1.0])], [[1.0]], BatchConfig(), version=0
    ).micro_batches
    return policy.score(part).logprobs_N


def reference(model) -> torch.Tensor:
    log_p = model(torch.tensor([TOKENS])).logits[0, 2:-1].log_softmax(-1)
    return log_p[torch.arange(len(TOKENS) - 3), torch.tensor(TOKENS[3:])]


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # PEFT's own, of its layers of one shape
def test_peft_fuses_what_is_saved_and_gives_the_same(mixture, tmp_path, rank) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = make_policy(mixture, lora=LoraConfig(rank=rank))
    save_adapter(policy.snapshot(), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    with torch.no_grad():
        plain, ours = reference(base), score(policy)
        theirs = reference(PeftModel.from_pretrained(base, tmp_path))
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float((plain - theirs).abs().max()) > 1e-2


@pytest.mark.parametrize("rank", [1, 4])
def test_values_and_gradients_are_those_of_peft_on_experts_taken_apart(mixture, tmp_path, rank) -> None:
    """Where experts are linear layers of their own, PEFT adapts them one by one and gives each factor's gradient."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = make_policy(mixture, lora=LoraConfig(rank=rank))
    save_adapter(policy.snapshot(), tmp_path)
    apart = as_linear(AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32))
    loaded = PeftModel.from_pretrained(apart, tmp_path, is_trainable=True)
    ours, theirs = score(policy), reference(loaded)
    assert float((ours - theirs).detach().abs().max()) < 1e-5
    ours.sum().backward()
    theirs.sum().backward()
    gradients = {slot.name: FlatVector.view(policy.flat.grad_D, slot) for slot in policy.flat.slots}
    checked = 0
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            own = gradients[name.removeprefix("base_model.model.").removesuffix(".default.weight")]
            grad = torch.zeros_like(own) if parameter.grad is None else parameter.grad
            assert torch.allclose(own, grad, rtol=1e-4, atol=1e-5), name
            checked += 1
    assert checked == len(gradients)


def test_saved_and_loaded_tensors_are_the_same_bits(mixture, tmp_path) -> None:
    policy = make_policy(mixture, lora=LoraConfig(rank=4))
    adapter = policy.snapshot()
    save_adapter(adapter, tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.mlp.experts.7.gate_proj.lora_A.weight" in keys
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    config, _ = stored_shape(tmp_path)
    assert config == LoraConfig(rank=4)
    for loaded in (load_adapter_tensors(tmp_path, config, shapes), padded_tensors(tmp_path, config, shapes)):
        assert loaded.keys() == adapter.tensors.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in adapter.tensors.items())


def test_an_adapter_of_attention_alone_asks_for_no_experts(mixture, tmp_path) -> None:
    save_adapter(make_policy(mixture, lora=LoraConfig(rank=3, layers="attention")).snapshot(), tmp_path)
    config, _ = stored_shape(tmp_path)
    assert config == LoraConfig(rank=3, layers="attention")


def test_pefts_fused_experts_are_refused(mixture, tmp_path) -> None:
    save_adapter(make_policy(mixture).snapshot(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": ["mlp.experts.down_proj"]}))
    with pytest.raises(AdapterError, match=r"adapts fused experts \(target_parameters\)"):
        stored_shape(tmp_path)


def test_an_expert_of_another_rank_is_refused(mixture, tmp_path) -> None:
    policy = make_policy(mixture, lora=LoraConfig(rank=4))
    save_adapter(policy.snapshot(), tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = "model.layers.0.mlp.experts.1.up_proj.lora_A"
    stored[f"base_model.model.{name}.weight"] = torch.zeros(4, 64)
    save_file(stored, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"has rank_pattern=.*; only one rank and scale for all is read"):
        load_adapter_tensors(tmp_path, policy.config, {slot.name: slot.shape for slot in policy.flat.slots})


@torch.no_grad()
def test_the_merged_model_computes_the_same(mixture, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    policy, model = make_policy(mixture, lora=LoraConfig(rank=4)), ModelConfig(name="m", dtype="float32")
    save_merged(mixture, model, policy.config, policy.snapshot().tensors, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    assert float((score(policy) - reference(merged)).abs().max()) < 1e-5
    assert float((score(policy) - reference(base)).abs().max()) > 1e-2


def test_an_adapter_of_experts_alone_states_the_rank_that_they_share(mixture, tmp_path) -> None:
    policy = make_policy(mixture, lora=LoraConfig(rank=4, layers="experts"))
    save_adapter(policy.snapshot(), tmp_path)
    config, _ = stored_shape(tmp_path)
    assert config == LoraConfig(rank=4)
    load_adapter_tensors(tmp_path, policy.config, {slot.name: slot.shape for slot in policy.flat.slots})
    with pytest.raises(AdapterError, match=r"has rank 4, the run has 6; pass --lora.rank 4"):
        load_adapter_tensors(tmp_path, LoraConfig(rank=6), {})
    save_file(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="does not state the total rank that they share"):
        stored_shape(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": {"experts.1.up_proj": 8}}, r"has rank_pattern=.*; only one rank and scale for all is read"),
        ({"alpha_pattern": {"experts.1.up_proj": 8}}, r"has alpha_pattern=.*; only one"),
        ({"use_rslora": True, "lora_alpha": 16}, "scales experts of rank 2 by rsLoRA's rule, which is not read"),
    ],
)
def test_ranks_and_scales_that_differ_between_layers_are_refused(mixture, tmp_path, change, message) -> None:
    policy = make_policy(mixture, lora=LoraConfig(rank=4))
    save_adapter(policy.snapshot(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        load_adapter_tensors(tmp_path, policy.config, {slot.name: slot.shape for slot in policy.flat.slots})


@pytest.mark.vllm
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")  # of vLLM and what it imports
@pytest.mark.parametrize("layers", ["all", "experts"])
def test_vllms_own_reader_takes_the_files_and_stacks_the_experts(mixture, tmp_path, layers) -> None:
    """What vLLM does with an adapter's folder before its kernel; the kernel needs a GPU (test_gpu.py)."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import PackedLoRALayerWeights
    from vllm.lora.peft_helper import PEFTHelper

    policy = make_policy(mixture, lora=LoraConfig(rank=4, layers=layers))
    save_adapter(policy.snapshot(), tmp_path)
    names = [f"experts.{expert}.{name}" for expert in range(8) for name in ("gate_proj", "down_proj", "up_proj")]
    helper = PEFTHelper.from_local_dir(str(tmp_path), None)
    loaded = LoRAModel.from_local_checkpoint(
        str(tmp_path),
        {*names, "experts", "q_proj", "k_proj", "v_proj", "o_proj"},
        helper,
        lora_model_id=1,
        device="cpu",
    )
    prefix = "model.layers.1.mlp"
    packed = PackedLoRALayerWeights.pack_moe([loaded.loras[f"{prefix}.{name}"] for name in names], f"{prefix}.experts")
    packed.optimize()
    for index, projection in enumerate(("gate_proj", "down_proj", "up_proj")):  # w1, w2, w3
        a_ERI, b_EOR = (policy.flat.parameters[f"{prefix}.experts.{projection}.lora_{factor}"] for factor in "AB")
        assert torch.equal(packed.lora_a[index], a_ERI)
        assert torch.allclose(packed.lora_b[index], b_EOR * 32 / 2)
    if layers == "all":
        assert loaded.loras["model.layers.0.self_attn.q_proj"].scaling == 32 / 4

"""PEFT in and out: PEFT reads what is written here and computes the same, and the other way round."""

import json

import pytest
import torch
from support.policies import TOY_MODEL, make_policy
from support.rollouts import completion, group

from rlora.errors import AdapterError
from rlora.lora.config import LoraConfig
from rlora.lora.peft.foreign import stored_shape
from rlora.lora.peft.peft_format import check_adapter, load_adapter_tensors, save_adapter
from rlora.sampler.base import is_vllm_installed
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.policy import Policy

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore::DeprecationWarning:peft")]


def logprobs(policy: Policy, tokens: list[int]) -> torch.Tensor:
    (part,) = build_batch(
        [group(tokens[:3], [completion(tokens[3:])], [1.0])], [[1.0]], BatchConfig(), version=0
    ).micro_batches
    with torch.no_grad():
        return policy.score(part).logprobs_N


def our_name(name: str) -> str:
    """Return rlora's name of a parameter of a PEFT model."""
    return name.removeprefix("base_model.model.").replace(".default.weight", "")


def reference(model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        log_p = model(torch.tensor([tokens])).logits[0, 2:-1].log_softmax(-1)
    return log_p[torch.arange(len(tokens) - 3), torch.tensor(tokens[3:])]


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(),
        LoraConfig(rank=2),
        LoraConfig(rank=3, alpha=8),
        LoraConfig(rank=8),
        LoraConfig(rank=32),
        LoraConfig(rank=512),  # more than the layers have inputs: no larger set of functions, and no error
        LoraConfig(rank=2, layers="attention"),
        LoraConfig(rank=2, layers="all+unembedding"),
        LoraConfig(rank=3, variant="rslora"),
        LoraConfig(rank=2, variant="pissa", layers="all+unembedding"),
        LoraConfig(rank=3, alpha=1, variant="pissa"),
    ],
    ids=lambda lora: f"{lora.rank}-{lora.layers}-{lora.variant}",
)
def test_peft_loads_what_is_saved_and_gives_the_same(toy_dir, tmp_path, lora) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = make_policy(toy_dir, lora=lora)
    save_adapter(policy.snapshot(), tmp_path)
    assert stored_shape(tmp_path)[0] == lora.served
    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    tokens = [3, 14, 15, 9, 26, 5, 35, 8, 9]
    plain = reference(base, tokens)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert (
        sum(parameter.numel() for name, parameter in loaded.named_parameters() if "lora" in name)
        == policy.flat.theta_D.numel() * lora.served.rank // lora.rank
    )
    difference = logprobs(policy, tokens) - reference(loaded, tokens)
    assert float(difference.abs().max()) < 1e-5
    assert float((plain - reference(loaded, tokens)).abs().max()) > 1e-2


def test_an_adapter_written_by_peft_starts_a_policy(toy_dir, tmp_path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    model = get_peft_model(base, PeftConfig(r=2, lora_alpha=32, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(rank=2), seed=0, init_adapter=tmp_path)
    tokens = [3, 14, 15, 9, 26, 5, 35, 8, 9]
    difference = logprobs(policy, tokens) - reference(model.eval(), tokens)
    assert float(difference.abs().max()) < 5e-5  # PEFT's random B is large, and so are the updates' rounding errors


def test_saved_and_loaded_tensors_are_the_same_bits(toy_dir, tmp_path) -> None:
    policy = make_policy(toy_dir)
    adapter = policy.snapshot()
    save_adapter(adapter, tmp_path)
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    loaded = load_adapter_tensors(tmp_path, policy.config, shapes)
    assert loaded.keys() == adapter.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapter.tensors.items())


def edit(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit(folder, r=4), "has r=4, and adapter_model.safetensors holds factors of rank 2"),
        (lambda folder: edit(folder, lora_alpha=8), r"scales by 4.0, the run by 16.0; pass --lora.alpha 8"),
        (lambda folder: edit(folder, use_dora=True), "not a plain LoRA adapter"),
        (
            lambda folder: edit(folder, init_lora_weights="pissa_niter_4"),
            "by init_lora_weights='pissa_niter_4'",
        ),
        (lambda folder: edit(folder, peft_type="IA3"), "not a plain LoRA adapter"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            "holds no adapter_model.safetensors; only safetensors is read",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40), "cannot be read"),
    ],
)
def test_damaged_or_unfit_adapters_are_refused(toy_dir, tmp_path, damage, message) -> None:
    policy = make_policy(toy_dir)
    save_adapter(policy.snapshot(), tmp_path)
    damage(tmp_path)
    with pytest.raises(AdapterError, match=message):
        load_adapter_tensors(tmp_path, policy.config, {slot.name: slot.shape for slot in policy.flat.slots})


def test_adapters_of_other_layers_or_shapes_are_refused(toy_dir, tmp_path) -> None:
    attention = make_policy(toy_dir, lora=LoraConfig(rank=2, layers="attention"))
    every = make_policy(toy_dir)
    shapes = {slot.name: slot.shape for slot in every.flat.slots}
    save_adapter(attention.snapshot(), tmp_path)
    with pytest.raises(AdapterError, match=r"lacks 12 tensors of the policy, first model.layers.0.mlp"):
        load_adapter_tensors(tmp_path, every.config, shapes)
    save_adapter(every.snapshot(), tmp_path)
    with pytest.raises(AdapterError, match="has 12 tensors the policy lacks"):
        load_adapter_tensors(tmp_path, every.config, {slot.name: slot.shape for slot in attention.flat.slots})
    shapes["model.layers.0.mlp.up_proj.lora_A"] = (2, 65)
    with pytest.raises(AdapterError, match=r"up_proj.lora_A is \(2, 64\), the policy needs \(2, 65\)"):
        load_adapter_tensors(tmp_path, every.config, shapes)


def test_pissa_is_the_function_that_peft_trains_on_the_residual_base(toy_dir, tmp_path) -> None:
    """PEFT replaces the base by W - scale B0 A0; here the base stays, and the difference B A - B0 A0 is served."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(rank=3, alpha=6, variant="pissa"), seed=0)
    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    tokens = [3, 14, 15, 9, 26, 5, 35, 8, 9]
    start = reference(base, tokens)
    assert float((logprobs(policy, tokens) - start).abs().max()) < 1e-5
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, PeftConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights="pissa"))
    theirs = {our_name(name): parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    ours = policy.flat.tensors()
    assert theirs.keys() == ours.keys()
    random = torch.Generator().manual_seed(0)
    for path in {name.rpartition(".")[0] for name in ours}:
        a, b = theirs[f"{path}.lora_A"].data, theirs[f"{path}.lora_B"].data
        torch.testing.assert_close(b @ a, ours[f"{path}.lora_B"] @ ours[f"{path}.lora_A"], rtol=1e-4, atol=1e-5)
        for factor in (a, b):  # one step away from the start, in both
            factor += 0.05 * torch.randn(factor.shape, generator=random)
        ours[f"{path}.lora_A"], ours[f"{path}.lora_B"] = a.clone(), b.clone()
    policy.flat.assign(ours)
    trained = reference(model.eval(), tokens)
    assert float((logprobs(policy, tokens) - trained).abs().max()) < 1e-4
    assert float((trained - start).abs().max()) > 0.1


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
@pytest.mark.parametrize("variant", ["lora", "rslora", "pissa"])
def test_vllm_reads_the_same_rank_and_scale(toy_dir, tmp_path, variant) -> None:
    from vllm.lora.peft_helper import PEFTHelper

    lora = LoraConfig(rank=3, alpha=5.0, variant=variant)
    save_adapter(make_policy(toy_dir, lora=lora).snapshot(), tmp_path)
    read = PEFTHelper.from_local_dir(str(tmp_path), max_position_embeddings=None)
    assert read.r == lora.served.rank
    assert read.vllm_lora_scaling_factor == pytest.approx(lora.scale)


@pytest.mark.parametrize("variant", ["rslora", "lora"])
def test_an_adapter_of_another_scaling_is_refused_with_the_alpha_that_fits(toy_dir, tmp_path, variant) -> None:
    save_adapter(make_policy(toy_dir, lora=LoraConfig(rank=3, variant=variant)).snapshot(), tmp_path)
    other = LoraConfig(rank=3, variant="lora" if variant == "rslora" else "rslora")
    with pytest.raises(AdapterError) as refused:
        check_adapter(tmp_path, other)
    alpha = float(str(refused.value).split("pass --lora.alpha ")[1].rstrip("."))
    assert alpha == pytest.approx(32 * 3**0.5 if variant == "rslora" else 32 / 3**0.5, rel=1e-5)

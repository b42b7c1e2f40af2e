"""One copy of the base: a trainer on views of an engine's weights computes the same bits, or is told why it cannot."""

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import random_b
from support.fused_engines import Layer, change, made_up_engine, put
from support.shared_base import CPU, KINDS, configured, logits_of, storages
from support.training import ADVANTAGES, groups
from torch import nn

from rlora.errors import LayoutError
from rlora.lora.config import LoraConfig
from rlora.model.loading import load_model
from rlora.model.sources import empty_model, make_toy
from rlora.sampler.vllm.shared_base import base_views, check_rows
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    import transformers

    config_class, fields = KINDS[request.param]
    made = tmp_path_factory.mktemp(request.param) / "model"
    make_toy(made, config_class=getattr(transformers, config_class), **fields)
    return made


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A folder whose model has biases on q, k and v."""
    from transformers import Qwen2Config

    made = tmp_path_factory.mktemp("qwen2") / "model"
    make_toy(made, config_class=Qwen2Config)
    return made


def engine_of(folder, config, **options) -> nn.Module:
    return made_up_engine(load_model(folder, config, CPU), **options)


def views_of(engine, folder, config) -> dict[str, torch.Tensor]:
    return base_views(engine, empty_model(folder, config), getattr(torch, config.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("has_adapters", [True, False])
def test_a_model_on_views_gives_the_same_bits(folder, dtype, has_adapters) -> None:
    config = configured(folder, dtype)
    normal = load_model(folder, config, CPU)
    engine = made_up_engine(normal, has_adapters=has_adapters)
    views = views_of(engine, folder, config)
    check_rows(views, folder)
    model = load_model(folder, config, CPU, weights=views)
    assert torch.equal(logits_of(model), logits_of(normal))
    assert type(model) is type(normal)
    assert model.config.to_dict() == normal.config.to_dict()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {name: (b.dtype, b.device) for name, b in model.named_buffers()} == {
        name: (b.dtype, b.device) for name, b in normal.named_buffers()
    }
    for name, buffer in normal.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    stored, found = normal.state_dict(), model.state_dict()
    assert stored.keys() == found.keys()
    assert all(torch.equal(stored[name], found[name]) for name in stored)


def test_views_lie_in_the_engines_storage_and_see_what_is_written_there(folder) -> None:
    config = configured(folder)
    engine = engine_of(folder, config)
    model = load_model(folder, config, CPU, weights=views_of(engine, folder, config))
    assert storages(model) == storages(engine)
    before = logits_of(model)
    fused = engine.get_submodule("model.layers.0.self_attn.qkv_proj.base_layer")
    sizes = [getattr(model.model.layers[0].self_attn, part).weight.shape[0] for part in ("q_proj", "k_proj", "v_proj")]
    for row, part in zip((0, sizes[0], sizes[0] + sizes[1]), ("q_proj", "k_proj", "v_proj"), strict=True):
        fused.weight.data[row, 3] += 1
        assert getattr(model.model.layers[0].self_attn, part).weight[0, 3] == fused.weight[row, 3]
    assert not torch.equal(logits_of(model), before)


def trained(policy: Policy) -> Policy:
    """Return the policy after one update from random B."""
    random_b(policy, scale=0.05)
    trainer = Trainer(policy, OptimizerConfig(), LossConfig())
    trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    return policy


def check_an_update(folder, config, lora: LoraConfig) -> None:
    """Make one update on views and one on a copy, of the same bits; the engine's weights stay as they are."""
    engine = engine_of(folder, config)
    kept = {name: parameter.clone() for name, parameter in engine.named_parameters()}
    normal = trained(Policy.load(folder, config, lora, seed=3, device=CPU))
    views = views_of(engine, folder, config)
    shared = trained(Policy.load(folder, config, lora, seed=3, device=CPU, weights=views))
    assert float(normal.flat.grad_D.abs().sum()) > 0
    assert torch.equal(shared.flat.grad_D, normal.flat.grad_D)
    assert torch.equal(shared.flat.theta_D, normal.flat.theta_D)
    for name, parameter in engine.named_parameters():
        assert torch.equal(parameter, kept[name]), name
        assert not parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_and_updates_on_views_are_the_same_bits_and_leave_the_base_alone(folder, dtype) -> None:
    check_an_update(folder, dataclasses.replace(configured(folder, dtype), compile="off"), LoraConfig())


@pytest.mark.parametrize(
    "lora",
    [LoraConfig(rank=2, variant="pissa"), LoraConfig(layers="all+unembedding"), LoraConfig(rank=8, layers="mlp")],
    ids=["pissa", "unembedding", "rank 8 of mlp"],
)
def test_so_do_other_adapters(qwen2, lora) -> None:
    check_an_update(qwen2, configured(qwen2), lora)


def test_so_do_compiled_kernels(qwen2) -> None:
    check_an_update(qwen2, configured(qwen2, "bfloat16"), LoraConfig())


def setting(path: str, **attributes: Any):
    """Return what sets attributes of a layer of the engine."""
    return lambda engine: vars(engine.get_submodule(path)).update(attributes)


def tied(engine: nn.Module) -> None:
    engine.get_submodule("lm_head").weight = engine.get_submodule("model.embed_tokens").weight


def without_bias(engine: nn.Module) -> None:
    engine.get_submodule(f"{QKV}.base_layer")._parameters["bias"] = None


def without_a_block(engine: nn.Module) -> None:
    engine.get_submodule("model.layers")._modules.pop("1")


def with_a_weight_more(engine: nn.Module) -> None:
    put(engine, "model.layers.0.mlp.gate", Layer(weight=torch.zeros(4, 64)))


def made_in_inference_mode(engine: nn.Module) -> None:
    with torch.inference_mode():
        change(engine, "model.norm", torch.clone)


QKV, EMBEDDING = "model.layers.0.self_attn.qkv_proj", "model.embed_tokens"
GATE_UP, DOWN = "model.layers.0.mlp.gate_up_proj.base_layer", "model.layers.0.mlp.down_proj.base_layer"
FP8 = type("Fp8LinearMethod", (), {})()
REFUSED = {
    "other dtype": (
        lambda engine: change(engine, QKV, torch.Tensor.bfloat16),
        "qkv_proj.weight is in bfloat16, the trainer computes in float32",
    ),
    "quantised": (setting(DOWN, quant_method=FP8), r"layers.0.mlp.down_proj is quantised \(Fp8LinearMethod\)"),
    "several GPUs": (setting(DOWN, tp_size=2), "down_proj is divided among 2 GPUs"),
    "added tokens": (setting(EMBEDDING, num_added_embeddings=3), "embed_tokens has 3 tokens of its own"),
    "other parts": (
        setting(GATE_UP, output_sizes=[64, 192]),
        r"made of parts of \(64, 192\) rows, the trainer's model of parts of \(128, 128\)",
    ),
    "a row too few": (
        lambda engine: change(engine, QKV, lambda weight: weight[:-1]),
        r"has the shape \(127, 64\), where model.layers.0.self_attn.q_proj.weight with its neighbours has \(128, 64\)",
    ),
    "too many rows": (
        lambda engine: change(engine, QKV, lambda weight: torch.cat([weight, weight])),
        r"has the shape \(256, 64\)",
    ),
    "other columns": (
        lambda engine: change(engine, QKV, lambda weight: weight[:, :-1].clone()),
        r"has the shape \(128, 63\)",
    ),
    "a vocabulary too small": (
        lambda engine: change(engine, EMBEDDING, lambda weight: weight[:40]),
        r"has the shape \(40, 64\), where model.embed_tokens",
    ),
    "packed away": (
        lambda engine: change(engine, QKV, lambda weight: weight.new_empty(0)),
        "is empty: its numbers were packed away for the CPU",
    ),
    "not contiguous": (
        lambda engine: change(engine, QKV, lambda weight: weight.T.contiguous().T),
        r"has the strides \(1, 128\), so its rows are not contiguous",
    ),
    "no bias": (without_bias, "qkv_proj has no bias, which would hold model.layers.0.self_attn.q_proj.bias"),
    "no layer": (without_a_block, "the engine has no layer model.layers.1.self_attn.qkv_proj, which would hold"),
    "one weight more": (
        with_a_weight_more,
        "1 weights that the trainer's model does not have, model.layers.0.mlp.gate",
    ),
    "tied": (tied, "holds model.embed_tokens.weight and lm_head.weight as one tensor, the trainer's model as two"),
    "inference": (made_in_inference_mode, r"holds no numbers that a gradient can pass \(meta or inference tensor\)"),
    "meta": (lambda engine: engine.get_submodule("model.norm").to("meta"), "holds no numbers that a gradient can pass"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_another_layout_is_refused_with_the_reason(qwen2, reason) -> None:
    config = configured(qwen2)
    engine = engine_of(qwen2, config)
    alter, message = REFUSED[reason]
    alter(engine)
    with pytest.raises(LayoutError, match=message):
        views_of(engine, qwen2, config)


def test_a_model_whose_layers_are_not_known_is_refused(qwen2) -> None:
    model: Any = empty_model(qwen2, configured(qwen2))
    engine = engine_of(qwen2, configured(qwen2))
    mlp = model.model.layers[0].mlp
    mlp.dense, mlp.down_proj = mlp.down_proj, nn.Identity()
    with pytest.raises(LayoutError, match=r"mlp.dense.weight is a weight of a layer that is not known \(dense\)"):
        base_views(engine, model, torch.float32)


def test_a_model_that_fuses_what_the_engine_fuses_otherwise_is_refused(qwen2) -> None:
    model: Any = empty_model(qwen2, configured(qwen2))
    engine = engine_of(qwen2, configured(qwen2))
    model.model.layers[1].self_attn.v_proj = nn.Identity()
    with pytest.raises(LayoutError, match=r"is part of qkv_proj in the engine, and the model has no .*v_proj.weight"):
        base_views(engine, model, torch.float32)


def test_a_model_tied_where_the_engine_is_not_is_refused(tmp_path) -> None:
    make_toy(tmp_path / "model", tie_word_embeddings=True)
    config = configured(tmp_path / "model")
    engine = engine_of(tmp_path / "model", config)
    engine.get_submodule("lm_head").weight = nn.Parameter(engine.get_submodule("lm_head").weight.data.clone())
    with pytest.raises(LayoutError, match=r"1 weights that the trainer's model does not have, lm_head.weight for one"):
        views_of(engine, tmp_path / "model", config)


def test_experts_are_refused_by_name(tmp_path) -> None:
    from transformers import Qwen3MoeConfig

    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 64}
    make_toy(tmp_path / "mixture", config_class=Qwen3MoeConfig, **sizes)
    config = configured(tmp_path / "mixture")
    with pytest.raises(LayoutError, match=r"(is of experts, which the engine lays out anew|not known \(gate\))"):
        views_of(engine_of(tmp_path / "mixture", config), tmp_path / "mixture", config)


def test_stored_buffers_are_refused(qwen2) -> None:
    model: Any = empty_model(qwen2, configured(qwen2))
    model.model.register_buffer("scales", torch.zeros(2))
    with pytest.raises(LayoutError, match=r"stores model.scales, which is a buffer and no weight"):
        base_views(engine_of(qwen2, configured(qwen2)), model, torch.float32)


@pytest.mark.parametrize("parts", [["k_proj", "q_proj", "v_proj"], ["q_proj", "v_proj", "k_proj"]])
def test_rows_in_another_order_are_found_by_the_models_files(qwen2, parts) -> None:
    """Of q, k and v two have one shape, so that names and shapes say nothing."""
    config = configured(qwen2)
    normal: Any = load_model(qwen2, config, CPU)
    engine, attention = made_up_engine(normal), normal.model.layers[0].self_attn
    change(engine, QKV, lambda _: torch.cat([getattr(attention, part).weight.detach() for part in parts]))
    views = views_of(engine, qwen2, config)
    with pytest.raises(LayoutError, match=r"row 0 of model.layers.0.self_attn.\w_proj.weight in the engine is not"):
        check_rows(views, qwen2)


def test_files_that_name_or_shape_weights_otherwise_are_refused(qwen2, tmp_path) -> None:
    views = views_of(engine_of(qwen2, configured(qwen2)), qwen2, configured(qwen2))
    stored = load_file(qwen2 / "model.safetensors")
    norm = stored.pop("model.norm.weight")
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(LayoutError, match=r"have no weight of the name model.norm.weight"):
        check_rows(views, tmp_path)
    save_file(stored | {"model.norm.weight": norm[:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(LayoutError, match=r"model.norm.weight is \(63,\) in .*, \(64,\) in memory"):
        check_rows(views, tmp_path)
    check_rows(views, qwen2)

"""A model's folder -> the model in memory with rlora's attention, or why it would be scored wrongly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rlora.errors import CompilerError, ConfigError
from rlora.kernels.compiled import compiled_kernels
from rlora.model import attention
from rlora.model.logprobs import logits
from rlora.model.products import PLAIN, Products
from rlora.model.sources import DTYPES, ModelConfig, cache_dir, told_as_config_errors
from rlora.system.screen import note, say

_SAME = {torch.float32: 2e-5, torch.bfloat16: 0.02, torch.float16: 0.02}  # of the norm: some times what is rounding


def load_model(
    folder: Path, config: ModelConfig, device: torch.device, *, weights: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Return the causal language model in `folder` on `device`; pickled weights are refused.

    With `weights`, one tensor on `device` for each of the model's parameters, the model computes with those as they are
    (whoever holds them goes on holding them, and nothing here writes to them) and no file of weights is read. Raises
    ConfigError for a model that cannot be read, lacks weights, or would be scored wrongly.
    """
    attention.register()
    model = _read(folder, config) if weights is None else _pointed_at(weights, folder, config)
    model = model.to(device).eval()
    for name, parameter in model.named_parameters():
        assert weights is None or parameter.data_ptr() == weights[name].data_ptr()  # else it is a copy elsewhere
        if not bool(parameter.isfinite().all()):
            raise ConfigError(f"{name} in {folder} holds numbers that are not finite: copy the model again.")
    refuse_unsupported(model.config)
    with told_as_config_errors("model", folder, tried="computed with"):
        _try_scoring(model)
    return model


def _read(folder: Path, config: ModelConfig) -> Any:
    """Return the model with its weights read from files, on the CPU."""
    from transformers import AutoModelForCausalLM

    with told_as_config_errors("model", folder):
        model, report = cast(
            tuple[Any, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[config.dtype],
                attn_implementation=attention.ATTENTION,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            ),
        )
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"{folder} lacks {len(missing)} of the weights that its config.json asks for, {missing[0]} for one: copy "
            "the model again."
        )
    return model


def _pointed_at(weights: Mapping[str, torch.Tensor], folder: Path, config: ModelConfig) -> Any:
    """Return the model with `weights` as its parameters, without gradients; its buffers are made on the CPU."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with told_as_config_errors("configuration", folder), init_empty_weights(include_buffers=False):
        stored = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        model: Any = AutoModelForCausalLM.from_config(
            stored,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention.ATTENTION,
            trust_remote_code=config.trust_remote_code,
        )
    model.tie_weights()  # while it is made empty each parameter is replaced, a tied one by two
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    views = {id(parameter): nn.Parameter(weights[name], requires_grad=False) for name, parameter in parameters.items()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(module, name, views[id(parameter)])
    return model


@torch.no_grad()
def _try_scoring(model: Any) -> None:
    """Raise ConfigError where the model's kind makes log-probabilities wrong that are computed as rlora does.

    A completion must not change with another before it in its row, nor with its place in the row, as it does where
    layers carry a state along or count positions themselves; and logits must be hidden states times the unembedding.
    """
    length, device = 4, next(model.parameters()).device
    prompt, first, second, other = (torch.arange(length) * step + step for step in (3, 5, 7, 11))
    rows = [(prompt, first, second), (prompt, other, second), (prompt, second, first)]
    tokens_BT = torch.stack([torch.cat(row) for row in rows]).to(device) % model.config.vocab_size
    segments_BT = torch.arange(3, device=device).repeat_interleave(length).expand(3, -1)
    positions_T = torch.cat([torch.arange(length), *[torch.arange(length, 2 * length)] * 2]).to(device)
    given = {
        "input_ids": tokens_BT,
        "position_ids": positions_T.expand(3, -1),
        "attention_mask": attention.visible_ranges(segments_BT),
        "use_cache": False,
    }
    hidden_BTH = model.base_model(**given).last_hidden_state
    if not bool(hidden_BTH.isfinite().all()):
        raise ConfigError(f"{type(model).__name__} makes numbers that are not finite of ordinary tokens.")
    behind, between = slice(2 * length, None), slice(length, 2 * length)
    for found in (hidden_BTH[1, behind], hidden_BTH[2, between]):
        if _difference(found, hidden_BTH[0, behind]) > _SAME[model.dtype]:
            raise ConfigError(
                f"in {type(model).__name__} a completion changes with others in its row (layers with a state, "
                "convolutions, or positions that the model counts itself), which is not supported: it would be scored "
                "wrongly."
            )
    last_NH = hidden_BTH[:, -1]
    expected_NV = model(**given).logits[:, -1].float()
    found_NV = logits(last_NH, model.get_output_embeddings().weight, last_NH.dtype)
    if _difference(found_NV, expected_NV) > _SAME[model.dtype]:
        raise ConfigError(
            f"{type(model).__name__} makes its logits of more than hidden states and the unembedding (a bias, a "
            "scale), which is not supported: it would be scored wrongly."
        )


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return by how much of its norm a row of numbers is off, the median over rows."""
    return float(((found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)).median())


def products_for(config: ModelConfig, device: torch.device) -> Products:
    """Return the products that the configuration asks for on `device`, compiled or plain.

    Left to itself ("auto") a failure to compile is told on stderr and the model computes without; asked for ("on"), it
    raises ConfigError.
    """
    is_worth_it = device.type == "cpu" and config.dtype != "float32"
    if config.compile == "off" or (config.compile == "auto" and not is_worth_it):
        return PLAIN
    folder = cache_dir() / "compiled"
    if not folder.exists():
        note(f"Compiling kernels, which are kept in {folder}, once (about 20 s).")
    try:
        return Products(compiled_kernels(folder, device))
    except CompilerError as error:
        if config.compile == "on":
            raise ConfigError(
                f"model.compile is on, but kernels cannot be compiled: {error}. They need a C++ compiler (g++, or "
                "another in $CXX) and Python's header files; or take --model.compile off."
            ) from error
        say(
            f"Kernels cannot be compiled, so training is slower: {error}. They need a C++ compiler (g++, or another in "
            "$CXX) and Python's header files; --model.compile off hides this message."
        )
        return PLAIN


def refuse_unsupported(config: Any) -> None:
    """Raise ConfigError for a model whose log-probabilities would be computed wrongly."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if {"sliding_attention", "chunked_attention"} & set(kinds or ()) or (window and not kinds):
        raise ConfigError(
            f"the model has sliding-window attention ({window} positions), which is not supported: long rows would be "
            "scored wrongly."
        )
    for field in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"the model transforms its logits ({field}={getattr(config, field)}), which is not supported."
            )

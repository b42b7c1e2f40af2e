"""A model's folder -> the model in memory with rlora's attention, or why it would be scored wrongly."""

import sys
from pathlib import Path
from typing import Any

import torch

from rlora import attention
from rlora.errors import CompilerError, ConfigError
from rlora.fused.compiled import compiled_kernels
from rlora.fused.kernels import Kernels
from rlora.models import DTYPES, ModelConfig, cache_dir


def load_model(folder: Path, config: ModelConfig, device: torch.device) -> Any:
    """Return the causal language model in `folder` on `device`; pickled weights are refused."""
    from transformers import AutoModelForCausalLM

    attention.register()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[config.dtype],
        attn_implementation=attention.ATTENTION,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    return model.to(device)


def kernels_for(config: ModelConfig, device: torch.device) -> Kernels | None:
    """Return the compiled kernels that the configuration asks for on `device`, or None.

    Left to itself ("auto") a failure to compile is told on stderr and the model computes without; asked for ("on"), it
    raises ConfigError.
    """
    is_worth_it = device.type == "cpu" and config.dtype != "float32"
    if config.compile == "off" or (config.compile == "auto" and not is_worth_it):
        return None
    folder = cache_dir() / "compiled"
    if not folder.exists():
        print(f"Compiling kernels, which are kept in {folder}, once (about 20 s).", file=sys.stderr)
    try:
        return compiled_kernels(folder, device)
    except CompilerError as error:
        if config.compile == "on":
            raise ConfigError(
                f"model.compile is on, but kernels cannot be compiled: {error}. They need a C++ compiler (g++, or "
                "another in $CXX) and Python's header files; or take --model.compile off."
            ) from error
        print(
            f"Kernels cannot be compiled, so training is slower: {error}. They need a C++ compiler (g++, or another in "
            "$CXX) and Python's header files; --model.compile off hides this message.",
            file=sys.stderr,
        )
        return None


def refuse_unsupported(config: Any) -> None:
    """Raise ConfigError for a model whose log-probabilities would be computed wrongly."""
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ConfigError(
            "the model has sliding-window attention, which is not supported: long rows would be scored wrongly."
        )
    for field in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"the model transforms its logits ({field}={getattr(config, field)}), which is not supported."
            )

"""A model's folder -> the model in memory with rlora's attention, or why it would be scored wrongly."""

from pathlib import Path
from typing import Any

import torch

from rlora import attention
from rlora.errors import ConfigError
from rlora.models import DTYPES, ModelConfig


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

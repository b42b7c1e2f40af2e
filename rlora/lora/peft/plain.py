"""Which adapters of PEFT's are plain LoRA on an unchanged base: what is known to be is listed, the rest is refused.

So a kind that PEFT gains later is refused by its name until somebody has looked at what it means.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlora.errors import AdapterError

# Fields of PEFT 0.21's LoraConfig that may have any value: they say what was trained and how, or are read elsewhere.
_FREE = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "rank_pattern", "lora_alpha", "alpha_pattern", "lora_dropout", "use_rslora", "target_modules",
    "exclude_modules", "modules_to_save", "bias", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "eva_config", "loftq_config", "corda_config", "lora_ga_config", "megatron_core", "megatron_config",
    "qalora_group_size", "use_dora", "target_parameters", "lora_bias", "fan_in_fan_out", "runtime_config",
}  # fmt: skip
# Starts after which the base is what it was: zeros in B, random numbers, singular vectors of activations or of weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def check_plain(folder: Path, stored: Mapping[str, Any]) -> None:
    """Raise AdapterError where the configuration `stored` in `folder` says, or may say, more than plain LoRA does.

    A field that is not known here must be empty: null, false, an empty list or object.
    """
    if stored.get("peft_type") != "LORA" or stored.get("use_dora"):
        raise AdapterError(f"{folder} is not a plain LoRA adapter (vLLM does not serve DoRA).")
    start = stored.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise AdapterError(
            f"{folder} was started by init_lora_weights={start!r}, which is not known to leave the base as it was "
            f"(known are {', '.join(map(repr, _PLAIN_STARTS))}); have PEFT convert it to plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)."
        )
    if unknown := sorted(name for name, value in stored.items() if name not in _FREE and value):
        raise AdapterError(
            f"{folder} has {', '.join(f'{name}={stored[name]!r}' for name in unknown)}, which is not known to be plain "
            "LoRA, so it is not read."
        )

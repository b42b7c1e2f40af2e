"""Adapters as PEFT folders (`adapter_config.json`, `adapter_model.safetensors`), the format every server reads.

Only safetensors and JSON are read: a folder from elsewhere cannot run code, and `.bin` files are refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rlora.errors import AdapterError
from rlora.files import write_atomically
from rlora.lora.config import LoraConfig

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """One version of one policy: what is handed to the sampler, saved and shipped.

    `version` is the step of the policy; `tensors` maps `PATH.lora_A` (R, I) and `PATH.lora_B` (O, R) to fp32 on the
    CPU.
    """

    policy: int
    version: int
    config: LoraConfig
    base_model: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def served_bytes(self, dtype: torch.dtype) -> bytes:
        """Return the numbers as a server of `dtype` holds them, to tell whether a version changed what is served."""
        rounded = torch.cat([tensor.to(dtype).flatten() for tensor in self.tensors.values()])
        return rounded.view(torch.uint8).numpy().tobytes()


def target_modules(adapter: Adapter) -> list[str]:
    """Return the last parts of the adapted layers' paths, sorted: PEFT's and vLLM's names of them."""
    return sorted({name.rsplit(".", 2)[-2] for name in adapter.tensors})


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the adapter into `folder` as PEFT files, each atomically, the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{_PREFIX}{name}.weight": tensor.contiguous() for name, tensor in adapter.tensors.items()}
    with write_atomically(folder / TENSOR_FILE) as path:
        path.write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": adapter.config.rank,
        "lora_alpha": adapter.config.alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules(adapter),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    with write_atomically(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


def check_adapter(folder: Path, config: LoraConfig) -> None:
    """Raise AdapterError unless `folder` holds a plain LoRA adapter of this rank and scale, in safetensors."""
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}; give a folder in PEFT's format.")
    if not (folder / TENSOR_FILE).is_file():
        raise AdapterError(
            f"{folder} holds no {TENSOR_FILE}; only safetensors is read (adapter_model.bin can run code)."
        )
    try:
        stored = json.loads((folder / CONFIG_FILE).read_text())
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if stored.get("peft_type") != "LORA" or stored.get("use_dora"):
        raise AdapterError(f"{folder} is not a plain LoRA adapter (vLLM does not serve DoRA).")
    rank, alpha = stored.get("r"), stored.get("lora_alpha")
    if rank != config.rank:
        raise AdapterError(f"{folder} has rank {rank}, the run has {config.rank}; pass --lora.rank {rank}.")
    scale = alpha / rank**0.5 if stored.get("use_rslora") else alpha / rank
    if scale != config.scale:
        raise AdapterError(f"{folder} scales by {scale}, the run by {config.scale}; pass --lora.alpha {scale * rank}.")


def load_adapter_tensors(
    folder: Path, config: LoraConfig, names: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a PEFT folder under rlora's names, checked against `config` and the shapes in `names`.

    Raises AdapterError when files are missing or unsafe, or the adapter has another rank, scale, kind or set of layers.
    """
    check_adapter(folder, config)
    try:
        stored_tensors = load_file(folder / TENSOR_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / TENSOR_FILE} cannot be read: {error}") from error
    tensors = {_our_name(key): value.float() for key, value in stored_tensors.items()}
    if missing := sorted(names.keys() - tensors.keys()):
        raise AdapterError(
            f"{folder} lacks {len(missing)} tensors of the policy, first {missing[0]}; check --lora.layers."
        )
    if extra := sorted(tensors.keys() - names.keys()):
        raise AdapterError(
            f"{folder} has {len(extra)} tensors the policy lacks, first {extra[0]}; check --lora.layers."
        )
    for name, shape in names.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise AdapterError(f"{folder}: {name} is {tuple(tensors[name].shape)}, the policy needs {tuple(shape)}.")
    return tensors


def _our_name(key: str) -> str:
    return re.sub(r"\.weight$", "", key.removeprefix(_PREFIX)).replace(".default", "")

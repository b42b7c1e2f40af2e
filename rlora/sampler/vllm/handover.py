"""Adapters handed to vLLM in this process's memory, in place of a file of tensors that it would read.

vLLM reads an adapter from a folder, then converts and pins each tensor by itself, of which there are hundreds. Here the
folder holds PEFT's configuration alone, and vLLM is given views of one buffer, converted and pinned once. The buffer is
made for each loading, since vLLM multiplies it by the adapter's scale.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlora.lora.adapter import Adapter
from rlora.lora.peft.peft_format import peft_tensors, save_config

_HANDED: dict[str, Mapping[str, torch.Tensor]] = {}  # folder of an adapter -> its tensors in fp32, as PEFT names them
_OPTIONS = ("lora_model_id", "device", "dtype", "model_vocab_size", "weights_mapper", "skip_prefixes")


def install() -> None:
    """Have vLLM look here for an adapter's tensors before it reads a file; call before the engine is built."""
    from vllm.lora.lora_model import LoRAModel

    if getattr(LoRAModel, "rlora_installed", False):
        return
    read = LoRAModel.from_local_checkpoint.__func__

    def from_local_checkpoint(
        cls: Any, lora_dir: str, expected_lora_modules: set[str], peft_helper: Any, **options: Any
    ) -> Any:
        tensors = _HANDED.get(lora_dir)
        if tensors is None:
            return read(cls, lora_dir, expected_lora_modules, peft_helper, **options)
        chosen = {name: options[name] for name in _OPTIONS if name in options}
        return cls.from_lora_tensors(
            tensors=in_one_buffer(tensors, options["dtype"]), peft_helper=peft_helper, **chosen
        )

    LoRAModel.from_local_checkpoint = classmethod(from_local_checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
    LoRAModel.rlora_installed = True  # pyright: ignore[reportAttributeAccessIssue] - our own mark


def hand_over(adapter: Adapter, folder: Path) -> None:
    """Have vLLM load `adapter` from `folder`, now and again, until it is taken back."""
    adapter = adapter.served()  # PiSSA's difference, computed once
    save_config(adapter, folder)
    _HANDED[str(folder)] = peft_tensors(adapter)


def take_back(folder: Path) -> None:
    """Forget the adapter that was handed over as `folder`."""
    del _HANDED[str(folder)]


def in_one_buffer(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors converted, as views of one buffer, which is pinned where there is a GPU."""
    sizes = [tensor.numel() for tensor in tensors.values()]
    buffer_N = torch.empty(sum(sizes), dtype=dtype, pin_memory=torch.cuda.is_available())
    parts = zip(tensors.items(), buffer_N.split(sizes), strict=True)
    return {name: part_N.view(tensor.shape).copy_(tensor) for (name, tensor), part_N in parts}

"""One version of a fully fine-tuned policy: all weights, handed to the sampler and saved as a model folder.

A model folder is what every server and Transformers load: safetensors, configuration and tokenizer.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rlora.errors import ConfigError, ModelError
from rlora.lora.adapter import Adapter
from rlora.system.files import write_atomically
from rlora.system.stamp import STAMP_FILE, check_stamp

WEIGHTS_FILE = "model.safetensors"
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model")  # configuration and tokenizer, in the base's folder
_NOT_BESIDE = ("model.safetensors.index.json", "adapter_config.json", STAMP_FILE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullWeights:
    """One version of one policy of which every weight was trained.

    `version` is the step of the policy; `tensors` maps each weight's name in the model's files to its value in the
    base's precision, on the CPU; tied weights are there once. `base_dir` holds configuration and tokenizer.
    """

    policy: int
    version: int
    base_model: str
    base_dir: Path
    tensors: Mapping[str, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


Snapshot = Adapter | FullWeights
"""One version of one policy, copied: what is handed to the sampler, saved and shipped."""


def save_weights(weights: FullWeights, folder: Path) -> None:
    """Write a model folder: configuration and tokenizer of the base, and the weights, each file atomically."""
    for pattern in _BESIDE:
        for file in sorted(weights.base_dir.glob(pattern)):
            if file.name not in _NOT_BESIDE:
                with write_atomically(folder / file.name) as path:
                    shutil.copyfile(file, path)
    dtype = str(next(iter(weights.tensors.values())).dtype).removeprefix("torch.")
    stored = json.loads((weights.base_dir / "config.json").read_text(encoding="utf-8"))
    stored = {key: value for key, value in stored.items() if key != "torch_dtype"} | {"dtype": dtype}
    with write_atomically(folder / "config.json") as path:
        path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    with write_atomically(folder / WEIGHTS_FILE) as path:
        save_file(dict(weights.tensors), path, metadata={"format": "pt"})


def load_weights(folder: Path, names: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return the weights of a model folder that `save_weights` wrote, checked against the shapes in `names`.

    Raises ModelError when the file is missing or damaged, or holds another model's weights.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS_FILE}; has the run written a checkpoint?")
    try:
        check_stamp(folder, WEIGHTS_FILE, {})
    except ValueError as error:
        raise ModelError(str(error)) from error
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    for name, shape in names.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != tuple(shape):
            raise ModelError(f"{file}: {name} is {found}, the model needs {tuple(shape)}; is it another model's?")
    return {name: tensors[name] for name in names}


def check_names(folder: Path, names: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError unless the model's weights are named in its files as Transformers names them in memory.

    A server that is handed new weights reads the names of the files; a model that Transformers rearranges on loading
    (fused experts) would have to be taken apart again.
    """
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            stored.update(opened.keys())
    if missing := sorted(names.keys() - stored):
        raise ConfigError(
            f"full fine-tuning of {folder} is not supported: Transformers rearranges {len(missing)} of its weights on "
            f"loading (first {missing[0]}), and they could not be handed to the sampler. Use --method lora."
        )

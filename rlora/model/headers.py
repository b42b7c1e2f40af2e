"""A model's folder from elsewhere, looked at before anything is built from it: what is out of bounds is refused.

Sizes are compared with the shapes in the headers of the safetensors files, which take no memory to read. Where there
are no weights yet, sizes have fixed bounds.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlora.errors import ConfigError
from rlora.system.records import object_in

_MAX_HEADER = 100_000_000  # bytes; the format's own bound
_MAX_END_TOKENS = 1000
_BOUNDS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), 2**14),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 2**16),
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim", "n_embd"), 2**20),
    "vocab_size": 2**24,
    "max_position_embeddings": 2**27,
}
_EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONFIGS = ("config.json", "generation_config.json")


def check_folder(folder: Path) -> None:
    """Raise ConfigError for a model's folder whose numbers are out of bounds, or do not fit the shapes of its weights,
    or whose index names files outside of it.
    """
    _check_index(folder)
    shapes = list(_shapes(folder))
    largest = max((size for shape in shapes for size in shape), default=0)
    for file in _CONFIGS:
        if not (folder / file).is_file():
            continue
        for section in _sections(_read(folder / file)):
            _check_end_tokens(folder / file, section.get("eos_token_id"))
            for name, bound in _BOUNDS.items():
                value = section.get(name)
                if value is None or (isinstance(value, list) and name != "hidden_size"):  # some state one a layer
                    continue
                if type(value) is not int or not 1 <= value <= bound:
                    raise ConfigError(f"{folder / file} has {name}={value!r}; it must be a number from 1 to {bound}.")
                is_unused = name == "intermediate_size" and not _EXPERTS.isdisjoint(
                    section
                )  # where all layers are mixtures
                if shapes and name != "max_position_embeddings" and not is_unused:
                    held = len(shapes) if name in _LAYERS else max(largest, len(shapes))
                    if value > held:
                        raise ConfigError(
                            f"{folder / file} has {name}={value}, and its weights hold {held} at most: is it another "
                            "model's configuration?"
                        )
            size = section.get("hidden_size")
            if shapes and size is not None and not any(size in shape for shape in shapes):
                raise ConfigError(
                    f"{folder / file} has hidden_size={size}, and none of its weights has that size: is it another "
                    "model's configuration?"
                )


def _check_index(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    if not file.is_file():
        return
    names = _read(file).get("weight_map")
    if not isinstance(names, dict):
        raise ConfigError(f"{file} has no weight_map. Is the folder complete?")
    for name in names.values():
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
            raise ConfigError(f"{file} names the file {name!r}; only files in the same folder are read.")


def _check_end_tokens(file: Path, stored: Any) -> None:
    listed = stored if isinstance(stored, list) else [] if stored is None else [stored]
    if len(listed) > _MAX_END_TOKENS:
        raise ConfigError(f"{file} lists {len(listed)} end tokens (eos_token_id); {_MAX_END_TOKENS} are read at most.")
    if wrong := [token for token in listed if type(token) is not int or not 0 <= token < _BOUNDS["vocab_size"]]:
        raise ConfigError(f"{file} has eos_token_id={str(wrong[0])[:80]}; it must be a number, or a list of them.")


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those of its parts, such as a language model's beside an encoder's."""
    yield config
    yield from (part for name, part in config.items() if name.endswith("_config") and isinstance(part, Mapping))


def _read(path: Path) -> dict[str, Any]:
    try:
        return object_in(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Is the folder complete?") from error


def _shapes(folder: Path) -> Iterator[tuple[int, ...]]:
    """Yield the shapes in the folder's safetensors files, those that can be read: what loads them says the rest."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > min(_MAX_HEADER, os.fstat(file.fileno()).st_size):
                    continue
                header = json.loads(file.read(length))
            found = [tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
        except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
            continue
        yield from (shape for shape in found if all(type(size) is int for size in shape))

"""What a base model is, by its content: a name or a folder may hold another one tomorrow.

Digests (SHA-256) of four parts: `config` (config.json and generation_config.json), `tokenizer`, `template` (of chats)
and `weights`. Weights of up to 512 MiB in all are read whole; of larger ones every size, every tensor's name, shape and
place, and a block at the start, at the end and every 16 MiB between: other weights are seen, a few changed bytes in
between need not be. So of 16 GB some 70 MB are read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlora.model.sources import read_model_json

_READ_WHOLE = 512 << 20
_BLOCK, _STRIDE = 1 << 16, 16 << 20
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json",
    "special_tokens_map.json", "tekken.json",
)  # fmt: skip
_IN_PASSING = ("transformers_version", "_name_or_path", "name_or_path")  # who wrote a file, and from where


def base_digests(folder: Path) -> dict[str, str]:
    """Return the digests of the model in `folder` by part; ConfigError for a JSON file that is broken.

    Example:
        >>> base_digests(folder)
        {'config': '3f0c...', 'tokenizer': 'b1d5...', 'template': '', 'weights': '77ae...'}
    """
    settings = _json_of(folder, "tokenizer_config.json")
    template = {"tokenizer_config.json": settings.pop("chat_template", None)}
    files = [*folder.glob("chat_template*"), *folder.glob("additional_chat_templates/*")]
    template |= {file.name: file.read_text(encoding="utf-8", errors="replace") for file in sorted(files)}
    written = {name: text for name, text in template.items() if text}
    return {
        "config": _digest([_json_of(folder, name) for name in ("config.json", "generation_config.json")]),
        "tokenizer": _digest([settings, {name: _file_digest(folder / name) for name in _TOKENIZER_FILES}]),
        "template": _digest(written) if written else "",
        "weights": _weights_digest(folder),
    }


def sizes_of(folder: Path, *, num_train: int) -> dict[str, Any]:
    """Return what the known learning rates depend on, of the model in `folder`, and how much a run trains on.

    A model whose configuration states no hidden size, or states it elsewhere, has None.

    Example:
        >>> sizes_of(folder, num_train=7473)
        {'model_type': 'llama', 'hidden_size': 576, 'num_train': 7473}
    """
    stored = _json_of(folder, "config.json")
    shape = stored if "hidden_size" in stored else stored.get("text_config") or {}
    found = {"model_type": shape.get("model_type"), "hidden_size": shape.get("hidden_size")}
    return found | {"num_train": num_train}


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the parts in which two bases differ, of those that both state."""
    return sorted(part for part in before.keys() & now.keys() if before[part] != now[part])


def _json_of(folder: Path, name: str) -> dict[str, Any]:
    stored = read_model_json(folder / name) if (folder / name).is_file() else {}
    return {key: value for key, value in stored.items() if key not in _IN_PASSING}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    sizes = {file.name: file.stat().st_size for file in files}
    digest = hashlib.sha256(json.dumps(sizes).encode())
    is_whole = sum(sizes.values()) <= _READ_WHOLE
    for path in files:
        if is_whole:
            digest.update(bytes.fromhex(_file_digest(path) or ""))
            continue
        size = sizes[path.name]
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header, _READ_WHOLE)))
            for place in (*range(8 + header, size, _STRIDE), max(0, size - _BLOCK)):
                file.seek(place)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()

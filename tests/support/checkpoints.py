"""Checkpoints that are whole, and say something else than was written."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def rewritten(folder: Path, change, tensors=None) -> None:
    """Change what a checkpoint says, and its manifest with it, as whoever made it up would."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    stored = load_file(folder / "tensors.safetensors")
    save_file({**stored, **(tensors or {})}, folder / "tensors.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))

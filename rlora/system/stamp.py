"""`rlora.json` beside a policy that is shipped: which version it is, and the digest of its numbers.

A policy from elsewhere has none, and one that rlora wrote before has no digest: both are read as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlora.system.files import write_atomically
from rlora.system.records import object_in

STAMP_FILE = "rlora.json"
_DIGEST = "sha256"


def write_stamp(folder: Path, file: str, values: Mapping[str, Any]) -> None:
    """Write `values` with the digest of `file`, which lies in `folder`: last, once all of the policy is there."""
    with write_atomically(folder / STAMP_FILE) as path:
        stamp = {**values, _DIGEST: {file: _digest(folder / file)}}
        path.write_text(json.dumps(stamp, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_stamp(folder: Path) -> dict[str, Any]:
    """Return what is written beside a policy, nothing for one from elsewhere; ValueError where it cannot be read."""
    try:
        return object_in((folder / STAMP_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / STAMP_FILE} cannot be read: {error}") from error


def check_stamp(folder: Path, file: str, found: Mapping[str, Any]) -> None:
    """Raise ValueError where `file` has another digest than was written beside it, or what is `found` other values."""
    stamp = read_stamp(folder)
    digests = stamp.get(_DIGEST)
    if digests is None:
        return
    if not isinstance(digests, dict) or digests.get(file) != _digest(folder / file):
        raise ValueError(f"{folder / file} was changed: its SHA-256 is not the one in {STAMP_FILE}. {_WAY_OUT}")
    for name, value in found.items():
        if name in stamp and stamp[name] != value:
            raise ValueError(f"{folder} has {name}={value!r}, and {STAMP_FILE} says {stamp[name]!r}. {_WAY_OUT}")


_WAY_OUT = (
    "Copy it again from where it came; in a run's directory the run's command writes it again. If you changed it "
    f"yourself, remove {STAMP_FILE}."
)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

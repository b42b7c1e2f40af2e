"""Rows of a data set from a local folder if there is one, else from the hub, with the same fields."""

import json
import os
from pathlib import Path
from typing import Any

from rlora.errors import DataError

VARIABLE = "RLORA_DATA"


def data_folder(data_dir: str | None = None) -> Path | None:
    """Return the local data folder: the option, else $RLORA_DATA, else ../shared/data beside the current folder if it
    exists.

    Raises DataError for an option or a variable that names no folder.
    """
    for name, value in (("--data-dir", data_dir), (VARIABLE, os.environ.get(VARIABLE))):
        if value:
            if not Path(value).is_dir():
                raise DataError(f"{name} is {value!r}, which is not a folder.")
            return Path(value)
    beside = Path("../shared/data")
    return beside if beside.is_dir() else None


def read_rows(file: str, *, hub: str, subset: str, split: str, data_dir: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of `file` in the local folder, or of the hub's data set when there is no local folder.

    Raises DataError, saying which option or variable to set, when neither has them, and for a line that is not JSON.
    """
    folder = data_folder(data_dir)
    if folder is not None:
        path = folder / file
        if not path.is_file():
            raise DataError(f"{path} does not exist; set --data-dir or {VARIABLE} to a folder that holds {file}.")
        return read_jsonl(path)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return [dict(row) for row in load_dataset(hub, subset, split=split)]
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"the data set {hub} could not be had from the hub ({type(error).__name__}). Set --data-dir or {VARIABLE} "
            "to a folder "
            f"that holds {file}."
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file; DataError names the line that is not one."""
    rows = []  # split at line feeds alone: splitlines() would also cut at the U+2028 that some problems contain
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is not JSON: {error}") from error
    return rows

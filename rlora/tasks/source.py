"""Rows of a data set from a local folder if there is one, else from the hub, with the same fields."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlora.errors import DataError
from rlora.system.hub import is_hub_reachable
from rlora.system.screen import say
from rlora.tasks.fields import whole

VARIABLE = "RLORA_DATA"


def data_folder(data_dir: str | None = None) -> Path | None:
    """Return the local data folder: the option, else $RLORA_DATA, else ../shared/data beside the current folder if it
    exists.

    Raises DataError for an option or a variable that names no folder.
    """
    for name, value in (("--data-dir", data_dir), (VARIABLE, os.environ.get(VARIABLE))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise DataError(f"{name} is {value!r}, which is not a folder.")
            return folder
    beside = Path("../shared/data")
    return beside if beside.is_dir() else None


def read_rows(
    file: str | Sequence[str],
    *,
    hub: str,
    split: str,
    subset: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    data_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of `file` in the local folder (of the first that exists, if there are several names), or of the
    hub's data set when there is no local folder.

    The hub's subsets are joined in order; `columns` leaves out all others. Raises DataError, saying which option or
    variable to set, when neither has them, and for a line that is not JSON.
    """
    files = [file] if isinstance(file, str) else list(file)
    folder = data_folder(data_dir)
    if folder is None:
        return _hub_rows(hub, subset, split, columns, files[0])
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder / files[0]} does not exist; set --data-dir or {VARIABLE} to a folder that holds it.")
    return read_jsonl(path)


def _hub_rows(
    hub: str, subset: str | Sequence[str] | None, split: str, columns: Sequence[str] | None, file: str
) -> list[dict[str, Any]]:
    from datasets.exceptions import DatasetsError

    subsets = [subset] if subset is None or isinstance(subset, str) else list(subset)
    rows: list[dict[str, Any]] = []
    try:
        for name in subsets:
            part: Any = load_hub_set(hub, name, split=split)
            if columns is not None:
                part = part.select_columns([column for column in part.column_names if column in columns])
            rows += [dict(row) for row in part]
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"the data set {hub} could not be had from the hub ({type(error).__name__}). Set --data-dir or {VARIABLE} "
            f"to a folder that holds {file}."
        ) from error
    return rows


def load_hub_set(name: str, subset: str | None, *, split: str) -> Any:
    """Return a split of a data set of the hub, from the cache where the hub cannot be reached; what `datasets` raises
    where neither has it.
    """
    import datasets
    import datasets.config as settings
    import huggingface_hub

    if not is_hub_reachable():  # both libraries read their variables at import
        settings.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    return datasets.load_dataset(name, subset, split=split)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file; DataError names the line that is not one.

    Numbers are texts, as they are spelled there. What no text can hold, half of a surrogate pair, becomes U+FFFD, which
    is said.
    """
    text = read_text(path)
    lines = enumerate(text.split("\n"), start=1)  # not at the U+2028 of some problems, as splitlines() does
    rows = [_object(line, f"{path}, line {number},") for number, line in lines if line.strip()]
    return whole_rows(rows, path) if "\\u" in text else rows


def read_text(path: Path) -> str:
    """Return a file's text; DataError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


def parsed_json(text: str, where: str) -> Any:
    """Return the value of a JSON text, its numbers as they are spelled; DataError where it is none."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def whole_rows(rows: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the rows with each half of a surrogate pair replaced by U+FFFD, which is said."""
    mended = [whole(row) for row in rows]
    if count := sum(new is not old for new, old in zip(mended, rows, strict=True)):
        say(f"{path}: {count} rows hold half of a surrogate pair (of an emoji, say), which became U+FFFD.")
    return mended


def _object(text: str, where: str) -> dict[str, Any]:
    row = parsed_json(text, where)
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object: {text[:80]!r}")
    return row

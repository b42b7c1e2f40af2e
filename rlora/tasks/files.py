"""The rows of a person's own data: a file of JSON Lines, JSON, CSV or Parquet, or `hub:NAME[SPLIT]`.

`hub:openai/gsm8k:main[train]` is the subset main of openai/gsm8k, its split train; the name may be a local folder that
the library `datasets` reads. Without a split it is "train" for training and "test" for a test.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlora.errors import ConfigError, DataError
from rlora.tasks.source import load_hub_set, parsed_json, read_jsonl, read_text, whole_rows

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_HUB = re.compile(r"hub:(?P<name>[^\[\]:]+)(?::(?P<subset>[^\[\]:]+))?(?:\[(?P<split>.+)\])?")
_MAX_CELL = 2**31 - 1  # characters; the csv module takes 131,072 by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A data set of the hub, or a local folder of one.

    Example:
        >>> HubName.parsed("hub:openai/gsm8k:main[train[:100]]")
        HubName(name='openai/gsm8k', subset='main', split='train[:100]')
    """

    name: str
    subset: str | None = None
    split: str | None = None

    @classmethod
    def parsed(cls, text: str) -> "HubName":
        """Return what a `hub:NAME:SUBSET[SPLIT]` names; ConfigError for another form."""
        match = _HUB.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is not of the form hub:NAME[SPLIT] or hub:NAME:SUBSET[SPLIT].")
        return cls(**match.groupdict())


def is_own(name: str) -> bool:
    """Whether a name is that of a person's own data rather than of a data set of rlora's."""
    return name.startswith("hub:") or name.endswith(SUFFIXES)


def check_own(name: str, called: str) -> None:
    """Raise ConfigError for a file that is not there, which errors call `called`, or a hub's name of another form."""
    if name.startswith("hub:"):
        HubName.parsed(name)
    elif not Path(name).is_file():
        raise ConfigError(f"{called} is not a file.")


def own_title(name: str) -> str:
    """Return how data is called in identifiers and in the names of files: a file's stem, or the hub's name.

    Example:
        >>> own_title("data/sums.csv"), own_title("hub:openai/gsm8k:main[test]")
        ('sums', 'gsm8k')
    """
    return HubName.parsed(name).name.rstrip("/").rpartition("/")[2] if name.startswith("hub:") else Path(name).stem


def read_own_rows(name: str, *, split: str) -> Rows:
    """Return the rows of a person's own data; `split` is what is taken of a hub's set whose name has none.

    Numbers of JSON and CSV are texts, as they are spelled there. Raises DataError for a file that cannot be read as
    what its name says, naming the line.
    """
    if name.startswith("hub:"):
        return _hub_rows(HubName.parsed(name), split)
    path = Path(name)
    if path.suffix == ".json":
        return _json_rows(path)
    if path.suffix in (".csv", ".tsv"):
        return _csv_rows(path, delimiter="\t" if path.suffix == ".tsv" else ",")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return read_jsonl(path)


def _json_rows(path: Path) -> Rows:
    """Return the objects of a JSON array, or of JSON Lines in a file that is called .json."""
    text = read_text(path)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        return read_jsonl(path)
    values = parsed_json(text, str(path))
    values = [values] if isinstance(values, dict) and len(lines) == 1 else values
    if not isinstance(values, list):
        raise DataError(f"{path} holds one JSON object; it must be an array of objects, or have one object a line.")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, element {number}, is not a JSON object: {str(value)[:80]!r}")
    return whole_rows(values, path) if "\\u" in text else values


def _csv_rows(path: Path, *, delimiter: str) -> Rows:
    """Return the rows below a header; an empty cell is a field that is not there."""
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: Rows = []
    try:
        header = next(reader, [])
        _check_header(header, path)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}, has {len(cells)} cells, and the header has {len(header)}; a cell "
                    "with a comma or a line break in it must be quoted."
                )
            rows.append({name: cell or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, is not CSV: {error}") from error
    return rows


def _check_header(header: Sequence[str], path: Path) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path} has two columns that are called {twice[0]!r}.")


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error


def _hub_rows(data: HubName, split: str) -> Rows:
    from datasets.exceptions import DatasetsError

    wanted = data.split or split
    try:
        rows: Any = load_hub_set(data.name, data.subset, split=wanted)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the split {wanted!r} of the data set {data.name} could not be had: {reason} Check the name and the "
            "connection (hub:NAME:SUBSET[SPLIT])."
        ) from error
    return [dict(row) for row in rows]

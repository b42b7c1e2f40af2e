"""JSON that is read with suspicion: objects, and lines that each carry a checksum of their own.

A line is a JSON object whose last field is `crc`: the CRC-32 of the line's bytes before `, "crc"`, as eight hexadecimal
digits. Any reader of JSON Lines may ignore the field; whoever wants to know checks it in one line of Python:

    zlib.crc32(line.rpartition(', "crc": ')[0].encode()) == int(json.loads(line)["crc"], 16)
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlora.errors import RunDirError

CHECKSUM = "crc"
SEAL = "sha256"
_END = re.compile(rb', "crc": "([0-9a-f]{8})"\}$')


def line_of(values: Mapping[str, Any]) -> str:
    """Return an object as a line with its checksum, without a line feed.

    Example:
        >>> line_of({"step": 0})
        '{"step": 0, "crc": "4aadb3ac"}'
    """
    start = json.dumps(values, ensure_ascii=False)[:-1]
    try:
        checksum = zlib.crc32(start.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name and UTF-8 cannot
        start = json.dumps(values)[:-1]
        checksum = zlib.crc32(start.encode())
    return f'{start}, "{CHECKSUM}": "{checksum:08x}"}}'


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a checksum of its other fields, the SHA-256 of their JSON with sorted keys: by it a file
    that holds the object is known to be as it was written.
    """
    rest = {name: value for name, value in values.items() if name != SEAL}
    return {**rest, SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Return whether an object's checksum is that of its other fields; files of before there was one have none."""
    return SEAL not in values or sealed(values)[SEAL] == values[SEAL]


def values_of(line: bytes) -> tuple[dict[str, Any], bool]:
    """Return the object in a line, without its checksum, and whether it had one; ValueError where it was changed."""
    values, end = object_in(line), _END.search(line)
    if CHECKSUM not in values:
        return values, False
    if end is None or zlib.crc32(line[: end.start()]) != int(end[1], 16):
        raise ValueError("it was changed since it was written, its checksum (crc) is of other values")
    del values[CHECKSUM]
    return values, True


def rows_in(path: Path, *, may_be_cut: bool = True) -> tuple[list[dict[str, Any]], bool]:
    """Return the objects in a file of lines, and whether all is as it is written now: whole, and with checksums.

    Lines of before there were checksums have none, and are taken as they are. With `may_be_cut` a last line that a kill
    cut short is left out. A file that is not there has no rows. Raises RunDirError, naming the line, for any that was
    changed, or that has no checksum beside others that have one.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror or error}.") from error
    rest = lines.pop()
    if rest and not may_be_cut:
        raise RunDirError(f"{path} cannot be read: line {len(lines) + 1} was cut short.")
    rows, are_checked = [], []
    for number, line in enumerate(lines, start=1):
        try:
            values, is_checked = values_of(line)
        except ValueError as error:
            raise RunDirError(f"{path} cannot be read: line {number}: {error}.") from error
        rows.append(values)
        are_checked.append(is_checked)
    if any(are_checked) and not all(are_checked):
        number = are_checked.index(False) + 1
        raise RunDirError(f"{path} cannot be read: line {number} has no checksum (crc), and others have one.")
    return rows, not rest and all(are_checked)


def object_in(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text; ValueError for anything else, nested too deeply to be read among it."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return values

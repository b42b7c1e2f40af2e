"""Frames between a caller and its workers: a 4-byte length, then JSON; never pickle, since answers are hostile."""

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

Message = Mapping[str, Any]
_HEADER = struct.Struct(">I")


def pack(message: Message) -> bytes:
    """Return the bytes of a frame."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next frame's message, or None where the stream ends."""
    header = _read_exactly(stream, _HEADER.size)
    body = None if header is None else _read_exactly(stream, _HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(stream: BinaryIO, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            return None
        data += piece
    return data

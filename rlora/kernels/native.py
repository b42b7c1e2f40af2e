"""The C++ sources beside this file, compiled for the processor at hand and kept."""

import ctypes
import functools
import hashlib
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlora.errors import CompilerError
from rlora.system import processor

_FOLDER = Path(__file__).parent
_SOURCES = ("low_rank.cpp", "attention.cpp")
_HEADERS = ("tiles.h",)
_FUNCTIONS = ("rlora_forward", "rlora_backward", "rlora_attend", "rlora_attend_backward")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def native_library(folder: Path) -> Any:
    """Return the functions compiled for this processor, kept in `folder`; None where it has no AVX-512 BF16.

    Each takes its arguments and a number, and returns 0 when memory ran out (see `call`). Raises CompilerError when the
    compiler fails.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    path = folder / f"native-{_version()}.so"
    if not path.exists():
        _compile(path)
    library = ctypes.CDLL(str(path))
    if not library.rlora_is_supported():
        return None
    for name in _FUNCTIONS:
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_char_p, ctypes.c_double), ctypes.c_int
    return library


def call(function: Any, numbers: Sequence[int], scale: float) -> None:
    """Call a function with the 64-bit numbers of its arguments (a ctypes.Structure takes twice as long)."""
    if not function(struct.pack(f"{len(numbers)}q", *numbers), scale):
        raise MemoryError("a compiled product found no memory")


def address(tensor: torch.Tensor | None, *, has_gaps: bool = False) -> int:
    """Return where a tensor's numbers lie, without gaps or with some before its last dimension; 0 for none."""
    if tensor is None:
        return 0
    assert tensor.stride(-1) == 1 if has_gaps else tensor.is_contiguous()
    return tensor.data_ptr()


def _compile(path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        sources = [_FOLDER / name for name in _SOURCES]
        try:
            subprocess.run([compiler, *FLAGS, "-o", made, *sources], check=True, capture_output=True, text=True)
        except OSError as error:
            raise CompilerError(f"cannot run the compiler {compiler} ({error.strerror})") from error
        except subprocess.CalledProcessError as error:
            complaint = [line for line in error.stderr.splitlines() if "error" in line]
            raise CompilerError(" ".join([f"{compiler} failed on {', '.join(_SOURCES)}:", *complaint[:1]])) from error
        made.replace(path)


def _version() -> str:
    """Return what the compiled file depends on, as a hash: sources, flags, compiler and processor."""
    texts = [(_FOLDER / name).read_text() for name in (*_SOURCES, *_HEADERS)]
    parts = [*texts, *FLAGS, os.environ.get("CXX", "g++"), processor.description()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

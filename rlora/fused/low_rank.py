"""The products of low-rank updates, as compiled from low_rank.cpp for the processor at hand.

A general product takes a matrix of a few columns at a third to a half of the rate it is meant for, once for each of
some thirty small products a layer. Here a layer's are three calls, which read each activation once or twice, take the
factors as they are trained, in fp32, and add to their gradients in fp32.
"""

import ctypes
import functools
import hashlib
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlora.errors import CompilerError

_SOURCE = Path(__file__).with_name("low_rank.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_FACTOR_NUMBERS = 8
Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The products of M updates that share an input x (N, I): A (R, I) and B (O, R) in fp32, all else in bfloat16.

    h (N, S) holds x A^T of all of them side by side. Factors and their gradients may have a first dimension of one.
    Each matrix has its numbers in rows without gaps between columns.
    """

    library: Any

    @staticmethod
    def takes(x_NI: Tensor, outputs: Sequence[int]) -> bool:
        """Return whether an input and layers of so many outputs are of the kind that is compiled."""
        is_even = x_NI.shape[1] % 2 == 0 and all(size % 2 == 0 for size in outputs)
        has_rows = len(x_NI) > 0 and x_NI.stride(1) == 1
        return is_even and has_rows and x_NI.dtype == torch.bfloat16 and x_NI.device.type == "cpu"

    def add_updates(
        self, x_NI: Tensor, all_a: Sequence[Tensor], all_b: Sequence[Tensor], scale: float, outputs: Sequence[Tensor]
    ) -> Tensor:
        """Add h (scale B)^T to each of `outputs` (N, O) in place, and return h."""
        h_NS = x_NI.new_empty(x_NI.shape[0], sum(a_RI.shape[-2] for a_RI in all_a))
        factors = map(_factor, all_a, all_b, outputs)
        _call(self.library.rlora_forward, x_NI, h_NS, None, factors, scale)
        return h_NS

    def gradients(
        self,
        x_NI: Tensor,
        h_NS: Tensor,
        all_a: Sequence[Tensor],
        all_b: Sequence[Tensor],
        scale: float,
        grads: Sequence[Tensor],
        grad_a: Sequence[Tensor],
        grad_b: Sequence[Tensor],
    ) -> Tensor:
        """Add the gradients of each A to `grad_a` and of each B to `grad_b`, and return that of h; `grads` are those of
        the outputs (N, O).
        """
        grad_h_NS = torch.empty_like(h_NS)
        factors = map(_factor, all_a, all_b, grads, grad_a, grad_b)
        _call(self.library.rlora_backward, x_NI, h_NS, grad_h_NS, factors, scale)
        return grad_h_NS

    def add_to_input(self, grad_x_NI: Tensor, grad_h_NS: Tensor, all_a: Sequence[Tensor]) -> None:
        """Add grad_h A of all updates to the gradient of their input in place."""
        _call(self.library.rlora_add_to_input, grad_x_NI, None, grad_h_NS, map(_factor, all_a), 1.0)


def _call(
    function: Any,
    x_NI: Tensor,
    h_NS: Tensor | None,
    grad_h_NS: Tensor | None,
    factors: Iterable[tuple[int, ...]],
    scale: float,
) -> None:
    """Call a function with the numbers of the source's struct Arguments (a ctypes.Structure takes twice as long)."""
    rows, inputs = x_NI.shape
    h = grad_h_NS if h_NS is None else h_NS
    assert h is not None
    flat = [number for factor in factors for number in factor]
    count = len(flat) // _FACTOR_NUMBERS
    assert h.shape[1] == sum(flat[1::_FACTOR_NUMBERS])
    x, pitch = _at(x_NI, has_gaps=True), x_NI.stride(0)
    numbers = (torch.get_num_threads(), rows, inputs, h.shape[1], x, pitch, _at(h_NS), _at(grad_h_NS), count, *flat)
    function(struct.pack(f"{len(numbers)}q", *numbers), scale)


def _factor(
    a_RI: Tensor,
    b_OR: Tensor | None = None,
    y_NO: Tensor | None = None,
    grad_a_RI: Tensor | None = None,
    grad_b_OR: Tensor | None = None,
) -> tuple[int, ...]:
    """Return the numbers of the source's struct Factor."""
    outputs = 0 if b_OR is None else b_OR.shape[-2]
    pitch = 0 if y_NO is None else y_NO.stride(0)
    y = _at(y_NO, has_gaps=True)
    return _at(a_RI), a_RI.shape[-2], _at(b_OR), outputs, y, pitch, _at(grad_a_RI), _at(grad_b_OR)


def _at(matrix: Tensor | None, *, has_gaps: bool = False) -> int:
    """Return the address of a matrix whose rows lie one after the other, or have gaps between them; 0 for none."""
    if matrix is None:
        return 0
    assert matrix.stride(1) == 1 if has_gaps else matrix.is_contiguous()
    return matrix.data_ptr()


@functools.cache
def low_rank(folder: Path) -> LowRank | None:
    """Return the products compiled for this processor, kept in `folder`; None where it has no AVX-512 BF16.

    Raises CompilerError when the compiler fails.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    path = folder / f"low_rank-{_version()}.so"
    if not path.exists():
        _compile(path)
    library = ctypes.CDLL(str(path))
    if not library.rlora_is_supported():
        return None
    for function in (library.rlora_forward, library.rlora_backward, library.rlora_add_to_input):
        function.argtypes, function.restype = (ctypes.c_char_p, ctypes.c_double), None
    return LowRank(library)


def _compile(path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        try:
            subprocess.run([compiler, *_FLAGS, "-o", made, _SOURCE], check=True, capture_output=True, text=True)
        except OSError as error:
            raise CompilerError(f"cannot run the compiler {compiler} ({error.strerror})") from error
        except subprocess.CalledProcessError as error:
            complaint = [line for line in error.stderr.splitlines() if "error" in line]
            raise CompilerError(" ".join([f"{compiler} failed on {_SOURCE.name}:", *complaint[:1]])) from error
        made.replace(path)


def _version() -> str:
    """Return what the compiled file depends on, as a hash: source, flags, compiler and processor."""
    flags = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "model name"))
    ]
    parts = [_SOURCE.read_text(), *_FLAGS, os.environ.get("CXX", "g++"), *sorted(set(flags))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

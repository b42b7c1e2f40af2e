"""Have PyTorch compile the kernels, for any number of rows, and keep what was compiled between runs."""

import functools
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from rlora.errors import CompilerError
from rlora.kernels.attention import Attention
from rlora.kernels.kernels import PLAIN, Kernels
from rlora.kernels.low_rank import LowRank
from rlora.kernels.native import native_library
from rlora.system.processor import has_amx

_RECOMPILATIONS = 64  # of a kernel, for one row, one head and so on; beyond them PyTorch would run it plainly, unasked


@functools.cache
def compiled_kernels(folder: Path, device: torch.device) -> Kernels:
    """Return the kernels compiled for `device`, with what is compiled kept in `folder`.

    Most are compiled at their first use (about a second each, once in the folder's life). One is compiled and compared
    here: raises CompilerError when that fails, as without a C++ compiler or Python's headers.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes of their own, which would stay
    try:
        import torch._dynamo
        import torch._inductor.config
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):  # which is cleared at a restart
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, _RECOMPILATIONS)
        config.specialize_float = True  # scales are constants, not tensors to be made at each call
        torch._inductor.config.cpp.dynamic_threads = False  # vLLM asks for it by a variable that a restart inherits
        names = [field.name for field in fields(Kernels) if callable(getattr(PLAIN, field.name))]
        library = native_library(folder) if device.type == "cpu" else None
        kernels = Kernels(
            **{name: _compiled(getattr(PLAIN, name)) for name in names},
            low_rank=None if library is None else LowRank(library, has_bases=not has_amx()),
            attention=None if library is None or has_amx() else Attention(library),
        )
        values_NH = torch.linspace(-2, 3, 7 * 33, device=device).view(7, 33)
        with torch.no_grad():
            found, expected = (one.gate(values_NH, values_NH) for one in (kernels, PLAIN))
    except CompilerError:
        raise
    except Exception as error:  # whatever a compiler or a loader can do wrong
        raise CompilerError(_reason(error)) from error
    if not torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
        raise CompilerError("a compiled kernel computes something else than the plain one")
    return kernels


def is_in_use() -> bool:
    """Return whether this process has compiled kernels to compute with."""
    return compiled_kernels.cache_info().currsize > 0


def _reason(error: Exception) -> str:
    """Return the first line of an error's message and the compiler's complaint, if it quotes one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Set TORCH")]
    complaint = [line for line in lines[1:] if "error:" in line]
    return " ".join([*lines[:1], *complaint[:1]]) or type(error).__name__


def _compiled(kernel: Any) -> Any:
    compiled = torch.compile(kernel, dynamic=True, fullgraph=True)

    def run(*arguments: Any) -> Any:
        # without what autograd knows of them: tensors that need gradients would be compiled for a second time
        return compiled(*(one.detach() if isinstance(one, torch.Tensor) else one for one in arguments))

    return run

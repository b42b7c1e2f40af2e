"""C++ sources compiled for the processor at hand: where it cannot run them, and where they cannot be compiled."""

import pytest

from rlora.errors import CompilerError
from rlora.kernels import native
from rlora.kernels.native import call, native_library

pytestmark = pytest.mark.unit


def test_a_processor_without_the_instructions_has_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "FLAGS", ("-O1", "-march=x86-64", "-shared", "-fPIC"))
    native_library.cache_clear()
    try:
        assert native_library(tmp_path) is None
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        native_library.cache_clear()


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "FLAGS", ("-fno-such-option",))
    native_library.cache_clear()
    try:
        with pytest.raises(CompilerError, match=r"failed on low_rank\.cpp, attention\.cpp: .*no-such-option"):
            native_library(tmp_path)
        assert not list(tmp_path.iterdir())
    finally:
        native_library.cache_clear()


def test_memory_that_a_product_does_not_find_is_an_error_of_python(library) -> None:
    sizes = [
        1,
        1,
        1,
        1,
        2**41,
        64,
    ]  # threads, rows, heads, key heads, length, head size: 2^49 bytes are asked for first
    with pytest.raises(MemoryError, match="found no memory"):
        call(library.rlora_attend, [*sizes, *[0] * 21], 1.0)

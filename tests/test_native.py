"""C++ sources compiled for the processor at hand: where it cannot run them, and where they cannot be compiled."""

import pytest

from rlora.errors import CompilerError
from rlora.fused import native
from rlora.fused.native import native_library

pytestmark = pytest.mark.unit


def test_a_processor_without_the_instructions_has_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "_FLAGS", ("-O1", "-march=x86-64", "-shared", "-fPIC"))
    native_library.cache_clear()
    try:
        assert native_library(tmp_path) is None
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        native_library.cache_clear()


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "_FLAGS", ("-fno-such-option",))
    native_library.cache_clear()
    try:
        with pytest.raises(CompilerError, match=r"failed on low_rank\.cpp, attention\.cpp: .*no-such-option"):
            native_library(tmp_path)
        assert not list(tmp_path.iterdir())
    finally:
        native_library.cache_clear()

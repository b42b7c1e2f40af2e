"""Fixtures: the toy model in fp32, the shared data folder, one vLLM engine for all tests that need it."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from support.pairwise import mark_the_rest_long
from support.policies import ROOT, TOY_MODEL, make_policy
from support.runs import SIZE, rows, toy

from rlora.kernels.native import native_library
from rlora.loop import run
from rlora.model.sources import cache_dir, load_tokenizer, model_dir
from rlora.tasks.source import VARIABLE
from rlora.train.policy import Policy

torch.set_num_threads(1)  # tiny products: a second thread only waits


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_the_rest_long(items)


@pytest.fixture(scope="session")
def toy_dir() -> Path:
    return model_dir(TOY_MODEL)


@pytest.fixture(scope="session")
def toy_tokenizer(toy_dir):
    return load_tokenizer(toy_dir, TOY_MODEL)


@pytest.fixture(scope="session")
def library() -> Any:
    """Return the compiled C++ sources."""
    found = native_library(cache_dir() / "compiled")
    if found is None:
        pytest.skip("this processor has no AVX-512 BF16")
    return found


@pytest.fixture
def toy_policy(toy_dir) -> Policy:
    return make_policy(toy_dir)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Return a run of five steps that was never stopped."""
    run_dir = run(toy(tmp_path_factory.mktemp("straight") / "run", **SIZE))
    assert [row["optimizer/is_empty_batch"] for row in rows(run_dir)] == [0.0] * 5
    return run_dir


@pytest.fixture(scope="session")
def data_dir() -> Path:
    for folder in (os.environ.get(VARIABLE), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip(f"no shared data: set {VARIABLE} to the folder that holds gsm8k/, math/, aime/")

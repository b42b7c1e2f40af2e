"""What `--sampler.exact` sets before a GPU is used, and what is said and kept where a GPU does not repeat its bits."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.policies import ROOT
from support.runs import toy
from support.training import ADVANTAGES, SGD_LIKE, groups

from rlora import assemble
from rlora.config import filled
from rlora.errors import ConfigError
from rlora.loop import run
from rlora.sampler.base import SamplerConfig
from rlora.system.exactness import deterministic, make_exact
from rlora.system.processor import has_amx
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.card import GIB
from rlora.train.losses import LossConfig
from rlora.train.memory_plan import MemoryPlan
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer


@pytest.mark.unit
def test_exactness_is_refused_once_the_gpu_is_in_use(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"sampler\.exact must be known before anything is computed on the GPU"):
        make_exact()


@pytest.mark.loop
def test_a_run_sets_it_before_a_model_is_loaded(tmp_path) -> None:
    """In a process of its own, since what is set stays."""
    code = """
import os, sys
import torch
from rlora import site
from rlora.model.base import Base
from rlora.system import screen
load, make_exact = Base.load.__func__, site.make_exact

def pretending_that_there_is_a_gpu():
    is_available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    make_exact()
    torch.cuda.is_available = is_available

def seen(cls, *args, **options):
    screen.say(os.environ["VLLM_BATCH_INVARIANT"] + " " + os.environ["CUBLAS_WORKSPACE_CONFIG"])
    return load(cls, *args, **options)

site.make_exact, Base.load = pretending_that_there_is_a_gpu, classmethod(seen)
sys.argv = ["arithmetic.py", "--preset", "toy", "--run-dir", sys.argv[1], "--num-steps", "1", "--sampler.exact", "True"]
import runpy
runpy.run_path("recipes/arithmetic.py", run_name="__main__")
"""
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_BATCH_INVARIANT"}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 :16:8" in done.stderr


EXACT_PRODUCTS = """
import sys
import torch
from rlora.errors import ConfigError
from rlora.system.exactness import are_rows_alike, make_exact
if sys.argv[1] == "late":
    torch.nn.functional.linear(torch.ones(8, 64).bfloat16(), torch.ones(64, 64).bfloat16())
try:
    make_exact()
    print("alike" if are_rows_alike() else "differ")
except ConfigError as error:
    print(error)
"""


@pytest.mark.unit
@pytest.mark.parametrize("moment", ["early", "late"])
def test_an_exact_run_multiplies_few_rows_like_many(moment) -> None:
    """With AMX they have other bits, and what multiplies cannot be changed once it has started; others are exact."""
    done = subprocess.run([sys.executable, "-c", EXACT_PRODUCTS, moment], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if moment == "late" and has_amx():
        assert "sampler.exact must be known before anything is computed: give the run a process" in done.stdout
    else:
        assert done.stdout.split() == ["alike"]


@pytest.mark.unit
@pytest.mark.parametrize("is_exact", [False, True])
def test_passes_of_an_exact_run_take_deterministic_kernels(toy_policy, monkeypatch, is_exact) -> None:
    seen, score = [], Policy.score

    def noted(self, micro_batch, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return score(self, micro_batch, **options)

    monkeypatch.setattr(Policy, "score", noted)
    trainer = Trainer(toy_policy, SGD_LIKE, LossConfig(), is_exact=is_exact)
    trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    assert set(seen) == {is_exact}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.unit
def test_deterministic_kernels_are_left_as_they_were_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), deterministic(is_on=True):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def gpu_of_24_gb(toy_policy, monkeypatch):
    """Pretend that there is a GPU of 24 GiB with 20 free; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))


@pytest.mark.loop
def test_a_run_that_goes_on_keeps_the_sizes_of_its_engine(toy_policy, toy_dir, gpu_of_24_gb, tmp_path, capsys) -> None:
    config = toy(tmp_path / "run", sampler=SamplerConfig(kind="vllm", kv_cache_gb=0, max_num_seqs=0))
    fresh = assemble.plan_of(config, toy_dir, toy_policy)
    assert isinstance(fresh, MemoryPlan)
    kept = {"cache_bytes": fresh.cache - 4096, "num_sequences": 24}
    going_on = assemble.plan_of(config, toy_dir, toy_policy, engine=kept)
    assert isinstance(going_on, MemoryPlan)
    assert going_on.engine == kept
    assert capsys.readouterr().err == ""
    too_much = {"cache_bytes": 30 * GIB, "num_sequences": 24}
    other = assemble.plan_of(config, toy_dir, toy_policy, engine=too_much)
    assert isinstance(other, MemoryPlan)
    assert other.engine == fresh.engine
    assert "do not fit here any more" in capsys.readouterr().err


@pytest.mark.loop
def test_a_run_of_a_version_without_the_new_fields_goes_on(tmp_path) -> None:
    """Fields that did not exist yet had the value that is their default now."""
    config = toy(tmp_path / "run", num_steps=1)
    run(config)
    stored = tmp_path / "run" / "config.json"
    values = json.loads(stored.read_text())
    del values["sampler"]["exact"]
    stored.write_text(json.dumps(values))
    run(replace(config, num_steps=2))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.unit
def test_missing_fields_are_filled_at_every_depth() -> None:
    defaults = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": None}
    assert filled({"a": 5, "b": {"d": {}}}, defaults) == {"a": 5, "b": {"c": 2, "d": {"e": 3}}, "f": None}
    assert filled({"f": {"x": 1}}, defaults)["f"] == {"x": 1}

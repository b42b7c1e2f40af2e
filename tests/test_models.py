import json
from types import SimpleNamespace

import pytest
import torch

from rlora.errors import ConfigError
from rlora.models import ModelConfig, end_token_ids, gpu_kv_cache_bytes, make_toy

pytestmark = pytest.mark.unit
GIB = 2**30


def test_every_end_token_of_the_generation_config_counts(tmp_path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert end_token_ids(tmp_path, SimpleNamespace(eos_token_id=9)) == (5, 7, 9)


def test_a_model_that_cannot_stop_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="names no end-of-sequence token; completions could never end"):
        end_token_ids(tmp_path, SimpleNamespace(eos_token_id=None))


def test_the_toy_model_is_the_same_each_time(tmp_path) -> None:
    for name in ("a", "b"):
        make_toy(tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_memory_of_one_gpu_is_split_by_the_models_size(tmp_path, monkeypatch) -> None:
    """24 GiB, a model of 3 GiB: 10 % stays free, two copies and 4 GiB for batches leave 11.6 GiB; 16 GiB do not fit."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(total_memory=24 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert gpu_kv_cache_bytes(tmp_path, ModelConfig()) == int(0.9 * 24 * GIB) - 10 * GIB
    with pytest.raises(
        ConfigError, match="its optimizer, and its batches"
    ):  # 18 bytes more a weight of 2 bytes: 27 GiB
        gpu_kv_cache_bytes(tmp_path, ModelConfig(), is_full=True)
    card.total_memory = 48 * GIB
    assert gpu_kv_cache_bytes(tmp_path, ModelConfig(), is_full=True) == int(0.9 * 48 * GIB) - 37 * GIB
    card.total_memory = 12 * GIB
    with pytest.raises(ConfigError, match=r"12.0 GiB of GPU memory cannot hold two copies of a 3.0 GiB model"):
        gpu_kv_cache_bytes(tmp_path, ModelConfig())


def test_a_cache_sized_by_the_gpu_needs_one(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"sampler\.kv_cache_gb is 0, .* there is no GPU; try 1"):
        gpu_kv_cache_bytes(tmp_path, ModelConfig())

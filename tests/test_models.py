import json
from types import SimpleNamespace

import pytest
import torch

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.models import ModelConfig, end_token_ids, gpu_room, make_toy
from rlora.sampler.base import SamplerConfig, check_servable

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


def test_what_a_gpu_leaves_for_cache_and_batches(tmp_path, monkeypatch) -> None:
    """Of 24 GiB 20 are free; 2.4 stay free, and a model of 3 GiB leaves 14.6; with 7 free too little is left."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))
    assert gpu_room(tmp_path, ModelConfig()) == 17 * GIB - 24 * GIB // 10
    assert gpu_room(tmp_path, ModelConfig(dtype="float32")) == 14 * GIB - 24 * GIB // 10
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * GIB, 24 * GIB))
    with pytest.raises(ConfigError, match=r"7.0 GiB of GPU memory are free, which cannot hold .* a 3.0 GiB model"):
        gpu_room(tmp_path, ModelConfig())


def test_fp32_adapters_are_refused_where_vllm_serves_on_a_gpu(monkeypatch) -> None:
    """On an H100 vLLM 0.26 ended on `assert inputs.dtype in [torch.float16, torch.bfloat16]`."""
    vllm, fp32 = SamplerConfig(kind="vllm"), ModelConfig(dtype="float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="vLLM's adapter kernels for GPUs take 16-bit numbers only"):
        check_servable(LoraConfig(), vllm, fp32)
    check_servable(LoraConfig(), vllm, ModelConfig())
    check_servable(None, vllm, fp32)
    check_servable(LoraConfig(), SamplerConfig(kind="torch"), fp32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_servable(LoraConfig(), vllm, fp32)


def test_a_cache_sized_by_the_gpu_needs_one(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"sampler\.kv_cache_gb is 0, .* there is no GPU; try 1"):
        gpu_room(tmp_path, ModelConfig())

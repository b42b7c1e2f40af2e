import json
from types import SimpleNamespace

import pytest
import torch

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig, config_dir, end_token_ids, make_toy, model_dir
from rlora.sampler.base import SamplerConfig
from rlora.sampler.capabilities import check_servable

pytestmark = pytest.mark.unit


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


def test_a_model_can_be_described_without_its_weights(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = ModelConfig(name=str(tmp_path))
    assert config_dir(config) == tmp_path
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        model_dir(config)

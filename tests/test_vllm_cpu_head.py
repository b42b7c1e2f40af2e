"""The fp32 head in place of that of vLLM's CPU build, without an engine."""

from types import SimpleNamespace

import pytest
import torch

from rlora.sampler.base import is_vllm_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="for vLLM's CPU build"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM and what it imports
]


def test_logits_are_those_of_fp32_and_the_same_for_any_number_of_rows() -> None:
    from rlora.sampler.vllm.cpu_head import apply_head

    torch.manual_seed(0)
    head = SimpleNamespace(weight=(torch.randn(4096, 576) / 24).bfloat16())
    hidden = torch.randn(64, 576).bfloat16()

    def logits(rows, bias=None):
        return apply_head(SimpleNamespace(head_dtype=torch.float32), head, rows, bias)

    whole = logits(hidden)
    torch.testing.assert_close(whole, hidden.float() @ head.weight.float().T, rtol=1e-4, atol=1e-5)
    for num_rows in (*range(1, 13), 33):
        assert torch.equal(logits(hidden[:num_rows]), whole[:num_rows])
    bias = torch.randn(4096).bfloat16()
    torch.testing.assert_close(logits(hidden, bias), whole + bias.float(), rtol=1e-4, atol=1e-5)


def test_one_engine_alone_computes_so() -> None:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    from rlora.sampler.vllm.cpu_head import apply_head, give_to

    with set_current_vllm_config(VllmConfig()):
        models = [torch.nn.Sequential(LogitsProcessor(100)) for _ in range(2)]
    give_to(models[0])
    given, other = (model[0]._apply_head.__func__ for model in models)
    assert given is apply_head
    assert other is LogitsProcessor._apply_head

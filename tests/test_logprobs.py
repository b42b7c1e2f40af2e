import pytest
import torch

from rlora.model import logprobs
from rlora.model.logprobs import token_logprobs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [3, 256])
def test_values_and_gradient_equal_log_softmax(monkeypatch, temperature, chunk) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    hidden, head = torch.randn(10, 8, requires_grad=True), torch.randn(50, 8)
    targets, weights = torch.randint(0, 50, (10,)), torch.randn(10)
    values, entropy = token_logprobs(hidden, head, targets, temperature=temperature)
    (values * weights).sum().backward()

    reference = hidden.detach().clone().requires_grad_()
    log_p = (reference @ head.T / temperature).log_softmax(-1)
    expected = log_p[torch.arange(10), targets]
    (expected * weights).sum().backward()
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(hidden.grad, reference.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_low_products_are_as_good_as_one_in_fp32(dtype) -> None:
    torch.manual_seed(0)
    hidden, head = (3 * torch.randn(40, 256)).to(dtype), (torch.randn(300, 256) / 4).to(dtype)
    exact = hidden.double() @ head.double().T
    assert exact.abs().max() > 40
    assert (logprobs.logits(hidden, head, torch.float32) - exact).abs().max() < 1e-3
    assert ((hidden @ head.T) - exact).abs().max() > 10 * 1e-3  # one product alone


def test_memory_does_not_hold_logits() -> None:
    hidden, head = torch.randn(600, 8, requires_grad=True), torch.randn(1000, 8)
    values, _ = token_logprobs(hidden, head, torch.zeros(600, dtype=torch.long))
    (jacobian,) = values.grad_fn.saved_tensors
    assert jacobian.shape == hidden.shape


def test_no_tokens_give_no_values() -> None:
    values, entropy = token_logprobs(torch.randn(0, 8), torch.randn(5, 8), torch.zeros(0, dtype=torch.long))
    assert values.shape == entropy.shape == (0,)

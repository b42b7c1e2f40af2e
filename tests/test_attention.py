import pytest
import torch
from torch import nn

from rlora.model.attention import attend, visibility_mask

pytestmark = pytest.mark.unit


def test_completions_see_the_prompt_and_themselves_but_not_each_other() -> None:
    mask = visibility_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_attend_equals_pytorchs_attention_with_shared_key_heads(key_heads) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 6, 5, 4)
    key, value = torch.randn(2, key_heads, 5, 4), torch.randn(2, key_heads, 5, 4)
    mask = visibility_mask(torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]]))
    out, _ = attend(nn.Identity(), query, key, value, mask, 0.5)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.5, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected)


def test_gradients_equal_pytorchs_and_no_scores_are_kept() -> None:
    torch.manual_seed(0)
    sizes = [(2, 6, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)]
    ours = [torch.randn(size, requires_grad=True) for size in sizes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    mask = visibility_mask(torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out, _ = attend(nn.Identity(), *ours, mask, 0.5)
    assert [tuple(tensor.shape) for tensor in kept if tensor.shape[-1] == 5] == [(2, 1, 5, 5)]  # the mask
    expected = nn.functional.scaled_dot_product_attention(*theirs, attn_mask=mask, scale=0.5, enable_gqa=True)
    upstream = torch.randn(out.shape)
    (out * upstream).sum().backward()
    (expected.transpose(1, 2) * upstream).sum().backward()
    for tensor, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad)

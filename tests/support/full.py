"""Full fine-tuning's classes of models, and gradients without rlora."""

import torch
import transformers

from support.training import ADVANTAGES, groups


def reference_gradient(folder, *, temperature: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return the gradient by plain Transformers and autograd: every completion alone, logits at every position."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    total = sum(len(r.completion.token_ids) for group in groups() for r in group.rollouts)
    loss = torch.zeros(())
    for group, advantages in zip(groups(), ADVANTAGES, strict=True):
        start = len(group.prompt.token_ids)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            answer = rollout.completion.token_ids
            logits = model(torch.tensor([[*group.prompt.token_ids, *answer]])).logits[0, start - 1 : -1].float()
            log_p = (logits / temperature).log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
            loss = loss - (advantage * (log_p - torch.tensor(rollout.completion.logprobs)).exp()).sum() / total
    loss.backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


KINDS = [
    ("Llama", {"tie_word_embeddings": True}),
    ("Llama", {"tie_word_embeddings": False}),
    ("Qwen2", {"tie_word_embeddings": True}),  # biases on q, k and v
    ("Qwen3", {"head_dim": 16, "tie_word_embeddings": False}),  # norms on q and k
]

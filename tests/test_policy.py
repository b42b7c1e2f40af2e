"""A policy on other architectures than the toy's, and what it refuses."""

import pytest
import torch
import transformers
from engines import random_b
from make import completion, group

from rlora.batching import BatchConfig, build_batch
from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.models import ModelConfig
from rlora.policy import Policy

pytestmark = pytest.mark.unit

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def folder_of(kind: str, tmp_path, *, seed: int = 0, **options):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **options)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Qwen2", {}),  # biases on q, k and v
        ("Qwen3", {"head_dim": 16}),  # norms on q and k
        ("Mistral", {"sliding_window": None}),
        ("Olmo2", {}),
    ],
)
def test_scores_equal_transformers_own_with_the_adapter_merged(kind, options, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    policy = Policy.load(folder, ModelConfig(dtype="float32"), LoraConfig(rank=2), seeds=[0])
    random_b(policy, scale=0.02)
    prompt, answers = [5, 6, 7], [[9, 8, 30, 31], [40, 3]]
    groups = [group(prompt, [completion(answer) for answer in answers], [1.0, 0.0])]
    (part,) = build_batch(groups, [[0.5, -0.5]], BatchConfig(), version=0).micro_batches
    with torch.no_grad():
        scores = policy.score(part)

    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in policy.flat.tensors().items():
        path, _, factor = name.rpartition(".")
        if factor == "lora_B":
            update = policy.config.scale * tensor @ policy.flat.tensors()[f"{path}.lora_A"]
            merged.get_submodule(path).weight.data += update
    expected = []
    for answer in answers:
        with torch.no_grad():
            log_p = merged(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected += log_p[torch.arange(len(answer)), torch.tensor(answer)].tolist()
    assert scores.logprobs_N.tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0|sliding-window"),
        ("Cohere", {"logit_scale": 0.06}, "logit_scale=0.06"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding-window"),
    ],
)
def test_models_that_would_be_scored_wrongly_are_refused(kind, options, message, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    with pytest.raises(ConfigError, match=message):
        Policy.load(folder, ModelConfig(dtype="float32"), LoraConfig(), seeds=[0])

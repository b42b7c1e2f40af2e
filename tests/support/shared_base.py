"""vLLM's own layers as engines on the CPU."""

from typing import Any

import torch
from torch import nn

from rlora.model.sources import ModelConfig

CPU = torch.device("cpu")


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "olmo2": ("Olmo2Config", {}),
}


def configured(folder, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name=str(folder), dtype=dtype)  # pyright: ignore[reportArgumentType] - one of three names


def logits_of(model) -> torch.Tensor:
    tokens_BT = torch.arange(24).view(2, 12) % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=tokens_BT, attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()).logits


def storages(module: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

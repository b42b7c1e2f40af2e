"""A policy written into the base model's own weights, for servers that take no adapters."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlora.errors import AdapterError
from rlora.lora.config import LoraConfig
from rlora.lora.peft.stored_ranks import is_of_expert
from rlora.lora.variants.experts import projection_weight
from rlora.model.sources import DTYPES, ModelConfig
from rlora.system.files import give_usual_modes
from rlora.train.batching import Row, stack
from rlora.train.losses import k3
from rlora.train.policy import Policy
from rlora.types import Completion

MAX_KL = 1e-4  # nats a token between adapter and merged model, above which the merged weights stay fp32


@torch.no_grad()
def save_merged(
    folder: Path, model: ModelConfig, lora: LoraConfig, tensors: Mapping[str, torch.Tensor], target: Path, dtype: str
) -> None:
    """Write base + scale x B A, computed in fp32 and then rounded to `dtype`, with the tokenizer, as a model folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    merged: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=model.trust_remote_code, use_safetensors=True
    )
    for name in {name.rpartition(".")[0] for name in tensors}:
        a_RI, b_OR = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
        _weight(merged, name).add_(lora.scale_at(len(a_RI)) * b_OR @ a_RI)
    settings = folder / "generation_config.json"
    if settings.is_file():
        merged.generation_config = GenerationConfig()  # Transformers refuses to write some; it is copied as it is
    merged.to(DTYPES[dtype]).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code).save_pretrained(target)
    if settings.is_file():
        shutil.copy(settings, target)
    give_usual_modes(target)


def _weight(model: Any, name: str) -> torch.Tensor:
    """Return the weight (O, I) of the layer or of the expert's projection at a path, as it lies in the model."""
    if is_of_expert(name):
        path, expert, projection = name.rsplit(".", 2)
        experts = model.get_submodule(path)
        if not isinstance(experts, torch.nn.ModuleList):
            return projection_weight(experts, int(expert), projection)
    return model.get_submodule(name).weight


@torch.no_grad()
def mean_kl(
    reference: Policy, merged: Policy, samples: Sequence[tuple[Sequence[int], Completion]], *, temperature: float
) -> float:
    """Return the mean k3 divergence, nats a token, of a merged model from the policy on completions of that policy."""
    if not samples:
        raise AdapterError("there are no rollouts to compare the merged model with the adapter on.")
    values = []
    for prompt, completion in samples:
        row = Row(prompt=tuple(prompt), completions=(completion,), advantages=(0.0,))
        micro_batch = stack([row]).to(reference.device)
        old_N = reference.score(micro_batch, temperature=temperature).logprobs_N
        values.append(k3(old_N, merged.score(micro_batch, temperature=temperature).logprobs_N).cpu())
    return float(torch.cat(values).mean())

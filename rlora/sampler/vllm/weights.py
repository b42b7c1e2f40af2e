"""New weights for an engine that is running, without a restart.

vLLM's own reloading puts the weights of a model folder, tensor by tensor, into the layout of its kernels; copying into
its parameters would not, since the CPU build packs them away. One thing it leaves out: a tied unembedding is packed
from the embedding's weight when the engine starts, and not again on reloading, so it would go on with the old logits.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlora.errors import SamplerError


def put_weights(llm: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Let the engine compute with these weights, named as in the model's files, and forget what it has cached."""
    llm.collective_rpc(_put, args=(weights,))
    if not llm.reset_prefix_cache():
        raise SamplerError("vLLM did not clear its prefix cache, which holds keys and values of the weights before.")


def weights_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a model folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def _put(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    worker.reload_weights(weights_iterator=iter(weights))
    model = worker.model_runner.get_model()
    head, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is not None and embedding is not None and model.config.tie_word_embeddings:
        head.tie_weights(embedding)
        if not torch.cuda.is_available():
            head.quant_method.process_weights_after_loading(head)

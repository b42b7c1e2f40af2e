"""Models of random weights in the shapes of real ones: nothing has to be fetched or carried to a bare machine."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from gpu_stages.stage import ROOT, Context

PEAK_FLOP = 989e12  # a second, bf16, dense, of an H100; "mfu" is against it on any card. 798e12 were reached
_MEAN_TOKENS = 300  # of a completion, as on GSM8K: one token in so many ends it
_TOKENIZER = ROOT / ".gpu" / "tokenizer"  # of the bundled model, where that itself (94 MiB) is not at hand
_QWEN3 = {"kind": "Qwen3Config", "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen3-1.7b": _QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen3-8b": _QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "tie_word_embeddings": False},
    "tiny": _QWEN3
    | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 16, "vocab_size": 49152},
}


def random_model(context: Context, shape: str) -> Path:
    """Return the folder of a model of random weights in a real one's shape (rehearsing: the tiny one), made once."""
    shape = "tiny" if context.is_tiny else shape
    folder, start = context.models / shape, time.perf_counter()
    if (folder / "complete").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(folder, shape)
    _save_tokenizer(folder)
    ends = list(range(0, SHAPES[shape]["vocab_size"], _MEAN_TOKENS))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "bos_token_id": 0}))
    (folder / "complete").touch()
    context.say(model=shape, made_s=round(time.perf_counter() - start, 1))
    return folder


def _save_weights(folder: Path, shape: str) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    fields = dict(SHAPES[shape])
    config = getattr(transformers, fields.pop("kind"))(**fields, dtype="bfloat16", bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if name.endswith("norm.weight") else parameter.normal_(0, 0.02)
    model.cpu().save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _save_tokenizer(folder: Path) -> None:
    from rlora.model.sources import BUNDLED, ModelConfig, model_dir

    source = _TOKENIZER if _TOKENIZER.is_dir() else model_dir(ModelConfig(name=BUNDLED))
    for file in [*source.glob("token*"), *source.glob("chat_template*")]:
        shutil.copy(file, folder)


def toy_model(context: Context) -> Path:
    """Return the folder of rlora's toy model with heads of a size that GPU kernels take, made once."""
    from rlora.model.sources import make_toy

    folder = context.models / "toy"
    if not (folder / "complete").is_file():
        make_toy(folder, head_dim=64)
        (folder / "complete").touch()
    return folder


def flop_per_position(config: Any, *, recompute: bool = False, is_full: bool = False) -> float:
    """Return the operations of a pass over one position in the layers' products.

    Two a weight forward, two backward to the inputs; two more to compute again, and two to the weights' own gradients.
    """
    heads = 2 * config.num_attention_heads * config.head_dim + 2 * config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (heads + 3 * config.intermediate_size)
    return (4 + 2 * recompute + 2 * is_full) * config.num_hidden_layers * layer

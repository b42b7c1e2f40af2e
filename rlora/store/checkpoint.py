"""Checkpoints: everything a run is made of after `step` iterations, in a folder that is whole or not there.

`checkpoints/step-000012/` holds `tensors.safetensors`, `state.json` and, written last, `manifest.json` with the size
and the SHA-256 of both. Only safetensors and JSON are read, so a checkpoint from elsewhere cannot run code. There is no
generator's state in it: all randomness derives from (seed, step, problem, index).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from rlora.errors import CheckpointError, ConfigError
from rlora.lora.flat import FlatVector, Slot, lay_out
from rlora.store.checkpoint_content import check_content
from rlora.system.files import explained, write_folder_atomically
from rlora.system.records import object_in
from rlora.train.optimizer import OptimizerState

FORMAT = 2
_READ = (1, FORMAT)  # 1 had a first axis of one policy
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_PLAIN = ("step", "position", "best", "seconds", "tokens_per_micro_batch", "problems", "config", "environment")
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """How often the whole state is written, and which of it is kept."""

    every: int | None = None
    """Steps between checkpoints. Left out: 1 with adapters, a few megabytes in milliseconds; 10 with --method full,
    whose checkpoint is 12 bytes a weight.
    """
    keep_last: int | None = None
    """Newest checkpoints that are kept. Left out: 3 with adapters, 1 with --method full."""
    keep_every: int | None = None
    """Checkpoints of every n-th step are kept as well, to branch from or to export; 0 keeps none. Left out: 10 with
    adapters, 0 with --method full.
    """
    trajectory: int | None = None
    """Versions of the adapter that are kept, evenly spread over the run, 4 bytes a number each: `rlora report` draws
    from them the path that it took. 0 keeps none. Left out: 32; none with --method full.
    """

    def resolved(self, *, is_full: bool) -> "CheckpointConfig":
        """Return the configuration with what was left out filled in; ConfigError for a path of all weights."""
        if is_full and self.trajectory:
            raise ConfigError(
                f"checkpoint.trajectory is {self.trajectory}: only versions of adapters are kept, and --method full "
                "trains all weights. Leave it out; --checkpoint.keep-every keeps whole checkpoints."
            )
        default = (10, 1, 0, 0) if is_full else (1, 3, 10, 32)
        given = (self.every, self.keep_last, self.keep_every, self.trajectory)
        every, last, n_th, path = (d if g is None else g for g, d in zip(given, default, strict=True))
        return CheckpointConfig(every=every, keep_last=last, keep_every=n_th, trajectory=path)

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        every, last, n_th = (1 if v is None else v for v in (self.every, self.keep_last, self.keep_every))
        if every < 1 or last < 1 or n_th < 0:
            raise ConfigError(
                "checkpoint.every and checkpoint.keep_last must be at least 1, checkpoint.keep_every at least 0."
            )
        if self.trajectory is not None and (self.trajectory < 0 or 0 < self.trajectory < 4):
            raise ConfigError(
                f"checkpoint.trajectory is {self.trajectory}; it must be at least 4 versions, or 0 for none. Try 32."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A run after `step` iterations.

    `slots` says where each tensor lies in the vector, `position` is that of the problem stream, `best` the best
    held-out accuracy so far (-1: none), `seconds` what the steps took, `tokens_per_micro_batch` what memory has allowed
    so far, `problems` the fingerprint of the training set, `solved_P2` the curriculum's counts of right and wrong
    rollouts of each problem (None without a curriculum), `engine` what a memory plan gave the sampler: the bytes of its
    cache and the completions at once, on which batches and so bits depend (empty where memory did not decide), `tally`
    what is counted over the steps (`rlora.tracking.tally`; None in checkpoints of before).
    """

    step: int
    slots: tuple[Slot, ...]
    theta_D: torch.Tensor
    optimizer: OptimizerState
    position: int
    best: float
    seconds: float
    tokens_per_micro_batch: int
    problems: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    solved_P2: torch.Tensor | None = None
    engine: Mapping[str, int] = field(default_factory=dict)
    tally: Mapping[str, Any] | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the policy's tensors by name."""
        return {slot.name: FlatVector.view(self.theta_D, slot).clone() for slot in self.slots}


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path, config: CheckpointConfig | None = None):
        """Read and write checkpoints in `path`, which need not exist yet."""
        self.path, self._config = path, (config or CheckpointConfig()).resolved(is_full=False)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, whole or not, in order."""
        try:
            folders = [entry.name for entry in self.path.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            if isinstance(error, NotADirectoryError) and not self.path.exists():  # something above it is a file
                return []
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        return sorted(int(match[1]) for name in folders if (match := _NAME.fullmatch(name)))

    def folder(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.path / f"step-{step:06d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove those that need not be kept; WriteError when the disk refuses.

        One of this step that is there already is kept: it is the one that the run went on from.
        """
        if self.folder(checkpoint.step).is_dir():
            return
        content = {_TENSORS: tensors_to_bytes(_tensors(checkpoint)), _STATE: _state(checkpoint)}
        with write_folder_atomically(self.folder(checkpoint.step)) as folder:
            for name, data in content.items():
                (folder / name).write_bytes(data)
            manifest = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in content.items()}
            (folder / _MANIFEST).write_text(json.dumps({"format": FORMAT, "files": manifest}, indent=2) + "\n")
        self._prune()

    def _prune(self) -> None:
        steps, keep_last, keep_every = self.steps(), self._config.keep_last, self._config.keep_every
        assert keep_last is not None
        for step in steps[:-keep_last]:
            if not (keep_every and step % keep_every == 0):
                self._remove(step)

    def load(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step; CheckpointError says what is wrong with it."""
        folder = self.folder(step)
        if not folder.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.path} has no checkpoint of step {step}; there are: {there}.")
        content, written_as = _verified(folder)
        try:
            state = object_in(content[_STATE])
            tensors = tensors_from_bytes(content[_TENSORS])
            if written_as == 1:
                tensors |= {
                    f"{name}_D": tensors[f"{name}_KD"][0] for name in ("theta", "first_moment", "second_moment")
                }
                (state["num_updates"],) = state["num_updates_K"]
            check_content(state, tensors, step=step)
            return Checkpoint(
                step=state["step"],
                slots=lay_out({name: tuple(shape) for name, shape in state["layout"].items()}),
                theta_D=tensors["theta_D"],
                optimizer=OptimizerState(
                    first_moment_D=tensors["first_moment_D"],
                    second_moment_D=tensors["second_moment_D"],
                    num_updates=state["num_updates"],
                ),
                solved_P2=tensors.get("solved_P2"),
                engine=state.get("engine", {}),
                tally=state.get("tally"),
                **{name: state[name] for name in _PLAIN if name != "step"},
            )
        except KeyError as error:
            raise CheckpointError(f"{folder} lacks what a checkpoint needs: {error}.") from error
        except (TypeError, ValueError, AttributeError, IndexError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is whole, but wrong inside: {error}.") from error

    def newest(self, on_damaged: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
        """Return the newest whole checkpoint, telling `on_damaged` of each that is not; None where there is none.

        Raises CheckpointError when there are some and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                on_damaged(f"The checkpoint of step {step} cannot be used: {error}")
        if steps:
            raise CheckpointError(f"{self.path} holds {len(steps)} checkpoints and all are damaged; start another run.")
        return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a run that goes on from `step` writes them again."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _remove(self, step: int) -> None:
        with explained(self.folder(step)):
            shutil.rmtree(self.folder(step))


def _tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {
        "theta_D": checkpoint.theta_D.contiguous(),
        "first_moment_D": checkpoint.optimizer.first_moment_D.contiguous(),
        "second_moment_D": checkpoint.optimizer.second_moment_D.contiguous(),
    }
    return tensors if checkpoint.solved_P2 is None else tensors | {"solved_P2": checkpoint.solved_P2}


def _state(checkpoint: Checkpoint) -> bytes:
    state = {name: getattr(checkpoint, name) for name in _PLAIN}
    state["layout"] = {slot.name: list(slot.shape) for slot in checkpoint.slots}
    state["engine"] = dict(checkpoint.engine)
    state["tally"] = None if checkpoint.tally is None else dict(checkpoint.tally)
    state["num_updates"] = checkpoint.optimizer.num_updates
    return (json.dumps(state, indent=2) + "\n").encode()


def _verified(folder: Path) -> tuple[dict[str, bytes], int]:
    """Return the files of a checkpoint's manifest, and its format; CheckpointError for one that is missing, cut short
    or changed.
    """
    try:
        manifest = object_in((folder / _MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {_MANIFEST}: it was not finished.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _MANIFEST} is damaged: {error}") from error
    if manifest.get("format") not in _READ:
        raise CheckpointError(
            f"{folder} is of format {manifest.get('format')!r}; this version of rlora reads format {FORMAT} and older. "
            "Use the one that wrote it."
        )
    content = {}
    for name in (_TENSORS, _STATE):
        try:
            expected = dict(manifest["files"][name])
            data = (folder / name).read_bytes()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / _MANIFEST} is damaged: it lacks {name}.") from error
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}.") from error
        if len(data) != expected.get("bytes"):
            raise CheckpointError(f"{folder / name} has {len(data)} bytes, its manifest says {expected.get('bytes')}.")
        if _digest(data) != expected.get("sha256"):
            raise CheckpointError(f"{folder / name} was changed: its SHA-256 is not the manifest's.")
        content[name] = data
    return content, manifest["format"]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

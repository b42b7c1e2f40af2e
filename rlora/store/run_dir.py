"""The folder of a run: everything a person needs to judge it, and the check that it is not another run's.

`run.json  config.json  environment.json  metrics.jsonl  rollouts/  checkpoints/  trajectory/  adapter/  adapter-best/
summary.json  log.txt  lock`; with full fine-tuning `model/` and `model-best/` in place of the adapters. `log.txt` is
what libraries wrote, a part for each start (`rlora.system.screen`); `end.json` is there while an error is what ended
the run.
"""

import json
import math
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlora.config import differences, filled
from rlora.errors import RloraError, RunDirError
from rlora.full.weights import WEIGHTS_FILE, Snapshot, save_weights
from rlora.lora.adapter import Adapter
from rlora.lora.peft.peft_format import CONFIG_FILE as ADAPTER_CONFIG
from rlora.lora.peft.peft_format import TENSOR_FILE, save_adapter, scale_fields
from rlora.store.claim import CONFIG_FILE, claim
from rlora.store.environment import environment
from rlora.store.rollouts import RolloutFolder, RolloutsConfig
from rlora.store.token_values import TokenValues
from rlora.system.files import explained, write_atomically
from rlora.system.records import line_of, object_in, rows_in
from rlora.system.screen import say
from rlora.system.stamp import write_stamp
from rlora.types import Group

METRICS_FILE = "metrics.jsonl"
END_FILE = "end.json"
"""Why a run ended before its end: the error, its message and the finished steps; gone once the run goes on."""
SIZES = "sizes"
"""What `environment.json` states of the base and the data beside digests: model_type, hidden_size, num_train."""
_WAY_OUT = (
    "Put the file back as it was, or move it away: it is a log, and a run goes on from its checkpoints without the "
    "rows of earlier steps."
)


class RunDir:
    """Paths and writers of one run directory, held by one process at a time."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        may_change: Collection[str] = (),
        extends: Collection[str] = (),
        parent: str | None = None,
        defaults: Mapping[str, Any] = MappingProxyType({}),
        inputs: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        sizes: Mapping[str, Any] = MappingProxyType({}),
        rollouts: RolloutsConfig | None = None,
    ):
        """Claim `path` for a run of this configuration: a new one, or the one that it holds and that goes on.

        `may_change` names the fields (or the sections of fields) in which the two may differ, `extends` those of them
        that give a finished run more to do: one that differs in others alone is left as it is. `parent` says what a new
        run branches from; `defaults` are those of fields that did not exist yet when an old run began; `inputs` are the
        digests of what it is given, `base` and `data`, which are stated beside what it leaves, and so are its `sizes`,
        of the base and of the data; `rollouts` says which of those are kept. Raises RunDirError
        when another process writes there, when it holds a run that differs in other fields (naming them), or something
        else than a run. A run that finished no step is nobody's: one that differs takes its place.
        """
        self.path, stored, self._inputs, self._sizes = path, path / CONFIG_FILE, inputs, dict(sizes)
        self.rollouts = RolloutFolder(path / "rollouts", rollouts)
        self._lock = claim(path, holds="a run directory", option="--run-dir")
        try:
            old = read_json(stored) if stored.is_file() else None
            if old is not None:
                old = filled(old, defaults)
                if changed := [line for line in differences(old, dict(config)) if not _is_allowed(line, may_change)]:
                    if has_begun(path):
                        raise _belongs_to_another(path, changed)
                    say(f"{path} held a run that finished no step; this one takes its place.")
                    _remove_leftovers(path)
            has_more = old is None or any(_is_allowed(line, extends) for line in differences(old, dict(config)))
            self.is_finished = not has_more and (path / "summary.json").is_file()
            if not self.is_finished:
                write_json(stored, config)  # first, since it is what makes the folder a run's
            if not (path / "run.json").is_file():
                about = {"id": uuid.uuid4().hex[:12], "created": _now(), "parent": parent}
                write_json(path / "run.json", about)
            if not isinstance(read_json(path / "run.json").get("id"), str):
                raise RunDirError(f"{path / 'run.json'} holds no id. Is the run directory damaged?")
        except OSError as error:
            self._lock.release()
            if isinstance(error, RloraError):
                raise
            raise RunDirError(f"{path} cannot be used: {error}. Is it another user's?") from error
        except BaseException:
            self._lock.release()
            raise

    def check_in_place(self) -> None:
        """Raise WriteError where the directory was moved or removed; call before anything is written into it."""
        self._lock.check_in_place()

    def close(self) -> None:
        """Let another process write here, once the rollouts that were handed over are written."""
        self.rollouts.close()
        self._lock.release()

    @property
    def run_id(self) -> str:
        """An identifier of the run that stays when it is resumed."""
        return str(read_json(self.path / "run.json")["id"])

    def begin(self, step: int) -> list[str]:
        """Drop what a run that goes on from `step` will write again; return what differs from where it ran before.

        A killed run may have written rows and rollouts of later steps than its last checkpoint. RunDirError for a log
        that ends before it.
        """
        for name in ("summary.json", END_FILE):
            with explained(self.path / name):
                (self.path / name).unlink(missing_ok=True)
        file = self.path / METRICS_FILE
        rows, is_as_written = _metrics_in(file)
        kept = [row for row in rows if row["step"] < step]
        if kept and kept[-1]["step"] != step - 1:
            raise RunDirError(
                f"{file} ends with step {kept[-1]['step']}, and the run goes on from step {step}. {_WAY_OUT}"
            )
        if not is_as_written or len(kept) < len(rows) or not file.exists():
            with write_atomically(file) as path:
                path.write_text("".join(f"{line_of(row)}\n" for row in kept), encoding="utf-8")
        self.rollouts.remove_from(step)
        here, stored = environment(), self.path / "environment.json"
        before = read_json(stored) if stored.is_file() and step > 0 else here
        write_json(stored, self.environment() | ({SIZES: self._sizes} if self._sizes else {}))
        stated = (SIZES, *self._inputs)
        return differences({name: value for name, value in before.items() if name not in stated}, here)

    def environment(self) -> dict[str, Any]:
        """Return what the run's figures depend on beside its configuration: the machine, the software, the inputs."""
        return environment() | dict(self._inputs)

    def rows(self) -> list[dict[str, float]]:
        """Return the metrics of the finished steps."""
        return metrics_rows(self.path)

    def save_rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """Have a step's rollouts written, one JSON line each, with everything that was said and judged.

        They are on disk once `rollouts.flush` returned.
        """
        self.check_in_place()
        self.rollouts.save(step, groups)

    def save_token_values(self, step: int, values: TokenValues) -> None:
        """Have what is known of the tokens of a step's rollouts written beside them."""
        self.rollouts.save_tokens(step, values.to_bytes())

    def save_policy(self, snapshot: Snapshot, *, is_best: bool = False) -> Path:
        """Write the newest (or best) policy into `adapter/`, in PEFT format, or into `model/` where all is trained."""
        self.check_in_place()
        name = "adapter" if isinstance(snapshot, Adapter) else "model"
        folder = self.path / (f"{name}-best" if is_best else name)
        write_snapshot(snapshot, folder, base=self._inputs.get("base", {}))
        return folder

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Write the error that ends the block into `end.json`, where the directory can still be written."""
        try:
            yield
        except RloraError as error:
            with suppress(RloraError, OSError):
                self.check_in_place()
                found = {"error": type(error).__name__, "message": str(error), "num_steps": len(self.rows())}
                write_json(self.path / END_FILE, found)
            raise

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        self.check_in_place()
        write_json(self.path / "summary.json", summary)


def write_snapshot(snapshot: Snapshot, folder: Path, *, base: Mapping[str, str]) -> None:
    """Write an adapter or a model, and beside it which version it is of which base, with the digest of its numbers."""
    values: dict[str, Any] = {"version": snapshot.version, "base_model": snapshot.base_model, "base": dict(base)}
    if isinstance(snapshot, Adapter):
        save_adapter(snapshot, folder)
        values |= scale_fields(read_json(folder / ADAPTER_CONFIG))
    else:
        save_weights(snapshot, folder)
    write_stamp(folder, TENSOR_FILE if isinstance(snapshot, Adapter) else WEIGHTS_FILE, values)


def has_begun(run_dir: Path) -> bool:
    """Return whether a run has finished a step, by its checkpoints or by its metrics."""
    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    has_step = checkpoints.is_dir() and any(entry.name != "step-000000" for entry in checkpoints.iterdir())
    return has_step or (metrics.is_file() and metrics.stat().st_size > 0)


def _remove_leftovers(run_dir: Path) -> None:
    for name in ("checkpoints", "trajectory", "rollouts", "adapter", "adapter-best", "model", "model-best"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in ("run.json", "environment.json", "summary.json", END_FILE):
        (run_dir / name).unlink(missing_ok=True)


def _belongs_to_another(path: Path, changed: Sequence[str]) -> RunDirError:
    return RunDirError(
        f"{path} belongs to a run of another configuration; it differs in\n  " + "\n  ".join(changed) + "\n"
        "Set them back to go on with it, choose another --run-dir, or start a new run from one of its steps with "
        "--branch NEW_DIR."
    )


def _is_allowed(line: str, may_change: Collection[str]) -> bool:
    field = line.partition(":")[0]
    return field in may_change or field.partition(".")[0] in may_change


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def metrics_rows(run_dir: Path) -> list[dict[str, float]]:
    """Return the metrics of a run's finished steps; a last line that was cut short by a kill is left out.

    Raises RunDirError, naming the line, for any other that was changed or lost.
    """
    return _metrics_in(run_dir / METRICS_FILE)[0]


def _metrics_in(file: Path) -> tuple[list[dict[str, float]], bool]:
    """Return the rows of a log of metrics, and whether it is whole and has checksums."""
    try:
        rows, is_as_written = rows_in(file)
        for number, row in enumerate(rows, start=1):
            step = row.get("step")
            if type(step) is not int or step < 0:
                raise RunDirError(f"{file} cannot be read: line {number} is no row of a step: step is {step!r}.")
            if number > 1 and step != rows[number - 2]["step"] + 1:
                before = rows[number - 2]["step"]
                raise RunDirError(
                    f"{file} cannot be read: line {number} is of step {step}, the one before of {before}."
                )
            if wrong := [name for name, value in row.items() if not _is_number(value)]:
                raise RunDirError(f"{file} cannot be read: line {number}: {wrong[0]} is {row[wrong[0]]!r}, no number.")
    except RunDirError as error:
        raise RunDirError(f"{error} {_WAY_OUT}") from error
    return rows, is_as_written


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rollout_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rollouts in a file of a step; RunDirError, naming the line, where it was changed or cut."""
    return rows_in(file, may_be_cut=False)[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run directory; RunDirError when it is damaged."""
    try:
        return object_in(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RunDirError(f"{path} cannot be read: {error}. Is the run directory damaged?") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON for people to read, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

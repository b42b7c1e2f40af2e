"""What a run left in its directory, read back for a script or a notebook."""

import shutil
from pathlib import Path
from typing import Any

from rlora.errors import RunDirError
from rlora.full.weights import WEIGHTS_FILE
from rlora.lora.peft.peft_format import TENSOR_FILE
from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import metrics_rows, read_json, rollout_rows
from rlora.system.stamp import check_stamp


class Results:
    """A run directory, of a run that is finished or still going on.

    Example:
        >>> results = Results(Path("runs/arithmetic"))
        >>> results.rollouts(step=0)[0]["reward"]
        1.0
    """

    def __init__(self, path: Path | str):
        """Read from `path`; RunDirError where no run is."""
        self.path = Path(path).expanduser()
        if not (self.path / "run.json").is_file():
            raise RunDirError(f"{self.path} is not a run directory.")

    def __repr__(self) -> str:
        """Name the directory."""
        return f"Results({str(self.path)!r})"

    def metrics(self) -> list[dict[str, float]]:
        """Return the metrics of the finished steps, in order (docs/metrics.md)."""
        return metrics_rows(self.path)

    def summary(self) -> dict[str, Any]:
        """Return the scores of base and policy on held-out problems; RunDirError while the run is not finished."""
        if not (self.path / "summary.json").is_file():
            raise RunDirError(f"{self.path} has no summary.json: the run is not finished.")
        return read_json(self.path / "summary.json")

    def rollouts(self, step: int = -1) -> list[dict[str, Any]]:
        """Return a step's rollouts, the newest step's by default: `question`, `text`, `reward`, `verdict` and more.

        Raises:
            RunDirError: There are none of this step, or a line of them was changed.
        """
        numbers = RolloutFolder(self.path / "rollouts").steps()
        wanted = max(numbers, default=0) if step < 0 else step
        if wanted not in numbers:
            raise RunDirError(f"{self.path} has no rollouts of step {wanted}; there are {len(numbers)} steps.")
        return rollout_rows(numbers[wanted])

    def save_policy(self, folder: Path | str, *, is_best: bool = False) -> Path:
        """Copy the newest (or best) policy into `folder`, which must not exist yet: a PEFT adapter, or a model."""
        names = [f"{name}-best" if is_best else name for name in ("adapter", "model")]
        source = next((self.path / name for name in names if (self.path / name).is_dir()), None)
        if source is None:
            raise RunDirError(f"{self.path} holds neither {names[0]} nor {names[1]}: nothing was trained yet.")
        target = Path(folder).expanduser()
        if target.exists():
            raise RunDirError(f"{target} exists; choose another folder.")
        file = next((name for name in (TENSOR_FILE, WEIGHTS_FILE) if (source / name).is_file()), TENSOR_FILE)
        try:
            check_stamp(source, file, {})
        except (OSError, ValueError) as error:
            raise RunDirError(str(error)) from error
        return Path(shutil.copytree(source, target))

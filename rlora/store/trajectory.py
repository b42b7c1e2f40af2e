"""The path of a policy: its numbers after some steps, evenly spread over the run, for whoever asks how it came there.

`trajectory/step-000012.safetensors` holds `theta_D`, the policy's vector in the layout that the checkpoints state, and
nothing else: a run goes on from checkpoints alone. Which steps are kept follows from the step and from the first one
kept: the first, and the multiples of a stride that doubles whenever there would be too many. So a run that was killed
keeps the same files as one that was not.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save as tensors_to_bytes

from rlora.errors import CheckpointError
from rlora.system.files import explained, write_atomically

TRAJECTORY = "trajectory"
_NAME = re.compile(r"step-(\d{6,})\.safetensors")


class Trajectory:
    """The kept versions of one run's policy."""

    def __init__(self, path: Path, *, most: int = 0, every: int = 1):
        """Keep at most `most` versions in `path`, of steps that are multiples of `every`; 0 keeps none."""
        self.path, self._most, self._every = path, most, every

    def steps(self) -> list[int]:
        """Return the steps of which there is a version, in order."""
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def file(self, step: int) -> Path:
        """Return where the version of a step lies."""
        return self.path / f"step-{step:06d}.safetensors"

    def save(self, step: int, theta_D: torch.Tensor) -> None:
        """Write the version of a step if it is one to keep, and remove those that are no more; WriteError when the disk
        refuses.
        """
        if self._most == 0 or step % self._every:
            return
        there = self.steps()
        first = there[0] if there else step
        stride = self._stride(step, first)
        if step not in there and (step == first or step % stride == 0):
            with write_atomically(self.file(step)) as path:
                path.write_bytes(tensors_to_bytes({"theta_D": theta_D.contiguous()}))
        for old in there:
            if old != first and old % stride:
                self._remove(old)

    def _stride(self, step: int, first: int) -> int:
        """Return the distance of the steps that are kept up to `step`, beside the first."""
        stride = self._every
        while (step - first) // stride + 2 > self._most:
            stride *= 2
        return stride

    def remove_after(self, step: int) -> None:
        """Remove the versions of later steps, which a run that goes on from `step` writes again."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _remove(self, step: int) -> None:
        with explained(self.file(step)):
            self.file(step).unlink(missing_ok=True)

"""What becomes of one member: trained to its end, frozen where it has gone wrong, or stopped since others do better.

Members do not share a fate: one that diverges or collapses is frozen at its best version, and the others do not notice.
What was decided is written beside what it was decided of, so that a cohort that goes on decides the same.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlora.cohort.meeting import Milestone
from rlora.errors import ConfigError, NonFiniteError, RunDirError
from rlora.loop import train
from rlora.resume import BranchPoint
from rlora.run_config import RunConfig
from rlora.state import NO_SCORE, Run
from rlora.store.checkpoint import Checkpoint, CheckpointFolder
from rlora.store.run_dir import read_json, write_json
from rlora.system.files import write_folder_atomically

FATE_FILE = "fate.json"
_PEAK = "peak"  # the folder of a member in which the checkpoint of its best version is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a member is frozen or stopped."""

    halving: tuple[int, ...] = ()
    """Steps after which the worse half by held-out reward stops, and leaves its problems to the others."""
    max_zero_steps: int = 5
    """Steps without any reward, after some were earned, that freeze a member; 0 never does."""
    max_kl: float | None = None
    """The distance from the base, in nats a token, above which a member is frozen; needs --loss.kl-coefficient."""
    rollback: float = 0.0
    """The factor of the learning rate with which a frozen member is tried again from its best version; 0 does not."""

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if any(step < 1 for step in self.halving) or sorted(set(self.halving)) != list(self.halving):
            raise ConfigError(f"--halving {' '.join(map(str, self.halving))}: name steps from 1 on, in order.")
        if self.halving and config.evaluation.num_problems_during_training < 1:
            raise ConfigError("--halving needs held-out problems: --evaluation.num-problems-during-training above 0.")
        if self.max_zero_steps < 0:
            raise ConfigError(f"--max-zero-steps is {self.max_zero_steps}; it must be at least 0.")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ConfigError(f"--max-kl is {self.max_kl}; it must be above 0 nats, or left out.")
        if self.max_kl is not None and config.loss.kl_coefficient == 0:
            raise ConfigError("--max-kl needs the distance from the base, measured with --loss.kl-coefficient above 0.")
        if not 0 <= self.rollback < 1:
            raise ConfigError(f"--rollback is {self.rollback}, a factor of the learning rate below 1. Try 0.5.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """How a member ended before its last step: "frozen" or "stopped" after `step` steps, at `version`, and why.

    `score` is the held-out one by which it was stopped.
    """

    kind: str
    step: int
    version: int
    why: str
    score: float | None


def fate_of(run_dir: Path) -> Fate | None:
    """Return how a member ended early; None for one that did not. RunDirError for a file that does not say."""
    file = run_dir / FATE_FILE
    if not file.is_file():
        return None
    try:
        return Fate(**read_json(file))
    except TypeError as error:
        raise RunDirError(f"{file} does not say how the member ended: {error}.") from error


class Watch:
    """Trains one member, and decides with the others what becomes of it."""

    def __init__(
        self,
        rules: Rules,
        goes_on: Callable[[Milestone], bool],
        decided: Callable[[int], Mapping[str, Any] | None],
        on_step: Callable[[Mapping[str, float]], None],
        name: str,
    ):
        """`goes_on` waits for the others at a milestone, `decided` tells what was decided at one before, if anything
        was, and `on_step` is told each finished step.
        """
        self._rules, self._goes_on, self._decided, self._on_step, self._name = rules, goes_on, decided, on_step, name
        self._num_zero, self._peak = 0, NO_SCORE

    def drive(self, run: Run) -> bool:
        """Train a member until it ends, and return whether it is to be scored.

        One that was frozen and killed before it was scored does its last steps again, which a run that goes on from its
        last checkpoint has dropped, and comes to the same fate.
        """
        (run.folder.path / FATE_FILE).unlink(missing_ok=True)
        self._begin(run)
        steps = train(run)
        while True:
            try:
                values = next(steps, None)
            except NonFiniteError as error:
                return self._freeze(run, str(error))
            if values is None:
                return True
            self._on_step(values)
            if why := self._why_frozen(run, values):
                return self._freeze(run, why)
            if run.progress.step in self._rules.halving and not self._passes(run):
                return False

    def _begin(self, run: Run) -> None:
        """Take up where the checkpoint left the member: its share, its best version, its steps without reward."""
        peaks = self._peaks(run)
        peaks.remove_after(run.progress.step - 1)
        for row in run.folder.rows():
            self._count(row)
            if int(row["step"]) in peaks.steps():
                self._peak = row["reward/mean"]
        for step in self._rules.halving:
            if step <= run.progress.step:
                self._take_share(run, step)

    def _count(self, values: Mapping[str, float]) -> None:
        self._num_zero = 0 if values["reward/mean"] > 0 else self._num_zero + 1

    def _why_frozen(self, run: Run, values: Mapping[str, float]) -> str:
        """Return why the member is to be frozen after this step, "" if it is not; keep its best version."""
        self._count(values)
        rules, reward, sampled_from = self._rules, values["reward/mean"], int(values["step"])
        saved = CheckpointFolder(run.folder.path / "checkpoints").folder(sampled_from)
        if reward > self._peak and saved.is_dir():
            peaks = self._peaks(run)
            if not peaks.folder(sampled_from).is_dir():
                with write_folder_atomically(peaks.folder(sampled_from)) as folder:
                    shutil.copytree(saved, folder, dirs_exist_ok=True)
            for older in peaks.steps():
                if older < sampled_from:
                    shutil.rmtree(peaks.folder(older))
            self._peak = reward
        has_learned = self._peak > 0
        if rules.max_zero_steps and has_learned and self._num_zero >= rules.max_zero_steps:
            return f"it earned nothing in its last {self._num_zero} steps, after a mean reward of {self._peak:.3f}"
        kl = values.get("loss/kl_to_base", 0.0)
        if rules.max_kl is not None and kl > rules.max_kl:
            return f"it is {kl:.3g} nats a token from the base, and {rules.max_kl:g} are allowed"
        return ""

    @staticmethod
    def _peaks(run: Run) -> CheckpointFolder:
        return CheckpointFolder(run.folder.path / _PEAK)

    def _freeze(self, run: Run, why: str) -> bool:
        """Put the member back to its best version, and write down that it stays there."""
        step = run.progress.step
        self._go_back(run)
        self._write(run, "frozen", step, why)
        return True

    def _go_back(self, run: Run) -> None:
        """Let the policy be, and be served as, its best version of which there is a checkpoint, or else the last."""
        best = self._peaks(run).newest() or CheckpointFolder(run.folder.path / "checkpoints").newest()
        if best is not None:
            run.parts.trainer.restore(
                slots=best.slots, theta_D=best.theta_D, optimizer=best.optimizer, version=best.step
            )
        run.parts.hot_swap.swap()
        run.folder.save_policy(run.parts.policy.snapshot())

    def _passes(self, run: Run) -> bool:
        """Score the member, wait until all are scored, and return whether it goes on."""
        step = run.progress.step
        if (decision := self._decided(step)) is not None:
            goes_on = self._name not in decision["stopped"]
        else:
            score = run.held_out().accuracy.mean
            goes_on = self._goes_on(Milestone(step=step, score=score))
            decision = self._decided(step)
            assert decision is not None
        if not goes_on:
            run.save()
            score = decision["scores"][self._name]
            self._write(run, "stopped", step, f"held-out {score:.3f}, in the worse half at step {step}", score)
            return False
        self._take_share(run, step)
        return True

    def _take_share(self, run: Run, step: int) -> None:
        if (decision := self._decided(step)) is not None:
            run.progress.share = decision["share"]

    @staticmethod
    def _write(run: Run, kind: str, step: int, why: str, score: float | None = None) -> None:
        fate = Fate(kind=kind, step=step, version=run.parts.policy.version, why=why, score=score)
        with run.interrupts.held_back():
            write_json(run.folder.path / FATE_FILE, asdict(fate))


def rolled_back(config: RunConfig, factor: float, attempt: int) -> tuple[RunConfig, BranchPoint | None]:
    """Return the run that tries a frozen member again from its best version, at `factor` times its rate.

    None in place of the branch point where that run has begun already. Raises ConfigError where the member has no
    version to go back to.
    """
    old = Path(config.run_dir)
    stem = old.name.rpartition("+back")[0] or old.name
    optimizer = replace(config.optimizer, learning_rate=config.optimizer.learning_rate * factor)
    new = replace(config, run_dir=str(old.with_name(f"{stem}+back{attempt}")), optimizer=optimizer)
    if CheckpointFolder(Path(new.run_dir) / "checkpoints").steps():
        return new, None
    best: Checkpoint | None = CheckpointFolder(old / _PEAK).newest()
    best = best or CheckpointFolder(old / "checkpoints").newest()
    if best is None:
        raise ConfigError(f"{old} has no version to go back to.")
    return new, BranchPoint(run_dir=str(old), checkpoint=replace(best, best=NO_SCORE, seconds=0.0))

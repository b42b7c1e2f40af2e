"""A run as it goes on: what it works with, how far it is, and what is written of it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rlora.assemble import Parts
from rlora.config import to_json
from rlora.evaluation.held_out import Evaluation, evaluate
from rlora.model.sources import ModelConfig
from rlora.rollout import Collection
from rlora.run_config import RunConfig
from rlora.store.checkpoint import Checkpoint, CheckpointConfig, CheckpointFolder
from rlora.store.run_dir import RunDir
from rlora.store.token_values import TokenValues
from rlora.store.trajectory import TRAJECTORY, Trajectory
from rlora.system.interrupts import Interrupts
from rlora.tasks.prompts import PromptConfig
from rlora.tasks.stream import ProblemStream
from rlora.tracking import MetricsLog
from rlora.tracking.tally import Tally, bits_of
from rlora.train.memory_plan import MemoryPlan
from rlora.train.token_log import TrainedTokens
from rlora.train.trainer import TokenCheck
from rlora.types import Group, Problem

NO_SCORE = -sys.float_info.max  # below every score, a user's negative rewards too, and a number in JSON


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is: finished steps, the best held-out score, the steps' seconds, what is counted over them.

    `share` multiplies the problems of a step: above 1 in a cohort once others have stopped and left it theirs.
    """

    step: int = 0
    best: float = NO_SCORE
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    share: float = 1.0

    def has_reached_bound(self, config: RunConfig) -> bool:
        """Return whether the number of steps, or the bound on hours or on reward, ends the run here."""
        is_late = config.stop_after_hours is not None and self.seconds >= 3600 * config.stop_after_hours
        reward, wanted = self.tally.reward, config.stop_at_reward
        is_good = wanted is not None and reward is not None and reward >= wanted
        return self.step >= config.num_steps or (self.step > 0 and (is_late or is_good))


class Resumable(Protocol):
    """What of a configuration says where its run is and what it goes on from: a RunConfig, or a supervised one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def run_dir(self) -> str:
        """Folder of the run."""
        ...

    @property
    def branch(self) -> str | None:
        """The run to start in its place."""
        ...

    @property
    def model(self) -> ModelConfig:
        """The base."""
        ...

    @property
    def prompt(self) -> PromptConfig:
        """How the model is asked."""
        ...

    @property
    def checkpoint(self) -> CheckpointConfig:
        """Which checkpoints are written and kept."""
        ...


def checkpoints_of(config: Resumable) -> CheckpointFolder:
    """Return the run's own checkpoints."""
    return CheckpointFolder(Path(config.run_dir) / "checkpoints", config.checkpoint)


def trajectory_of(config: Resumable) -> Trajectory:
    """Return the versions that are kept of the run's policy."""
    kept = config.checkpoint
    return Trajectory(Path(config.run_dir) / TRAJECTORY, most=kept.trajectory or 0, every=kept.every or 1)


def write_checkpoint(config: Resumable, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of the run, and the policy where its version is one to keep."""
    checkpoints_of(config).save(checkpoint)
    trajectory_of(config).save(checkpoint.step, checkpoint.theta_D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run between two writes: `parts` compute, `stream` and `progress` say where it is, `test` is what it is scored
    on, `folder` and `log` are what it leaves, and `interrupts` wait while something is written.
    """

    config: RunConfig
    parts: Parts
    stream: ProblemStream
    progress: Progress
    test: Sequence[Problem]
    folder: RunDir
    log: MetricsLog
    interrupts: Interrupts

    @property
    def collection(self) -> Collection:
        """How the next step's groups are collected."""
        asked = self.config.collection
        return replace(asked, num_problems=round(self.progress.share * asked.num_problems))

    def is_due(self, every: int | None) -> bool:
        """Return whether something that is done every so many steps is due now; 0 is never."""
        return bool(every) and self.progress.step % (every or 1) == 0

    def save(self) -> None:
        """Write a checkpoint, and the policy in the form that servers read."""
        self.folder.rollouts.flush()  # of the steps before, which a run that goes on from here does not do again
        self.folder.check_in_place()
        with self.interrupts.held_back():
            write_checkpoint(self.config, self.checkpoint())
            self.folder.save_policy(self.parts.policy.snapshot())

    def checkpoint(self) -> Checkpoint:
        """Return everything the run is made of now."""
        policy, trainer, plan = self.parts.policy, self.parts.trainer, self.parts.plan
        return Checkpoint(
            step=self.progress.step,
            slots=policy.flat.slots,
            theta_D=policy.flat.theta_D.cpu(),
            optimizer=trainer.state(),
            position=self.stream.position,
            best=self.progress.best,
            seconds=self.progress.seconds,
            tokens_per_micro_batch=trainer.budget.tokens,
            problems=self.stream.fingerprint,
            config=to_json(self.config),
            environment=self.folder.environment(),
            tally=self.progress.tally.to_json(),
            engine=plan.engine if isinstance(plan, MemoryPlan) else {},
            solved_P2=None if self.stream.solve_rates is None else self.stream.solve_rates.counts_P2.clone(),
        )

    def held_out(self) -> Evaluation:
        """Score the policy greedily on the part of the held-out problems that is scored during training."""
        sampling = replace(self.config.evaluated_sampling, temperature=0.0)
        part = self.test[: self.config.evaluation.num_problems_during_training]
        return evaluate(self.parts.engine, part, sampling, seed=self.config.seed)

    def evaluate(self) -> dict[str, float]:
        """Score the policy, keep it if it is the best so far, and return the metrics."""
        result = self.held_out()
        if result.accuracy.mean > self.progress.best:
            self.folder.save_policy(self.parts.policy.snapshot(), is_best=True)
        self.progress.best = max(self.progress.best, result.accuracy.mean)
        return result.metrics()

    def token_check(self, groups: Sequence[Group], advantages_PG: Sequence[Sequence[float]]) -> TokenCheck:
        """Return what is to see the tokens of a step before the policy is updated by them: the proof, then the disk."""

        def check(tokens: TrainedTokens) -> None:
            self.parts.hot_swap.check_tokens(tokens)
            values = TokenValues.of(groups, advantages_PG, tokens, self.parts.num_bytes_V)
            self.folder.save_token_values(self.progress.step, values)

        return check

    def finish(self, values: dict[str, float]) -> None:
        """Log a step's metrics, with what all rewards so far told, and count it."""
        self.folder.check_in_place()
        if (told := bits_of(values)) is not None:
            values["information/bits"] = bits = self.progress.tally.bits + told
            values["information/bits_per_number"] = bits / self.parts.policy.flat.theta_D.numel()
        with self.interrupts.held_back():
            self.log.write(values)
        self.progress.step += 1
        self.progress.tally.add(values)
        self.progress.seconds += values["seconds/step"]

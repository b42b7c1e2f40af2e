"""A supervised run as it goes on: what it works with, how far it is, and what is written of it."""

from dataclasses import dataclass

from rlora.config import to_json
from rlora.evaluation.log_loss import LogLoss, log_loss
from rlora.state import Progress, write_checkpoint
from rlora.store.checkpoint import Checkpoint
from rlora.store.run_dir import RunDir
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples
from rlora.system.interrupts import Interrupts
from rlora.tasks.examples import Example
from rlora.tasks.stream import Walk
from rlora.tracking import MetricsLog
from rlora.train.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupervisedRun:
    """A run between two writes: `trainer` computes, `walk` and `progress` say where it is, `folder` and `log` are what
    it leaves, and `interrupts` wait while something is written.
    """

    config: SupervisedConfig
    trainer: Trainer
    examples: Examples
    walk: Walk
    progress: Progress
    folder: RunDir
    log: MetricsLog
    interrupts: Interrupts

    @property
    def tested(self) -> tuple[Example, ...]:
        """The held-out examples that are scored."""
        return self.examples.test[: self.config.evaluation.num_examples or None]

    @property
    def has_reached_bound(self) -> bool:
        """Whether the number of updates, or the bound on hours, ends the run here."""
        hours, step = self.config.stop_after_hours, self.progress.step
        is_late = hours is not None and self.progress.seconds >= 3600 * hours
        return step >= self.config.num_steps or (step > 0 and is_late)

    def is_due(self, every: int | None) -> bool:
        """Return whether something that is done every so many steps is due now; 0 is never."""
        return bool(every) and self.progress.step % (every or 1) == 0

    def take(self) -> list[Example]:
        """Return the examples of the next update."""
        return [self.examples.train[self.walk.next()] for _ in range(self.config.examples_per_step)]

    def held_out(self) -> LogLoss:
        """Return the losses of the held-out examples."""
        return log_loss(self.trainer.policy, self.tested, self.trainer.budget)

    def evaluate(self) -> dict[str, float]:
        """Score the policy, keep it if it is the best so far, and return the metrics."""
        return self.keep(self.held_out()).metrics()

    def keep(self, loss: LogLoss) -> LogLoss:
        """Write the policy as the best one where no earlier one scored better, and return its loss."""
        if -loss.nats.mean >= self.progress.best:
            self.folder.save_policy(self.trainer.policy.snapshot(), is_best=True)
            self.progress.best = -loss.nats.mean
        return loss

    def save(self) -> None:
        """Write a checkpoint, and the policy in the form that servers read."""
        self.folder.check_in_place()
        with self.interrupts.held_back():
            write_checkpoint(self.config, self.checkpoint())
            self.folder.save_policy(self.trainer.policy.snapshot())

    def checkpoint(self) -> Checkpoint:
        """Return everything the run is made of now; `best` is the held-out loss with its sign turned."""
        flat = self.trainer.policy.flat
        return Checkpoint(
            step=self.progress.step,
            slots=flat.slots,
            theta_D=flat.theta_D.cpu(),
            optimizer=self.trainer.state(),
            position=self.walk.position,
            best=self.progress.best,
            seconds=self.progress.seconds,
            tokens_per_micro_batch=self.trainer.budget.tokens,
            problems=self.examples.digests["train"],
            config=to_json(self.config),
            environment=self.folder.environment(),
            tally=self.progress.tally.to_json(),
        )

    def finish(self, values: dict[str, float]) -> None:
        """Log an update's metrics and count it."""
        self.folder.check_in_place()
        with self.interrupts.held_back():
            self.log.write(values)
        self.progress.step += 1
        self.progress.tally.add(values)
        self.progress.seconds += values["seconds/step"]

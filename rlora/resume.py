"""Going on: which checkpoint a run starts from, what may differ from when it was written, and what is written next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from rlora.assemble import Parts, Problems
from rlora.config import differences, to_json
from rlora.errors import CheckpointError, ConfigError, RunDirError
from rlora.run_config import RunConfig
from rlora.state import NO_SCORE, Progress, Resumable, Run, checkpoints_of, trajectory_of
from rlora.store.checkpoint import Checkpoint
from rlora.store.claim import CONFIG_FILE
from rlora.store.origin import date_of, inputs_of_run, refuse_other_base, states_date
from rlora.store.run_dir import METRICS_FILE, RunDir, read_json
from rlora.system.interrupts import Interrupts
from rlora.tasks.curriculum import SolveRates
from rlora.tasks.files import own_title
from rlora.tasks.prompts import today
from rlora.tasks.stream import ProblemStream, fingerprint
from rlora.tracking import MetricsLog
from rlora.tracking.tally import Tally

C = TypeVar("C", bound=Resumable)
MAY_CHANGE = (
    "run_dir",
    "preset",
    "data.data_dir",  # a folder may move; the problems themselves are compared by their fingerprint
    "num_steps",
    "stop_after_hours",
    "stop_at_reward",
    "memory_budget",
    "batch.recompute",  # the same bits
    "sampler.share_base",  # the same weights, wherever they lie
    "branch",
    "tracking",
    "evaluation",
    "checkpoint",
    "rollouts",
    "verifier.num_workers",
    "judge.num_workers",
    "judge.on_failure",  # up to here no function of a user's has failed, or it goes on as it did
    "judge.seconds",
    "judge.wall_seconds",
    "judge.memory_mb",
)
EXTENDS = ("num_steps", "stop_after_hours", "stop_at_reward", "evaluation")
_FIXED_IN_A_BRANCH = ("model", "method", "lora")
_NAMES = {  # what names an input
    "base": ("model.name", "model.revision"),
    "data": ("data.train", "data.test", "data.train_title", "data.test_title"),
}
Inputs = Mapping[str, Mapping[str, str]]
"""Digests of what a run is given: `base` by part (rlora/model/identity.py) and `data` by split."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchPoint:
    """The run that a new run starts from, and the checkpoint of it."""

    run_dir: str
    checkpoint: Checkpoint

    def __str__(self) -> str:
        """Return it as `--branch` would name it."""
        return f"{self.run_dir}@{self.checkpoint.step}"


def branched(config: C) -> tuple[C, BranchPoint | None]:
    """Return the configuration with `--branch` carried out: run_dir is the new run's, beside the point it starts from.

    A new run that has checkpoints of its own goes on from those. Raises ConfigError for a branch that cannot be read,
    and CheckpointError when the old run has no such checkpoint, or is of another model or adapter.
    """
    if config.branch is None:
        return config, None
    name, _, at = config.branch.rpartition("@") if "@" in config.branch else (config.branch, "", "")
    if name.isdigit():
        name, at = f"{config.run_dir}-from-{name}", name
    if at and not at.isdigit():
        raise ConfigError(f"branch is {config.branch!r}; it must be NEW_DIR, NEW_DIR@STEP or STEP.")
    if Path(name).resolve() == Path(config.run_dir).resolve():
        raise ConfigError(f"branch is {config.branch!r}, the run itself; name another folder.")
    new = replace(config, run_dir=name, branch=None)
    if checkpoints_of(new).steps():
        return new, None
    return new, BranchPoint(run_dir=config.run_dir, checkpoint=_parent(config, new, int(at) if at else None))


def _parent(old: Resumable, new: Resumable, step: int | None) -> Checkpoint:
    folder = checkpoints_of(old)
    found = folder.newest() if step is None else folder.load(step)
    if found is None:
        raise CheckpointError(f"{old.run_dir} has no checkpoints to branch from; --run-dir must name the old run.")
    here = to_json(new)
    free = _NAMES["base"] if "base" in found.environment else ()  # what they name is compared by `same_inputs`
    changed = [
        line
        for name in _FIXED_IN_A_BRANCH
        for line in differences(found.config.get(name), here[name], name)
        if line.partition(":")[0] not in free
    ]
    if changed:
        raise CheckpointError(
            f"a branch keeps the model and the adapter of {old.run_dir}, but these differ:\n  "
            + "\n  ".join(changed)
            + "\nStart a run of its own with them: another --run-dir, without --branch."
        )
    return replace(found, best=NO_SCORE, seconds=0.0)


def dated(config: C, point: BranchPoint | None) -> C:
    """Return the configuration with the day that chat templates write: that on which the run, or its parent, began."""
    if config.prompt.date is not None:
        return config
    run_dir = Path(config.run_dir if point is None else point.run_dir)
    has_begun = point is not None or bool(checkpoints_of(config).steps())
    day = date_of(run_dir) if has_begun and (run_dir / "run.json").is_file() else today()
    if point is None and has_begun and not states_date(run_dir):  # an older rlora's, which goes on as it began
        return config
    return replace(config, prompt=replace(config.prompt, date=day))


def titled(config: RunConfig) -> RunConfig:
    """Return the configuration with the titles that a run has given to its own data, whatever the files are called now:
    its problems keep their identifiers, from which draws derive.
    """
    stored = Path(config.run_dir) / CONFIG_FILE
    if not checkpoints_of(config).steps() or not stored.is_file():
        return config
    before, titles = read_json(stored).get("data", {}), {}
    for split in ("train", "test"):
        name, was = getattr(config.data, split), before.get(split)
        if name is not None and was is not None and getattr(config.data, f"{split}_title") is None:
            title = before.get(f"{split}_title") or own_title(was)
            if title != own_title(name):
                titles[f"{split}_title"] = title
    return replace(config, data=replace(config.data, **titles))


def same_inputs(config: Resumable, point: BranchPoint | None, inputs: Inputs) -> tuple[str, ...]:
    """Return the fields that may name base and data otherwise than before, since what they name is the same.

    `inputs` are the digests of what is there now. Raises RunDirError where the base is another than the one that the
    run (or the one that it branches from) was trained on, or the test is another than the run's.
    """
    if point is not None:
        stated = point.checkpoint.environment
    elif checkpoints_of(config).steps():
        stated = inputs_of_run(Path(config.run_dir))
    else:
        return ()
    whose = config.run_dir if point is None else point.run_dir
    refuse_other_base(stated.get("base", {}), inputs["base"], whose=whose, name=config.model.name)
    before, now = stated.get("data", {}), inputs["data"]
    if point is None and before and before["train"] == now["train"] and before["test"] != now["test"]:
        raise RunDirError(
            f"the test problems are not those that {whose} was scored on. Restore them, or start a new run with them "
            "by --branch NEW_DIR."
        )
    same = [name for name, digests in inputs.items() if stated.get(name) == digests]
    return tuple(field for name in same for field in _NAMES[name])


def open_run_dir(
    config: RunConfig,
    *,
    parent: str | None,
    inputs: Inputs,
    renamed: Sequence[str] = (),
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> RunDir:
    """Claim the run's directory; RunDirError when it holds another run, or one that another process writes.

    `inputs` are the digests of base and data, `renamed` the fields that may name them otherwise than before,
    `sizes` what is stated of both.
    """
    defaults = to_json(RunConfig(run_dir=config.run_dir).resolved())
    return RunDir(
        Path(config.run_dir),
        to_json(config),
        may_change=(*MAY_CHANGE, *renamed),
        extends=EXTENDS,
        parent=parent,
        defaults=defaults,
        inputs=inputs,
        sizes=sizes,
        rollouts=config.rollouts,
    )


def find_start(config: Resumable, point: BranchPoint | None, log: MetricsLog) -> Checkpoint | None:
    """Return the checkpoint to go on from: the run's newest whole one, else the branch point's; None starts afresh.

    Says so on the display. Raises CheckpointError where there are checkpoints and none can be used.
    """
    if own := checkpoints_of(config).newest(log.display.say):
        log.display.note(f"{config.run_dir}: going on from step {own.step}.")
        return own
    if point is None:
        if parent := read_json(Path(config.run_dir) / "run.json").get("parent"):
            raise CheckpointError(
                f"{config.run_dir} branches from {parent} and was stopped before its first checkpoint; start it "
                "with the same --branch again."
            )
        return None
    log.display.note(f"{config.run_dir}: a new run from step {point.checkpoint.step} of {point.run_dir}.")
    return point.checkpoint


def restore(
    config: RunConfig,
    start: Checkpoint | None,
    parts: Parts,
    problems: Problems,
    run_dir: RunDir,
    log: MetricsLog,
    interrupts: Interrupts,
    *,
    is_branch: bool,
) -> Run:
    """Put everything where the checkpoint left it and drop what later steps wrote; without one, start at step 0.

    Raises CheckpointError when the training set is not the one that the checkpoint's position counts in.
    """
    progress, position, solved_P2 = Progress(), 0, None
    if start is not None:
        is_same_set = start.problems == fingerprint(problems.train)
        if not is_same_set and not is_branch:
            raise CheckpointError(
                f"the training set is not the one that {config.run_dir} was trained on. Restore it, or start a new run "
                "with it by --branch NEW_DIR."
            )
        parts.trainer.restore(slots=start.slots, theta_D=start.theta_D, optimizer=start.optimizer, version=start.step)
        progress = Progress(step=start.step, best=start.best, seconds=start.seconds)
        if start.tally is not None:  # what its policy was told is a branch's too; the rest is counted anew
            progress.tally = Tally(**start.tally) if not is_branch else Tally(bits=start.tally.get("bits", 0.0))
        if not is_branch:
            parts.trainer.budget.tokens = start.tokens_per_micro_batch
        if is_same_set:
            position, solved_P2 = start.position, start.solved_P2
            if solved_P2 is not None and len(solved_P2) != len(problems.train):
                raise CheckpointError(
                    f"the checkpoint of step {start.step} in {config.run_dir} counts what was solved of "
                    f"{len(solved_P2)} problems, and there are {len(problems.train)}. Remove that checkpoint: the run "
                    "goes on from the one before."
                )
        run_dir.save_policy(parts.policy.snapshot())
    begin_at(config, progress.step, run_dir, log)
    if start is not None and parts.policy.device.type == "cuda" and not config.sampler.exact:
        log.display.note(
            "On a GPU the run goes on equal in distribution to one that was never stopped, not bit for bit: "
            "--sampler.exact would have made it so."
        )
    rows = run_dir.rows()
    if start is not None and not is_branch and start.tally is None:  # a checkpoint of before it was counted there
        progress.tally = Tally.of(rows)
    if (num_lost := progress.tally.num_steps - len(rows)) > 0:
        log.display.say(f"{run_dir.path / METRICS_FILE} lacks the rows of the first {num_lost} steps.")
    rates = SolveRates(len(problems.train), config.samples_per_problem, solved_P2) if config.curriculum else None
    return Run(
        config=config,
        parts=parts,
        stream=ProblemStream(problems.train, seed=config.order_seed, position=position, solve_rates=rates),
        progress=progress,
        test=problems.test,
        folder=run_dir,
        log=log,
        interrupts=interrupts,
    )


def begin_at(config: Resumable, step: int, run_dir: RunDir, log: MetricsLog) -> None:
    """Drop what later steps wrote, and say where the machine or the software is another than that of the steps before;
    the display begins at the step.
    """
    checkpoints_of(config).remove_after(step)
    trajectory_of(config).remove_after(step)
    if changed := run_dir.begin(step):
        log.display.say(
            "This is not the machine or the software of the steps before, so the run goes on correctly, but not bit "
            "for bit as it would have there:\n  " + "\n  ".join(changed)
        )
    log.begin(run_dir.rows(), step=step)

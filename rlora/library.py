"""Training from a script or a notebook: problems as a list, a reward as a function, results as an object."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlora import loop
from rlora.assemble import Problems, split_problems
from rlora.errors import DataError
from rlora.rewards import Judge, RewardFunction
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.store.results import Results
from rlora.tasks.data import GIVEN, DataConfig
from rlora.tasks.select import hold_out
from rlora.types import Problem


def run(
    config: RunConfig,
    problems: Sequence[Problem] | None = None,
    *,
    test: Sequence[Problem] | None = None,
    reward: RewardFunction | Judge | None = None,
    make_sampler: Callable[[EngineSpec], Sampler] = build_sampler,
) -> Results:
    """Train as `rlora train` does, and return what the run left; called again it goes on where it was stopped.

    Args:
        config: The run; `config.run_dir` is where everything is written.
        problems: What to train on, in place of the data set that `config` names.
        test: What to score on; a tenth of `problems` is held out when left out.
        reward: A function of (completion, problem) that returns a number, or a number and a reason; or a `Judge`. The
            data set's own judge, which is mathematics for `problems`, when left out.
        make_sampler: Builds the sampler.

    Raises:
        DataError: Two problems have one id, or there are too few to hold any out.
        RloraError: What `rlora train` would print.

    Example:
        docs/library.md
    """
    config, given = with_problems(config, problems, test)
    return Results(loop.run(config, problems=given, reward=reward, make_sampler=make_sampler))


def with_problems(
    config: RunConfig, problems: Sequence[Problem] | None, test: Sequence[Problem] | None
) -> tuple[RunConfig, Problems | None]:
    """Return the configuration of a run on a list of problems, and those split; None where none are given.

    Raises DataError for two problems of one id, and for too few to hold any out.
    """
    if problems is None:
        if test is not None:
            raise DataError("test was given without problems.")
        return config, None
    config = replace(config, data=DataConfig(name=GIVEN, seed=config.data.seed))
    ids = [problem.id for problem in (*problems, *(test or ()))]
    if len(set(ids)) < len(ids):
        raise DataError(f"two problems have the id {max(ids, key=ids.count)!r}; ids must be unique.")
    train, held_out = hold_out(problems, name=GIVEN) if test is None else (list(problems), list(test))
    if not held_out:
        raise DataError(f"{len(problems)} problems are too few to hold out a tenth of them: give `test` as well.")
    return config, split_problems(config, train, held_out)

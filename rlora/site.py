"""Where runs are carried out: what is set up once in a process, whatever the number of runs in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlora.advice import check_layers
from rlora.assemble import Problems, load_problems
from rlora.config import with_home
from rlora.model.base import Base
from rlora.model.identity import base_digests, sizes_of
from rlora.model.sources import model_dir
from rlora.proof.peers import ALONE, Peers
from rlora.resume import Inputs
from rlora.rewards import Judge, RewardFunction, as_judge, name_of
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.system.exactness import make_exact
from rlora.system.interrupts import Interrupts
from rlora.system.memory import let_blocks_grow
from rlora.tracking.tracker import check_trackers
from rlora.verify import Verifier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """Where runs are carried out: what they are given, and what they share when they are several in one process.

    `base_digests` are those of the model in `folder`, `judge` one that was given as an object. With `base` the run is
    one of several on it, and `peers` are the others.
    """

    folder: Path
    base_digests: Mapping[str, str]
    problems: Problems
    judge: Judge | None
    verifier: Verifier
    interrupts: Interrupts
    make_sampler: Callable[[EngineSpec], Sampler] = build_sampler
    base: Base | None = None
    peers: Peers = ALONE

    @property
    def inputs(self) -> Inputs:
        """Digests of what runs are given here."""
        return {"base": self.base_digests, "data": self.problems.digests}

    @property
    def sizes(self) -> Mapping[str, Any]:
        """What a run directory states of the base and the data, so that it can be judged without them."""
        return sizes_of(self.folder, num_train=len(self.problems.train))


def prepared(config: RunConfig, reward: RewardFunction | Judge | None) -> tuple[RunConfig, Judge | None]:
    """Return a checked configuration with its defaults filled in, and the judge in place of the one that it names.

    Raises ConfigError for the first value that breaks a rule, before anything is loaded.
    """
    config = with_home(config)
    config.check()
    check_gpu(config.sampler)
    check_trackers(config.tracking)
    if reward is None:
        return config.resolved(), None
    return replace(config, reward=name_of(reward)).resolved(), as_judge(
        reward, name=name_of(reward), config=config.judge
    )


@contextmanager
def site_of(
    config: RunConfig,
    problems: Problems | None,
    judge: Judge | None,
    make_sampler: Callable[[EngineSpec], Sampler] = build_sampler,
) -> Iterator[Site]:
    """Set the process up for runs like `config`, and yield their site: data, model folder, verifier, signals."""
    if not config.sampler.shares_base:  # vLLM's allocator for a cache that gives way refuses such blocks
        let_blocks_grow()
    if config.sampler.exact:
        make_exact()
    problems = problems or load_problems(config)
    folder = model_dir(config.model)
    check_layers(config, folder)
    digests = base_digests(folder)
    with Interrupts() as interrupts, Verifier(config.verifier) as verifier:
        yield Site(
            folder=folder,
            base_digests=digests,
            problems=problems,
            judge=judge,
            verifier=verifier,
            interrupts=interrupts,
            make_sampler=make_sampler,
        )

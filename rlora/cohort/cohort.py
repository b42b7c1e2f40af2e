"""A cohort: many policies trained at once on one base, in one process, by one engine.

Each member is the loop itself (`rlora.loop.carry_out`) in a run directory of its own, `members/NAME`; what members ask
the engine is asked for all of them at once (meeting.py). So a member equals a run of its own, is proven, checkpointed
and resumed as one, and nothing of the algorithm knows how many there are.

`cohort.json  members/NAME/  halvings.json  table.json  table.txt  plot.png  plot.svg  adapter/  log.txt  lock`
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlora.cohort.display import CohortDisplay
from rlora.cohort.fates import Rules, Watch, fate_of, rolled_back
from rlora.cohort.meeting import Meeting, Seat
from rlora.cohort.members import Member, members_of
from rlora.cohort.table import Table, table_of
from rlora.diagnosis import health
from rlora.errors import ConfigError, RunDirError
from rlora.inputs import check_inputs
from rlora.library import with_problems
from rlora.loop import carry_out
from rlora.model.base import Base
from rlora.model.sources import model_title
from rlora.resume import dated, titled
from rlora.rewards import Judge, RewardFunction, as_judge, name_of
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.site import Site, prepared, site_of
from rlora.state import checkpoints_of
from rlora.store.claim import claim
from rlora.store.cohort_dir import MEMBERS
from rlora.store.run_dir import read_json, write_json
from rlora.system.files import write_folder_atomically
from rlora.system.screen import LOG_FILE, Diversion, stage
from rlora.system.stages import Screen
from rlora.types import Problem

COHORT_FILE, HALVINGS_FILE = "cohort.json", "halvings.json"
_MAX_ATTEMPTS = 3  # of a member that is rolled back


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Running:
    """What there is while the members train."""

    site: Site
    meeting: Meeting
    display: CohortDisplay


class Cohort:
    """Members, a folder for them, and the rules by which they end early.

    Example:
        >>> cohort = Cohort("runs/sweep", seats=4)
        >>> for rate in (1e-4, 3e-4, 1e-3):
        ...     optimizer = replace(config.optimizer, learning_rate=rate)
        ...     cohort.add(replace(config, optimizer=optimizer), name=f"lr{rate:g}")
        >>> cohort.run().rows[0]["name"]
        'lr0.001'
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        seats: int | None = None,
        rules: Rules | None = None,
        problems: Sequence[Problem] | None = None,
        test: Sequence[Problem] | None = None,
        reward: RewardFunction | Judge | None = None,
        make_sampler: Callable[[EngineSpec], Sampler] = build_sampler,
        on_step: Callable[[str, Mapping[str, float]], None] = lambda name, values: None,
    ):
        """Keep everything in `folder`.

        The engine is started for `seats` members (as many as there are at the start, when left out), so that others can
        be added while it runs. `on_step` is told each finished step of each member; it may add and remove members.
        `problems`, `test`, `reward` and `make_sampler` are those of `rlora.run`.
        """
        self.folder, self._rules, self._seats = Path(folder), rules or Rules(), seats
        self._problems, self._test, self._reward = problems, test, reward
        self._make_sampler, self._on_step = make_sampler, on_step
        self._members: list[Member] = []
        self._running: _Running | None = None

    def add(self, config: RunConfig, *, name: str | None = None) -> Member:
        """Add a member; while others train it starts at once, and they do not notice. Its `run_dir` is the cohort's.

        Raises:
            ConfigError: The configuration breaks a rule, differs from the others in what they share, is a member
                already, or there is no seat for it.
        """
        config, _ = with_problems(config, self._problems, self._test)
        config, _ = prepared(config, self._reward)
        if config.method != "lora":
            raise ConfigError("a cohort trains adapters on one base; --method full is a run of its own: rlora train.")
        if config.sampler.shares_base:
            raise ConfigError("in a cohort the engine has a base of its own: leave --sampler.share-base out.")
        if config.branch is not None:
            raise ConfigError("a cohort branches from nothing: leave --branch out, or branch one of its members.")
        self._rules.check(config)
        configs = [*(member.config for member in self._members), config]
        names = [*(member.name for member in self._members), name]
        member = members_of(configs, names, self.folder)[-1]
        if self._running is not None:
            self._running.meeting.check_fits(config.lora)
            self._seat(self._running, member)
        self._members.append(member)
        return member

    def add_all(self, configs: Sequence[RunConfig], names: Sequence[str | None]) -> None:
        """Add several members, each named by what tells it from the others where it has no name."""
        named = members_of(configs, names, self.folder)
        for config, member in zip(configs, named, strict=True):
            self.add(config, name=member.name)

    def remove(self, name: str) -> None:
        """Have a member stop at its next request to the engine; the others do not notice. What it saved stays."""
        if name not in [member.name for member in self._members]:
            raise ConfigError(f"the cohort has no member {name!r}.")
        self._members = [member for member in self._members if member.name != name]
        if self._running is not None:
            self._running.meeting.remove(name)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in the order in which they were added."""
        return tuple(self._members)

    def run(self) -> Table:
        """Train all members to their ends, score them, and return the table of what they reached; called again, each
        goes on where it was.

        Raises:
            ConfigError: There are no members, or more than seats.
            RloraError: What ends a run, of any member, but numbers that are not finite, which freeze it.
        """
        if not self._members:
            raise ConfigError("the cohort has no members.")
        first = titled(dated(self._members[0].config, None))
        lock = claim(self.folder, holds="a cohort", option="--run-dir", marked_by=COHORT_FILE)
        with ExitStack() as stack:
            stack.callback(lock.release)
            self._keep_rules()
            quiet, verbose = first.tracking.quiet, first.tracking.verbose
            diversion = stack.enter_context(Diversion(is_on=not verbose, is_quiet=quiet))
            diversion.keep_in(self.folder / LOG_FILE)
            _, problems = with_problems(first, self._problems, self._test)
            judge = (
                None if self._reward is None else as_judge(self._reward, name=name_of(self._reward), config=first.judge)
            )
            site = stack.enter_context(site_of(first, problems, judge, self._make_sampler))
            is_new = not any(checkpoints_of(member.config).steps() for member in self._members)
            check_inputs(first, site.folder, site.problems, base=site.base_digests, is_new=is_new)
            if first.num_threads is not None:
                torch.set_num_threads(first.num_threads)
            with stage(f"Loading {model_title(first.model)}"):
                base = Base.load(site.folder, first.model)
            display = CohortDisplay(first, len(self._members))
            display.opening(self._members, self.folder)
            num_seats = self._seats or len(self._members)
            meeting = Meeting(self._make_sampler, decide=self._decide, num_seats=num_seats)
            self._running = _Running(site=replace(site, base=base), meeting=meeting, display=display)
            stack.callback(self._stopped)
            for member in self._members:
                self._seat(self._running, member)
            meeting.run()
            table = table_of(self.folder)
            table.save()
            self._copy_best(table)
            display.closing(table)
        return table

    def _stopped(self) -> None:
        self._running = None

    def _keep_rules(self) -> None:
        """Write down the rules, or hold that they are those that the cohort began with."""
        file, rules = self.folder / COHORT_FILE, asdict(self._rules) | {"halving": list(self._rules.halving)}
        if file.is_file() and read_json(file).get("rules") != rules:
            raise RunDirError(
                f"{self.folder} holds a cohort of other rules, {read_json(file).get('rules')}; set them back to go on "
                "with it, or choose another --run-dir."
            )
        write_json(file, {"rules": rules, "members": [member.name for member in self._members]})

    def _seat(self, running: _Running, member: Member) -> None:
        running.meeting.add(member.name, lambda seat: self._train(running, member, seat))

    def _train(self, running: _Running, member: Member, seat: Seat) -> None:
        """Train a member to its end, in its thread; a frozen one again from its best version, if the rules say so."""
        site, say = replace(running.site, make_sampler=seat.built_from, peers=seat), running.display.say
        config, point = titled(dated(member.config, None)), None
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            name = Path(config.run_dir).name
            watch = Watch(self._rules, seat.goes_on, self._decided, self._told_by(name, running), member.name)
            fate = fate_of(Path(config.run_dir))
            if fate is None or (fate.kind == "frozen" and not (Path(config.run_dir) / "summary.json").is_file()):
                Path(config.run_dir).parent.mkdir(parents=True, exist_ok=True)
                with (self.folder / MEMBERS / f"{name}.txt").open("a", encoding="utf-8") as report:
                    carry_out(config, site, point=point, screen=Screen(report), drive=watch.drive, health=health)
            fate = fate_of(Path(config.run_dir))
            if fate is not None:
                say(f"{name} {fate.kind} after step {fate.step}, at version {fate.version}: {fate.why}")
            if fate is None or fate.kind != "frozen" or not self._rules.rollback or attempt == _MAX_ATTEMPTS:
                return
            config, point = rolled_back(config, self._rules.rollback, attempt)
            rate = config.optimizer.learning_rate
            say(f"{Path(config.run_dir).name} goes on from there at a learning rate of {rate:g}.")

    def _told_by(self, name: str, running: _Running) -> Callable[[Mapping[str, float]], None]:
        def told(values: Mapping[str, float]) -> None:
            running.display.step(name, values, num_running=running.meeting.num_members)
            self._on_step(name, values)

        return told

    def _decided(self, step: int) -> dict[str, Any] | None:
        """Return what was decided at a milestone, None if it was not reached yet."""
        file = self.folder / HALVINGS_FILE
        return read_json(file).get(str(step)) if file.is_file() else None

    def _decide(self, step: int, scores: Mapping[str, float]) -> dict[str, bool]:
        """Stop the worse half of the members that reached a milestone, write it down, and return who goes on."""
        ranked = sorted(scores, key=lambda name: (-scores[name], list(scores).index(name)))
        going = ranked[: (len(ranked) + 1) // 2]
        file = self.folder / HALVINGS_FILE
        before = read_json(file) if file.is_file() else {}
        share = (before[max(before, key=int)]["share"] if before else 1.0) * len(ranked) / len(going)
        stopped = ranked[len(going) :]
        write_json(file, before | {str(step): {"scores": dict(scores), "stopped": stopped, "share": share}})
        return {name: name in going for name in scores}

    def _copy_best(self, table: Table) -> None:
        """Let `adapter/` be the best member's."""
        best = table.best
        if best is None:
            return
        source, target = self.folder / MEMBERS / best / "adapter", self.folder / "adapter"
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            with write_folder_atomically(target) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

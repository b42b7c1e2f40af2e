"""Who is in a cohort: configurations that differ in what may differ, each with a name made of that.

A member is a run: `members/NAME` in the cohort's folder is its run directory, and holds what a run of its own with the
same options would hold.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlora.config import differences, to_json, with_switches
from rlora.errors import ConfigError
from rlora.run_config import RunConfig
from rlora.store.cohort_dir import MEMBERS

MAY_DIFFER = (
    "seed",
    "lora",
    "optimizer",
    "loss",
    "advantage",
    "consensus_penalty",
    "problems_per_step",
    "samples_per_problem",
    "oversample",
    "curriculum",
    "batch",
    "num_steps",
    "run_dir",
)
"""The fields, and sections of fields, in which the members of a cohort may differ: all else is the base's, the
sampler's or the problems', which they share."""
_SHORT = {"learning_rate": "lr", "seed": "s", "rank": "r", "alpha": "a", "layers": "", "name": "", "advantage": ""}
_NUMBER = re.compile(r"-?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One of a cohort: its name, and the configuration of its run."""

    name: str
    config: RunConfig


def grid_of(arguments: Sequence[str], options: Mapping[str, Any]) -> list[list[str]]:
    """Return the command line of each member, where options with several values stand for each of them with each other.

    Example:
        >>> grid_of(["--seed", "0", "1", "--num-steps", "3"], {"seed": int, "num-steps": int})
        [['--num-steps', '3', '--seed', '0'], ['--num-steps', '3', '--seed', '1']]
    """
    common: list[str] = []
    axes: list[tuple[str, list[str]]] = []
    for option, values in _options(with_switches(arguments, options)):
        name = option.removeprefix("--").replace("_", "-")
        if len(values) > 1 and not _takes_many(options.get(name)):
            if repeated := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
                raise ConfigError(f"{option} names {repeated[0]} twice; each value is one member.")
            axes.append((option, values))
        else:
            common += [option, *values]
    return [
        [*common, *(part for (option, _), value in zip(axes, chosen, strict=True) for part in (option, value))]
        for chosen in itertools.product(*(values for _, values in axes))
    ]


def _options(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return each option with the values behind it; a negative number is a value."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--") and not _NUMBER.fullmatch(argument):
            option, equals, value = argument.partition("=")
            found.append((option, [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
        else:
            raise ConfigError(f"{argument!r} stands before any option.")
    return found


def _takes_many(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) in (tuple, list)


def lines_of(file: Path) -> list[tuple[str | None, list[str]]]:
    """Return the members that a file names, a line each: options as on a command line, behind `NAME:` if it has one.

    Empty lines and what follows a # are left out. Raises ConfigError for a file that cannot be read or names none.

    Example:
        slow: --optimizer.learning-rate 1e-4
        fast: --optimizer.learning-rate 1e-3 --lora.rank 4
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--cohort {file} cannot be read: {error}.") from error
    found: list[tuple[str | None, list[str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(f"--cohort {file}, line {number}: {error}.") from error
        if not words:
            continue
        name = words.pop(0)[:-1] if words[0].endswith(":") and not words[0].startswith("-") else None
        found.append((name, words))
    if not found:
        raise ConfigError(f"--cohort {file} names no member: write the options of one in each line.")
    return found


def members_of(configs: Sequence[RunConfig], names: Sequence[str | None], folder: Path) -> list[Member]:
    """Return the members of a cohort in `folder`, each in its place, with one order of problems for all.

    Raises ConfigError where two are the same, or differ in what they share.
    """
    order = configs[0].order_seed
    configs = [
        replace(config, data=replace(config.data, seed=order)) if config.data.seed is None else config
        for config in configs
    ]
    given = [to_json(config) for config in configs]
    _check_shared(given)
    varying = _varying(given)
    found: list[Member] = []
    for config, name, values in zip(configs, names, given, strict=True):
        chosen = name or _name(values, varying) or "only"
        if not re.fullmatch(r"[\w.+=-]{1,80}", chosen, re.ASCII) or chosen.startswith("."):
            raise ConfigError(f"a member is named {chosen!r}; take letters, digits and . _ + = - alone.")
        found.append(Member(name=chosen, config=replace(config, run_dir=str(folder / MEMBERS / chosen))))
    all_names = [member.name for member in found]
    if repeated := next((name for name in all_names if all_names.count(name) > 1), None):
        raise ConfigError(f"two members are named {repeated}, which would be the same run; leave one out or name it.")
    return found


def _check_shared(given: Sequence[Mapping[str, Any]]) -> None:
    for other in given[1:]:
        for line in differences(given[0], other):
            field = line.partition(":")[0]
            if not (field in MAY_DIFFER or field.partition(".")[0] in MAY_DIFFER):
                raise ConfigError(
                    f"the members of a cohort share base, sampler and problems, and these differ in {line}. "
                    f"They may differ in {', '.join(name for name in MAY_DIFFER if name != 'run_dir')}."
                )


def _varying(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted fields in which some differ, in the order of the configuration, seeds last."""
    fields = dict.fromkeys(
        line.partition(":")[0] for other in given[1:] for line in differences(given[0], other) if "run_dir" not in line
    )
    return sorted(fields, key=lambda name: (name == "seed", list(fields).index(name)))


def _name(values: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Return what tells a member from the others, short: lr0.0003-s1."""
    parts = []
    for path in varying:
        value: Any = values
        for key in path.split("."):
            value = value[key]
        last = path.rpartition(".")[2]
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"{_SHORT.get(last, last + '=')}{re.sub(r'[^A-Za-z0-9.+=-]', '_', shown)}")
    return "-".join(parts)

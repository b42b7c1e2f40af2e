"""`rlora sweep RECIPE [options]`: train a cohort of policies on one base at once, or go on with one."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rlora.cohort.cohort import Cohort
from rlora.cohort.estimate import estimate
from rlora.cohort.fates import Rules
from rlora.cohort.members import grid_of, lines_of
from rlora.config import cli, option_types, with_home
from rlora.errors import ConfigError
from rlora.recipe import explained
from rlora.recipes import RECIPES, Recipe, find_recipe
from rlora.run_config import RunConfig
from rlora.state import checkpoints_of
from rlora.store.cohort_dir import MEMBERS
from rlora.system.screen import say

_EXAMPLE = "rlora sweep arithmetic --optimizer.learning-rate 3e-4 6e-4 1e-3 --seed 0 1 2"
_ABOUT = f"""\
Train several policies on one base at once, each as a run of its own would, and rank them:

  {_EXAMPLE}

An option of the recipe that is given several values makes a member of each, with those of the others. Members may \
differ in seed, rate, rank, alpha, layers, loss, advantage and the like; they share base, sampler and problems. The \
same command goes on with a sweep that was stopped."""


def main(arguments: Sequence[str]) -> None:
    """Run the sweep of the recipe that the first word names; exit codes are those of a recipe."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"Usage: rlora sweep RECIPE [options]\n\n{_ABOUT}\n\n{_own_options().format_help()}")
        print(f"RECIPE is one of {', '.join(RECIPES)}, a file of your own that ends in .py, or a module.")
        print("All options of a member: rlora train RECIPE --help.")
        raise SystemExit(0 if arguments else 2)
    name, *given = arguments
    recipe = find_recipe(name)
    if {"-h", "--help"} & set(given):
        return main(["--help"])
    own, rest = _own_options().parse_known_args(given)
    rules = Rules(
        halving=tuple(own.halving), max_zero_steps=own.max_zero_steps, max_kl=own.max_kl, rollback=own.rollback
    )
    configs, names = _members(recipe, rest, own.cohort, program=f"rlora sweep {name}")
    has_folder = any(argument.partition("=")[0] in ("--run-dir", "--run_dir") for argument in rest)
    folder = Path(configs[0].run_dir if has_folder else f"{configs[0].run_dir}-sweep")
    cohort = Cohort(folder, rules=rules)
    cohort.add_all(configs, names)
    if own.dry_run or not configs[0].tracking.quiet:
        say(estimate([member.config for member in cohort.members]).summary())
    if own.dry_run:
        for member in cohort.members:
            say(f"{folder / MEMBERS / member.name}")
        return None

    def state() -> tuple[str, list[int]]:
        newest = [max(checkpoints_of(member.config).steps(), default=0) for member in cohort.members]
        return str(folder), [min(newest)] if any(newest) else []

    with explained(state):
        cohort.run()
    return None


def _members(
    recipe: Recipe, rest: Sequence[str], cohort: Path | None, *, program: str
) -> tuple[list[RunConfig], list[str | None]]:
    """Return the configurations of the members, and their names where a file gives them."""
    options = option_types(type(next(iter(recipe.presets.values()))))
    given: list[tuple[str | None, list[str]]] = [(None, line) for line in grid_of(rest, options)]
    if cohort is not None:
        if len(given) > 1:
            raise ConfigError("give several values of an option, or a --cohort FILE, and not both.")
        given = [(name, [*given[0][1], *line]) for name, line in lines_of(cohort)]
    configs = [
        with_home(cli(recipe.presets, description=recipe.description, arguments=line, program=program))
        for _, line in given
    ]
    return configs, [name for name, _ in given]


def _own_options() -> argparse.ArgumentParser:
    """Return the parser of the options that are the sweep's and no member's."""
    defaults = {field.name: field.default for field in fields(Rules)}
    parser = argparse.ArgumentParser(
        prog="rlora sweep RECIPE", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS
    )
    add = parser.add_argument_group("options of the sweep").add_argument
    add("--cohort", type=Path, metavar="FILE", help="the members, one in each line: [NAME:] options of the recipe")
    add(
        "--halving",
        type=int,
        nargs="+",
        metavar="STEP",
        default=[],
        help="after these steps the worse half by held-out score stops, and leaves its problems to the others",
    )
    add(
        "--max-zero-steps",
        type=int,
        metavar="N",
        default=defaults["max_zero_steps"],
        help="freeze a member at its best version after so many steps without reward, if it had earned some; 0 never "
        "does (default: %(default)s)",
    )
    add("--max-kl", type=float, metavar="NATS", help="freeze a member that is further from the base, in nats a token")
    add(
        "--rollback",
        type=float,
        nargs="?",
        const=0.5,
        default=0.0,
        metavar="FACTOR",
        help="try a frozen member again from its best version, at this factor of its rate (bare: 0.5)",
    )
    add("--dry-run", action="store_true", help="say who the members are and what memory they take, and train nothing")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])

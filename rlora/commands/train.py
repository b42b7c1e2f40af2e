"""`rlora train RECIPE [options]`: start a run, or go on with one."""

import sys
from collections.abc import Sequence

from rlora import recipe
from rlora.recipes import RECIPES, Recipe, find_any_recipe
from rlora.supervised import recipe as supervised


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first word names, with the options behind it; exit codes are those of a recipe."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    name, *options = arguments
    found, program = find_any_recipe(name), f"rlora train {name}"
    if isinstance(found, Recipe):
        recipe.main(found.presets, description=found.description, arguments=options, program=program)
    else:
        supervised.main(found.presets, description=found.description, arguments=options, program=program)


def _usage() -> str:
    lines = []
    for name in RECIPES:
        about = find_any_recipe(name).description.partition("\n")[0]
        lines.append(f"  {name:<{max(map(len, RECIPES))}}  {about}")
    return "\n".join(
        [
            "Usage: rlora train RECIPE [options]; rlora train RECIPE --help explains the options.",
            "",
            *lines,
            "",
            "RECIPE may also be a file of your own that ends in .py, or a module.",
            "The same command goes on with a run that was stopped.",
        ]
    )

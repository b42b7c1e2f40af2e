"""What a recipe of supervised training calls: command line in, run directory out."""

from functools import partial

from rlora import recipe
from rlora.supervised.loop import run

main = partial(recipe.main, train=run)
"""`rlora.recipe.main` of presets of SupervisedConfig."""

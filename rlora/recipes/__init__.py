"""The recipes that come with rlora, by name, and those of a user's own file or module."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from rlora.errors import ConfigError
from rlora.registry import import_named
from rlora.run_config import RunConfig
from rlora.supervised.config import SupervisedConfig

RECIPES = {
    "arithmetic": "rlora.recipes.arithmetic",
    "gsm8k": "rlora.recipes.gsm8k",
    "math": "rlora.recipes.hendrycks_math",
    "deepmath": "rlora.recipes.deepmath",
    "sft": "rlora.recipes.sft",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training run ready to start: configurations by name, the default first, and what they are for."""

    presets: Mapping[str, RunConfig]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedRecipe:
    """A supervised run ready to start: configurations by name, the default first, and what they are for."""

    presets: Mapping[str, SupervisedConfig]
    description: str


def find_any_recipe(name: str) -> Recipe | SupervisedRecipe:
    """Return the recipe that `name` names: one of RECIPES, a file that ends in .py, or a module of one's own.

    A recipe is a module with PRESETS, a mapping of names to RunConfig, or to SupervisedConfig; its docstring is its
    description.

    Raises:
        ConfigError: nothing has this name, or what has it is not a recipe.

    Example:
        >>> find_any_recipe("sft").presets["cpu"].examples_per_step
        16
    """
    module = _file(Path(name).expanduser()) if name.endswith(".py") else _module(name)
    presets, description = getattr(module, "PRESETS", {}), module.__doc__ or ""
    if presets and all(isinstance(preset, RunConfig) for preset in presets.values()):
        return Recipe(presets=presets, description=description)
    if presets and all(isinstance(preset, SupervisedConfig) for preset in presets.values()):
        return SupervisedRecipe(presets=presets, description=description)
    raise ConfigError(f"{name} is not a recipe of a training run: it has no PRESETS of RunConfig or SupervisedConfig.")


def find_recipe(name: str) -> Recipe:
    """Return the recipe of reinforcement learning that `name` names, as `find_any_recipe` finds it.

    Raises:
        ConfigError: nothing has this name, or what has it is not such a recipe.

    Example:
        >>> find_recipe("gsm8k").presets["cpu"].num_steps
        120
    """
    found = find_any_recipe(name)
    if isinstance(found, SupervisedRecipe):
        raise ConfigError(f"{name} is a recipe of supervised training, which runs alone: rlora train {name}.")
    return found


def _file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a file; name a recipe: {', '.join(RECIPES)}, or a file of your own.")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # behind all others: a recipe names its own data and reward, as in my_recipe:score
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    module = import_named(RECIPES.get(name, name))
    if module is None:
        raise ConfigError(
            f"there is no recipe {name!r}; it must be one of {', '.join(RECIPES)}, a file that ends in "
            ".py, or a module."
        )
    return module

"""What a name on the command line stands for: a line of one of rlora's tables, or `module:name`, a user's own.

Data sets, judges, losses, samplers and trackers are found here alone, so that each new kind is one file and one line.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlora.errors import ConfigError


def find(name: str, table: Mapping[str, Any], *, unknown: str) -> Any:
    """Return what `name` stands for: the table's object, or a user's; text in the table is itself a `module:name`.

    Args:
        name: A key of the table, or `module:name`.
        table: The known objects; one that takes seconds to import is there as text.
        unknown: The beginning of the error for a name that is neither, as in "loss.name is 'x'".

    Raises:
        ConfigError: The name is not in the table and not of the form `module:name`, or nothing is there by that name.

    Example:
        >>> find("math:tau", {"pi": 3.14}, unknown="the number 'math:tau' is unknown")
        6.283185307179586
    """
    known = table.get(name)
    if isinstance(known, str):
        return load(known)
    if known is not None:
        return known
    check_name(name, table, unknown=unknown)
    return load(name)


def find_callable(name: str, table: Mapping[str, Any], *, unknown: str, called: str) -> Callable[..., Any]:
    """Return what `find` returns; ConfigError also where it cannot be called, as `called` says it must be."""
    found = find(name, table, unknown=unknown)
    if not callable(found):
        raise ConfigError(f"{unknown}, which is {found!r}; it must be callable: {called}.")
    return found


def check_name(name: str, known: Collection[str], *, unknown: str) -> None:
    """Raise ConfigError unless `name` is known, or a `module:name` that is there; what is known is not imported."""
    if name in known:
        return
    if ":" not in name:
        raise ConfigError(f"{unknown}; it must be one of {', '.join(known)}, or your own, as in my_module:my_name.")
    load(name)


def load(name: str) -> Any:
    """Return the object that `module:name` names, with dots in `name` for what lies inside another.

    The working directory counts as a place for modules, behind all others. What goes wrong inside the module while it
    is imported is raised as what it is, so that its traceback leads there.

    Raises:
        ConfigError: The text has another form, there is no such module, or it has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigError(f"{name!r} is not of the form module:name, as in my_rewards:score for my_rewards.py.")
    module = import_named(module_name)
    if module is None:
        raise ConfigError(
            f"there is no module {module_name!r} for {name!r}: neither {module_name.replace('.', '/')}.py in "
            f"{Path.cwd()} nor an installed one."
        )
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
            raise ConfigError(
                f"{name!r}: {module_name} ({getattr(module, '__file__', None) or 'built in'}) has no {attribute!r}, "
                f"only {', '.join(names) or 'nothing that can be called'}."
            )
        found = getattr(found, part)
    return found


def import_named(name: str) -> ModuleType | None:
    """Return a module by its name; None where there is none, neither installed nor in the working directory.

    A module that is there and cannot be imported raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there and lacks something that it imports
        here = str(Path.cwd())
        if here in sys.path or "" in sys.path:
            return None
    sys.path.append(here)  # behind all others: a user's types.py must not take the standard library's place
    importlib.invalidate_caches()
    return import_named(name)

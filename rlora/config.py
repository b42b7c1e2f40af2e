"""The command line, and configurations as JSON: what is set, checked, stored and compared."""

import argparse
import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from rlora.errors import ConfigError

C = typing.TypeVar("C")


def cli(
    presets: Mapping[str, C], *, description: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> C:
    """Return the configuration that the command line asks for: a preset (the first by default), with fields changed by
    name. `program` is what its help calls the command.

    A yes or no may be given as `--curriculum`, `--curriculum true` or `--no-curriculum`. Ends the process with code 2
    and a message for an unknown preset or field.
    """
    options = option_types(type(next(iter(presets.values()))))
    given = with_switches(sys.argv[1:] if arguments is None else arguments, options)
    _refuse_unknown(given, options, program=program)
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    chosen, _ = chooser.parse_known_args(given)
    return tyro.cli(
        type(presets[chosen.preset]),
        default=presets[chosen.preset],
        args=given,
        prog=program,
        description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def option_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Return the options that set the fields of a configuration, each with its field's type, by dotted name."""
    hints, found = typing.get_type_hints(kind, include_extras=True), {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        name = next((each.name for each in getattr(hint, "__metadata__", ()) if hasattr(each, "name")), None)
        name = field.name.replace("_", "-") if name is None else name
        hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(hint):
            found |= option_types(typing.cast(type, hint), f"{prefix}{name}." if name else prefix)
        else:
            found[f"{prefix}{name}"] = hint
    return found


_SHORT = {"quiet": "tracking.quiet", "no-quiet": "tracking.no-quiet"}


def with_switches(arguments: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Return the arguments with a value for each yes or no that is given bare, as --no-NAME, or in other letters, and
    with the full name of one that has a short one.

    Example:
        >>> with_switches(["--curriculum", "--seed", "1"], {"curriculum": bool, "seed": int})
        ['--curriculum', 'True', '--seed', '1']
    """
    switches = {name for name, hint in options.items() if hint is bool or bool in typing.get_args(hint)}
    found: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        name = name.removeprefix("--").replace("_", "-") if name.startswith("--") else ""
        name = _SHORT.get(name, name) if _SHORT["quiet"] in switches else name
        start, _, last = name.rpartition("no-")
        following = arguments[index + 1] if index + 1 < len(arguments) else "--"
        if name in switches:
            found += [f"--{name}", *([_yes_or_no(value)] if equals else ["True"] if following[:2] == "--" else [])]
        elif not last.startswith("-") and f"{start}{last}" in switches:
            found += [f"--{start}{last}", "False"]
        elif found and found[-1].removeprefix("--") in switches:
            found.append(_yes_or_no(argument))
        else:
            found.append(argument)
    return found


def _yes_or_no(value: str) -> str:
    return {"true": "True", "yes": "True", "false": "False", "no": "False"}.get(value.lower(), value)


_NAMES_ELSEWHERE = {  # of other trainers, for what has another name here
    "num-generations": "samples-per-problem",
    "group-size": "samples-per-problem",
    "batch-size": "problems-per-step",
    "max-completion-length": "sampling.max-tokens",
    "max-new-tokens": "sampling.max-tokens",
    "max-steps": "num-steps",
    "output-dir": "run-dir",
    "lr": "optimizer.learning-rate",
    "r": "lora.rank",
}


def _refuse_unknown(arguments: Sequence[str], options: Mapping[str, Any], *, program: str | None) -> None:
    """End the process with code 2 and the option that was probably meant, for one that there is not and is like it."""
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("_", "-")
        if not argument.startswith("--") or name in options or name == "help":
            continue
        if meant := likely_options(name, options):
            command = program or Path(sys.argv[0]).name
            print(
                f"{command} has no option --{name}. Did you mean {' or '.join(f'--{each}' for each in meant)}?\n"
                f"All options: {command} --help",
                file=sys.stderr,
            )
            raise SystemExit(2)


def likely_options(name: str, options: Collection[str]) -> list[str]:
    """Return up to three options that a name like none of them probably means.

    Example:
        >>> likely_options("rank", ["lora.rank", "seed"])
        ['lora.rank']
    """
    if _NAMES_ELSEWHERE.get(name) in options:
        return [_NAMES_ELSEWHERE[name]]
    last = name.rpartition(".")[2]
    exact = [each for each in options if last in (each.rpartition(".")[2], each.partition(".")[0])]
    within = [each for each in options if len(last) > 3 and last in each.rpartition(".")[2].split("-")]
    close = difflib.get_close_matches(name, list(options), n=3, cutoff=0.6)
    ends = {each.rpartition(".")[2]: each for each in options}
    close += [ends[each] for each in difflib.get_close_matches(last, list(ends), n=2, cutoff=0.75)]
    return list(dict.fromkeys(exact or close or within))[:3]


def with_home(config: C, *, only_paths: bool = False) -> C:
    """Return the configuration, at any depth, with `~` at the beginning of a path as the home folder: no shell expands
    it in `--run-dir=~/runs/a`, nor in a script. Texts before a slash are paths too unless `only_paths`.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_home(value, only_paths=only_paths)
        elif isinstance(value, Path):
            changes[field.name] = Path(os.path.expanduser(value))
        elif not only_paths and isinstance(value, str) and any(part.startswith("~/") for part in value.split(",")):
            changes[field.name] = ",".join(os.path.expanduser(part) for part in value.split(","))
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def check_choices(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first field, at any depth, whose value is not among the choices that its type lists.

    Example:
        >>> check_choices(SamplerConfig(share_base="yes"), "sampler.")
        Traceback (most recent call last):
        rlora.errors.ConfigError: sampler.share_base is 'yes'; it must be one of auto, on, off.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_choices(value, f"{name}.")
            continue
        hint = hints[field.name]
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
        choices = [choice for literal in literals for choice in typing.get_args(literal)]
        if choices and value not in choices and not (value is None and type(None) in kinds):
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values, nested as its dataclasses are."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[C], values: Mapping[str, Any]) -> C:
    """Return the configuration of class `kind` that `to_json` wrote; ConfigError for unknown or missing fields."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{kind.__name__} is {values!r}, which is no section of a configuration.")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - names):
        raise ConfigError(
            f"{kind.__name__} has no field {', '.join(unknown)}; was it written by another version of rlora?"
        )
    try:
        found = kind(**{name: _typed(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} cannot be read: {error}") from error
    check_choices(found)
    for name, hint in hints.items():
        value, kinds = getattr(found, name), typing.get_args(hint) or (hint,)
        plain = {each for each in kinds if each in (str, int, float, bool, type(None))}
        if plain == set(kinds) and not (type(value) in plain or (type(value) is int and float in plain)):
            raise ConfigError(f"{kind.__name__}.{name} is {value!r}; it must be {_kinds(plain)}.")
    return found


def _kinds(plain: set[type]) -> str:
    return " or ".join(sorted("left out" if each is type(None) else each.__name__ for each in plain))


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next((option for option in hint.__args__ if dataclasses.is_dataclass(option)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_json(typing.cast(type, hint), value)
    return tuple(value) if isinstance(value, list) else value


def filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values with those of fields that did not exist yet when they were written."""
    nested = {
        name: filled(value, defaults[name])
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return {**defaults, **values, **nested}


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return one line a field in which two JSON values differ, as `field: old -> new`, dotted."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]

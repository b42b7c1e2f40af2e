"""The command line, and configurations as JSON: what is set, checked, stored and compared."""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from rlora.errors import ConfigError

C = typing.TypeVar("C")


def cli(
    presets: Mapping[str, C], *, description: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> C:
    """Return the configuration that the command line asks for: a preset (the first by default), with fields changed by
    name. `program` is what its help calls the command.

    Ends the process with code 2 and a message for an unknown preset or field.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
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
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - names):
        raise ConfigError(
            f"{kind.__name__} has no field {', '.join(unknown)}; was it written by another version of rlora?"
        )
    try:
        return kind(**{name: _typed(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} cannot be read: {error}") from error


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

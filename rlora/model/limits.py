"""How long a prompt with its completion may be for a model, known from its configuration before anything is loaded."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlora.errors import ConfigError

_PLAIN_ROTATIONS = ("default", "linear", "yarn", "llama3", "proportional")  # of a position alone
_BY_LENGTH = ("dynamic", "longrope")  # of a position and of the row's length
_STRETCHED = ("linear", "yarn")  # to `factor` times the positions that were trained


def check_lengths(config: Any, *, prompt: int, completion: int, option: str) -> None:
    """Raise ConfigError where prompts and completions of so many tokens do not fit into the model's positions, or are
    rotated by their length.

    A rotation that depends on the row's length is one thing in the sampler's cache, whose keys were rotated while the
    row was short, and another in the trainer, which computes the row at once.

    Args:
        config: The model's, of Transformers.
        prompt: The longest prompt, in tokens.
        completion: The longest completion.
        option: What bounds a completion, as the command line calls it.
    """
    config, length = config.get_text_config(), prompt + completion
    needs = f"prompts up to {prompt} and completions up to {completion} tokens need {length} positions"
    lower = f"lower --sampler.max-prompt-tokens or {option}."
    positions = getattr(config, "max_position_embeddings", None)
    for rotation in _rotations(config):
        kind = rotation.get("rope_type", rotation.get("type", "default"))
        if kind in _BY_LENGTH:
            changes_at = _changes_at(config, rotation)
            if length > changes_at:
                raise ConfigError(
                    f"{needs}, and the model's rotary embeddings ({kind}) change for rows of more than {changes_at}: "
                    f"sampler and trainer would compute different things. To stay below, {lower}"
                )
        elif kind not in _PLAIN_ROTATIONS:
            raise ConfigError(
                f"the model's rotary embeddings are of the kind {kind!r}, which is not known here; known are "
                f"{', '.join((*_PLAIN_ROTATIONS, *_BY_LENGTH))}."
            )
        elif kind in _STRETCHED and positions is not None:
            positions = _stretched(rotation, positions)
    if positions is not None and length > positions:
        raise ConfigError(f"{needs}, the model has {positions}; {lower}")


def check_row(config: Any, length: int, *, option: str) -> None:
    """Raise ConfigError where a row of `length` tokens, of a training without a sampler, does not fit into the model's
    positions; `option` is what bounds it on the command line.
    """
    longest = longest_row(config)
    if longest is not None and length > longest:
        raise ConfigError(f"{option} is {length}, and the model has {longest} positions; lower {option}.")


def longest_row(config: Any) -> int | None:
    """Return how many tokens `check_lengths` lets a prompt and its completion have, None where nothing bounds them."""
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    for rotation in _rotations(config):
        kind = rotation.get("rope_type", rotation.get("type", "default"))
        if kind in _BY_LENGTH:
            positions = _changes_at(config, rotation)
        elif kind in _STRETCHED and positions is not None:
            positions = _stretched(rotation, positions)
    return positions


def _changes_at(config: Any, rotation: Mapping[str, Any]) -> int:
    """Return the longest row whose rotation does not depend on its length."""
    name = "original_max_position_embeddings"
    stated = (rotation.get(name) or getattr(config, name, None), getattr(config, "max_position_embeddings", None))
    return min((each for each in stated if each is not None), default=0)


def _stretched(rotation: Mapping[str, Any], positions: int) -> int:
    trained = rotation.get("original_max_position_embeddings") or positions
    return max(positions, int(trained * (rotation.get("factor") or 1.0)))


def _rotations(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what a configuration says of its rotary embeddings, once, or once a kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        stated = getattr(config, name, None)
        if isinstance(stated, Mapping) and stated:
            nested = [each for each in stated.values() if isinstance(each, Mapping)]
            yield from nested or [stated]
            return

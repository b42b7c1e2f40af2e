"""Supervised training from a script or a notebook: conversations as a list, results as an object."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlora.errors import DataError
from rlora.store.results import Results
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import GIVEN, ConversationsConfig, Rows
from rlora.supervised.loop import run

Conversations = Sequence[Sequence[Mapping[str, Any]] | Mapping[str, Any]]
"""Lists of messages (`role`, `content`), or rows as a data file has them."""


def fine_tune(
    config: SupervisedConfig, conversations: Conversations | None = None, *, test: Conversations | None = None
) -> Results:
    """Train as `rlora train sft` does, and return what the run left; called again it goes on where it was stopped.

    Args:
        config: The run; `config.run_dir` is where everything is written.
        conversations: What to train on, in place of the data that `config` names.
        test: What to score on; a tenth of `conversations` is held out when left out.

    Raises:
        DataError: There are too few to hold any out, or none can be used.
        RloraError: What `rlora train sft` would print.

    Example:
        docs/supervised.md
    """
    if conversations is None:
        if test is not None:
            raise DataError("test was given without conversations.")
        return Results(run(config))
    data = ConversationsConfig(name=GIVEN, seed=config.data.seed)
    held_out = None if test is None else _rows(test)
    return Results(run(replace(config, data=data), conversations=_rows(conversations), test=held_out))


def _rows(conversations: Conversations) -> Rows:
    return [each if isinstance(each, Mapping) else {"messages": list(each)} for each in conversations]

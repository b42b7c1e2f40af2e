"""The examples of a run: read, turned into tokens, split into training and test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from rlora.errors import ConfigError, DataError
from rlora.tasks.conversations import Unfit, conversation_of
from rlora.tasks.examples import Encoder, Example, Intake, digest
from rlora.tasks.files import check_own, own_title, read_own_rows
from rlora.tasks.select import hold_out
from rlora.tasks.sets import gsm8k
from rlora.tasks.source import read_rows

GIVEN = "given"
"""The name of conversations that a script gives as a list."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """Conversations of the hub, or a file of the same rows in the local data folder; `read` makes a row's conversation
    of it where it is none yet.
    """

    hub: str
    file: str
    subset: str | None = None
    columns: tuple[str, ...] = ("id", "messages", "conversations")
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


NAMED = {
    "tulu3": NamedSet(hub="allenai/tulu-3-sft-mixture", file="tulu3/train.jsonl"),
    "openthoughts3": NamedSet(hub="open-thoughts/OpenThoughts3-1.2M", file="openthoughts3/train.jsonl"),
    "gsm8k": NamedSet(
        hub="openai/gsm8k",
        file="gsm8k/train.jsonl",
        subset="main",
        columns=("question", "answer"),
        read=gsm8k.solved,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationsConfig:
    """Which conversations are trained and tested on."""

    name: Annotated[str, tyro.conf.arg(name="data")] = "tulu3"
    """tulu3 (allenai/tulu-3-sft-mixture), openthoughts3 (open-thoughts/OpenThoughts3-1.2M, thoughts of some ten
    thousand tokens: raise --max-tokens), or gsm8k (the worked solutions of its training set, answers in a box). A file
    given by train takes its place.
    """
    data_dir: str | None = None
    """Folder of local data sets; $RLORA_DATA or ../shared/data when left out, and the hub when there is none."""
    train: str | None = None
    """Your own conversations, a row each: a file .jsonl, .json (an array), .csv, .tsv or .parquet, or hub:NAME[SPLIT].
    A row has messages (role, content), conversations (from, value), or prompt and completion (question and answer).
    """
    test: str | None = None
    """Your own held-out conversations; when left out, a tenth of train (at most 500) is held out."""
    limit: int = 0
    """Conversations that are taken, from the first on; 0 takes all. They are held in memory, 5 bytes a token."""
    seed: Annotated[int | None, tyro.conf.arg(name="data-seed")] = None
    """What the order of examples derives from; the run's --seed when left out."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule; whether data can be had is found out by loading it."""
        if self.test is not None and self.train is None:
            raise ConfigError("test is given without train; name your own training conversations too.")
        if self.train is None and self.name not in (*NAMED, GIVEN):
            raise ConfigError(
                f"the data set {self.name!r} is unknown; it must be one of {', '.join(NAMED)}, or a file of your own: "
                "--train FILE.jsonl."
            )
        for field in ("train", "test"):
            if (name := getattr(self, field)) is not None:
                check_own(name, f"{field} is {name!r}, which")
        if self.limit < 0:
            raise ConfigError(f"limit is {self.limit}; it must be at least 0, and 0 takes all conversations.")

    @property
    def title(self) -> str:
        """How the data is named beside a score."""
        return self.name if self.train is None else self.train.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a run trains on and is tested on, and what there is to say of what was left out, cut or split; `digests`
    are those of the tokens of both, `train` and `test`.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...]
    digests: Mapping[str, str]


def load_examples(
    config: ConversationsConfig,
    encoder: Encoder,
    *,
    max_tokens: int,
    given: tuple[Rows, Rows | None] | None = None,
    instruction: str = "",
) -> Examples:
    """Return the examples of a run; `given` are rows for training and test that a script has.

    Raises DataError where nothing is left to train or to be tested on, with what was wrong.
    """
    if given is None:
        train_rows, name = _rows(config), config.name if config.train is None else own_title(config.train)
        test_rows = None if config.test is None else read_own_rows(config.test, split="test")
        test_name = "" if config.test is None else own_title(config.test)
    else:
        (train_rows, test_rows), name, test_name = given, GIVEN, f"{GIVEN}-test"
    train = _encoded(train_rows, name, encoder, instruction)
    train.require(config.train or name)
    notes = train.lines(name, max_tokens)
    if test_rows is None:
        kept, test = hold_out(train.examples, name="conversations")
        if not test:
            raise DataError(
                f"{len(train.examples)} examples of {name} are too few to hold out a tenth of them: name others by "
                "--test FILE.jsonl."
            )
    else:
        held_out = _encoded(test_rows, test_name, encoder, instruction)
        held_out.require(config.test or test_name)
        notes += held_out.lines(test_name, max_tokens)
        kept, test = train.examples, held_out.examples
    tested = {example.token_ids.tobytes() for example in test}
    apart = [example for example in kept if example.token_ids.tobytes() not in tested]
    if len(apart) < len(kept):
        notes.append(f"{len(kept) - len(apart)} training examples are also in the test and were dropped.")
    if not apart:
        raise DataError(f"all examples of {name} are also in the test, so nothing is left to train on.")
    digests = {"train": digest(apart), "test": digest(test)}
    return Examples(train=tuple(apart), test=tuple(test), notes=tuple(notes), digests=digests)


def _rows(config: ConversationsConfig) -> Rows:
    part = f"[:{config.limit}]" if config.limit else ""
    if config.train is None:
        named = NAMED[config.name]
        rows = read_rows(
            named.file,
            hub=named.hub,
            subset=named.subset,
            split=f"train{part}",
            columns=named.columns,
            data_dir=config.data_dir,
        )
        if named.read is not None:
            return [named.read(row) for row in rows[: config.limit or None]]
    else:
        rows = read_own_rows(config.train, split=f"train{part}")
    return rows[: config.limit or None]


def _encoded(rows: Rows, name: str, encoder: Encoder, instruction: str) -> Intake:
    intake = Intake()
    for number, row in enumerate(rows, start=1):
        id = f"{name}/{number}"
        try:
            messages = conversation_of(row, where=f"{id},", instruction=instruction)
        except Unfit as error:
            intake.num_conversations += 1
            intake.refuse(error)
        else:
            encoder.add(intake, messages, id=id)
    return intake

"""Which problems a run trains and is tested on: a data set by name, or a person's own data."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from rlora.errors import ConfigError
from rlora.tasks.files import check_own

OWN = "jsonl"
"""The name of the data set that `train` and `test` files make."""
GIVEN = "given"
"""The name of problems that a script gives as a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The data set, where it lies, and what of it is taken for training."""

    name: Annotated[str, tyro.conf.arg(name="data")] = "gsm8k"
    """What to train and test on: arithmetic, gsm8k, math or deepmath, a generated reasoning_gym:NAME (with rlora[gym]),
    or your own my_module:my_task. Files given by train or test take its place.
    """
    data_dir: str | None = None
    """Folder of local data sets; $RLORA_DATA or ../shared/data when left out, and the hub when there is none."""
    train: str | None = None
    """Your own training problems, with a question and an answer in each row: a file .jsonl, .json (an array), .csv,
    .tsv or .parquet, or hub:NAME[SPLIT] (hub:NAME:SUBSET[SPLIT]). How answers count is said by --reward: mathematics
    (marked), last_number, or number.
    """
    test: str | None = None
    """Your own test problems, in the same fields; when left out, a tenth of train (at most 500) is held out."""
    train_title: str | None = None
    """What your own training problems are called in identifiers: the file's name, when left out, and in a run that goes
    on the name that it had, wherever the file lies now.
    """
    test_title: str | None = None
    """The same of your own test problems."""
    question_field: str = "question"
    """Field of your files that holds the question: a text, or messages that end with the user's."""
    answer_field: str = "answer"
    """Field of your files that holds the answer."""
    min_difficulty: float | None = None
    """Train on problems at least this difficult: 1 to 5 in MATH, about -1 to 10 in DeepMath. The test stays whole."""
    max_difficulty: float | None = None
    """Train on problems at most this difficult."""
    topic: str | None = None
    """Train on problems whose topic holds this text, in upper or lower case: "algebra", "Number Theory"."""
    seed: Annotated[int | None, tyro.conf.arg(name="data-seed")] = None
    """What the order of problems derives from; the run's --seed when left out, and in a sweep the first one for all, so
    that its members are compared on the same problems.
    """

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule; whether data can be had is found out by loading it."""
        if self.test is not None and self.train is None:
            raise ConfigError("test is given without train; to score a file, use rlora eval --benchmark FILE.jsonl.")
        if self.name == OWN and self.train is None:
            raise ConfigError(f"the data set {OWN!r} is your own files; name them with --train FILE.jsonl.")
        for field in ("train", "test"):
            if (name := getattr(self, field)) is not None:
                check_own(name, f"{field} is {name!r}, which")
        if not self.question_field or not self.answer_field:
            raise ConfigError("question_field and answer_field must not be empty.")
        low, high = self.min_difficulty, self.max_difficulty
        if low is not None and high is not None and low > high:
            raise ConfigError(f"min_difficulty is {low}, above max_difficulty, which is {high}.")

    @property
    def task_name(self) -> str:
        """The name in `TASKS` that these settings mean."""
        return self.name if self.train is None else OWN

    @property
    def title(self) -> str:
        """How the data set is named beside a score."""
        return self.name if self.train is None else self.train.rpartition("/")[2]

    @property
    def is_filtered(self) -> bool:
        """Whether some training problems are left out by difficulty or topic."""
        return (self.min_difficulty, self.max_difficulty, self.topic) != (None, None, None)

"""Conversations -> token ids and a mask of the tokens that are trained: those of the assistant.

What the assistant said is found by the template itself: the text of the first k messages must begin the text of the
first k + 1, and what a turn of the assistant's adds to it, the mark of its end included, is trained. A template that
writes earlier turns otherwise once others follow (Qwen3's drops their thoughts) makes several examples of such a
conversation, one a turn: each behind the text that the model will see before it answers there. The tokens before a
turn are those of the prompt that sampling begins with.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rlora.errors import ConfigError, DataError
from rlora.tasks.chat import Chat, Part
from rlora.tasks.conversations import Unfit, check_answers, check_turns
from rlora.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The T tokens of a conversation, up to the last one that is trained, and for each whether it is (1 or 0).

    Example:
        >>> Example(id="a/1", token_ids=array("i", [5, 6, 7]), is_trained=bytes([0, 1, 1])).num_trained
        2
    """

    id: str
    token_ids: "array[int]"
    is_trained: bytes

    def __len__(self) -> int:
        """Positions computed: the last token predicts nothing."""
        return len(self.token_ids) - 1

    @property
    def num_trained(self) -> int:
        """Tokens with a loss."""
        return self.is_trained.count(1)


@dataclass(slots=True, kw_only=True)
class Intake:
    """What became of conversations: the examples, how many were cut, and the unfit ones by reason, with the first."""

    examples: list[Example] = field(default_factory=list)
    num_conversations: int = 0
    num_split: int = 0
    num_cut: int = 0
    unfit: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def refuse(self, error: Unfit) -> None:
        """Count a row that is left out."""
        self.unfit[error.reason] += 1
        self.first.setdefault(error.reason, str(error))

    def lines(self, name: str, max_tokens: int) -> list[str]:
        """Return what there is to say of rows that were left out, cut or split."""
        found = []
        if self.unfit:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.unfit.most_common())
            found.append(
                f"{name}: {self.unfit.total()} of {self.num_conversations} conversations are left out: {reasons}. The "
                f"first: {next(iter(self.first.values()))}"
            )
        if self.num_cut:
            found.append(f"{name}: {self.num_cut} examples were cut to {max_tokens} tokens (--max-tokens).")
        if self.num_split:
            found.append(
                f"{name}: {self.num_split} conversations became an example for each turn of the assistant's, since the "
                "template writes earlier turns otherwise."
            )
        return found

    def require(self, name: str) -> None:
        """Raise DataError where nothing is left to train or to be tested on."""
        if self.examples:
            return
        reasons = " ".join(f"{count} {reason}: {self.first[reason]}" for reason, count in self.unfit.most_common(3))
        raise DataError(f"none of the {self.num_conversations} conversations of {name} can be used. {reasons}".rstrip())


class Encoder:
    """Makes examples of conversations for one tokenizer.

    Example:
        >>> encoder = Encoder(Chat(tokenizer, PromptConfig()), max_tokens=1024)
        >>> encoder.add(intake, conversation_of({"prompt": "Hi", "completion": "Hello."}, where="1"), id="1")
        >>> intake.examples[0].num_trained
        7
    """

    def __init__(self, chat: Chat, *, max_tokens: int, num_rows: int | None = None):
        """Cut examples to `max_tokens`; tokens must be below `num_rows`, the rows of the model's embedding."""
        self._chat, self._max_tokens, self._num_rows = chat, max_tokens, num_rows

    def add(self, intake: Intake, messages: Sequence[Message], *, id: str) -> None:
        """Add a conversation's examples, or count why there are none.

        Raises ConfigError for a token that the model does not have.
        """
        intake.num_conversations += 1
        try:
            check_turns(messages, where=f"{id},")
            check_answers(messages, where=f"{id},")
            pieces = self._pieces(self._chat.with_system(_ended(messages)), id)
            examples = [self._example(spans, id) for spans in pieces]
        except Unfit as error:
            intake.refuse(error)
            return
        intake.num_split += len(pieces) > 1
        intake.num_cut += sum(is_cut for _, is_cut in examples)
        kept = [example for example, _ in examples if example.num_trained]
        intake.examples += kept
        if not kept:
            intake.refuse(
                Unfit("cut before the assistant's turn", f"{id} has no assistant's turn in {self._max_tokens} tokens.")
            )

    def _pieces(self, messages: Sequence[Message], id: str) -> list[list[tuple[list[Part], bool]]]:
        """Return the pieces of each example: parts of its text, and whether the assistant said them."""
        try:
            turns = [
                (
                    self._chat.parts(messages[:index], is_asking=True, where=id),
                    self._chat.parts(messages[: index + 1], is_asking=False, where=id),
                )
                for index, message in enumerate(messages)
                if message.role == "assistant"
            ]
        except ConfigError as error:
            raise Unfit("that the template refuses", str(error)) from error
        for before, after in turns:
            if not _text(after).startswith(_text(before)):
                raise Unfit(
                    "without the prefix property",
                    f"the chat template does not begin {id} as it does the prompt before the answer; if the answers "
                    "hold thoughts, add --prompt.enable-thinking, or else try --prompt.template plain.",
                )
        edges = [edge for turn in turns for edge in turn]
        if all(_text(later).startswith(_text(edge)) for edge, later in pairwise(edges)):
            return [self._spans(edges)]
        return [self._spans(turn) for turn in turns]

    @staticmethod
    def _spans(edges: Sequence[list[Part]]) -> list[tuple[list[Part], bool]]:
        """Return what each text adds to the one before: a prompt, an answer, and so on in turn."""
        spans, start = [], 0
        for index, parts in enumerate(edges):
            end = len(_text(parts))
            spans.append((_cut(edges[-1], start, end), index % 2 == 1))
            start = end
        return spans

    def _example(self, spans: Sequence[tuple[list[Part], bool]], id: str) -> tuple[Example, bool]:
        token_ids, mask = array("i"), bytearray()
        for index, (parts, is_said) in enumerate(spans):
            found = self._chat.token_ids(parts, is_start=index == 0)
            num_trained = self._num_trained(found) if is_said else 0
            token_ids.extend(found)
            mask += bytes([1]) * num_trained + bytes(len(found) - num_trained)
        if self._num_rows is not None and max(token_ids) >= self._num_rows:
            raise ConfigError(
                f"{id} has the token {max(token_ids)}, and the model's embedding has only {self._num_rows} rows: "
                "tokens were added to the tokenizer, and the model was not resized."
            )
        is_cut = mask.rindex(1) >= self._max_tokens if 1 in mask else False
        mask = mask[: self._max_tokens]
        length = mask.rindex(1) + 1 if 1 in mask else min(len(mask), 2)
        return Example(id=id, token_ids=token_ids[:length], is_trained=bytes(mask[:length])), is_cut

    def _num_trained(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens of an assistant's turn are trained: up to the last special one, which ends the turn,
        or all where the template writes none.
        """
        ends = [index for index, token in enumerate(token_ids) if token in self._chat.special_ids]
        return ends[-1] + 1 if ends else len(token_ids)


def _ended(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation up to the last turn of the assistant's."""
    last = max(index for index, message in enumerate(messages) if message.role == "assistant")
    return messages[: last + 1]


def _text(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts)


def _cut(parts: Sequence[Part], start: int, end: int) -> list[Part]:
    """Return the pieces of a text between two places in it."""
    found, place = [], 0
    for part in parts:
        text = part.text[max(0, start - place) : max(0, end - place)]
        if text:
            found.append(Part(text=text, is_said=part.is_said))
        place += len(part.text)
    return found


def digest(examples: Iterable[Example]) -> str:
    """Return a digest of examples in their order."""
    content = hashlib.sha256()
    for example in examples:
        content.update(len(example.token_ids).to_bytes(8, "big") + example.token_ids.tobytes() + example.is_trained)
    return content.hexdigest()

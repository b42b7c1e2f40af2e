"""What a tokenizer makes of a conversation: the text of its chat template, or a plain one, and the tokens of that.

What is said in a conversation is text: a special token spelled in it, such as the mark of a turn's end, is tokenised as
its characters and ends nothing. Token ids are made once; a beginning-of-sequence token is there at most once.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Literal

from rlora.errors import ConfigError
from rlora.system.bounded import exceeded, time_limit
from rlora.types import Message

TemplateName = Literal["auto", "chat", "plain"]
_LIMIT_SECONDS, _LIMIT_GIGABYTES = 10.0, 1.0  # of a chat template; a usual one takes a millisecond
_BEGIN, _END = "\ue0b0", "\ue0b1"  # around what spells a special token while its place is looked for
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How a question is put to the model."""

    template: TemplateName = "auto"
    """chat (the tokenizer's chat template), plain ("Question: ... Answer:", for base models), or auto: chat where there
    is one.
    """
    instruction: str | None = None
    """Text after the question, telling how to answer; the task's own when left out."""
    system: str | None = None
    """System message of the chat template; the template's own when left out. A conversation that has one keeps it."""
    enable_thinking: bool = False
    """Ask the template of a thinking model to think; it needs thousands of tokens."""
    tools: str | None = None
    """JSON file with a list of tools (their schemas) that the chat template is given."""
    options: str | None = None
    """JSON object of further variables that the chat template is given, as '{"reasoning_effort": "low"}'."""
    date: str | None = None
    """The day (YYYY-MM-DD) that a chat template writes as today's: the day on which the run or the evaluation began,
    when left out, also when it goes on another day.
    """

    def check(self) -> None:
        """Raise ConfigError for a date that is none, and for tools or options that cannot be read."""
        try:
            self.day()
        except ValueError as error:
            raise ConfigError(f"prompt.date is {self.date!r}; it must be a day, as in 2026-11-30.") from error
        self.variables()

    def day(self) -> datetime:
        """Return the day that is today's for a template, at midnight; ValueError for a text that is no day."""
        return datetime.combine(date.fromisoformat(self.date or today()), time())

    def variables(self) -> dict[str, Any]:
        """Return what a chat template is given beside the messages; ConfigError for what cannot be read."""
        given: dict[str, Any] = {"enable_thinking": self.enable_thinking}
        if self.options is not None:
            options = _json(self.options, "prompt.options", self.options)
            if not isinstance(options, dict) or options.keys() & _OWN:
                raise ConfigError(
                    f"prompt.options is {self.options!r}; it must be a JSON object without {', '.join(sorted(_OWN))}."
                )
            given |= options
        if self.tools is not None:
            try:
                text = Path(self.tools).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"prompt.tools is {self.tools!r}, which cannot be read: {error}") from error
            tools = _json(text, "prompt.tools", self.tools)
            if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
                raise ConfigError(f"prompt.tools is {self.tools!r}; it must hold a JSON list of objects, one a tool.")
            given["tools"] = tools
        return given


_OWN = {"messages", "tools", "add_generation_prompt", "enable_thinking", "tokenize", "strftime_now"}


def _json(text: str, option: str, named: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is {named!r}, which is not JSON: {error}") from error


def today() -> str:
    """Return the day, as in 2026-11-30."""
    return datetime.now().date().isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a conversation's text; `is_said` where special tokens that it spells are its characters."""

    text: str
    is_said: bool = False


class Chat:
    """Writes conversations for one tokenizer.

    Example:
        >>> chat = Chat(tokenizer, PromptConfig())
        >>> chat.text([Message(role="user", content="Hi")], is_asking=True)
        'Question: Hi\\nAnswer:'
    """

    def __init__(self, tokenizer: Any, config: PromptConfig):
        """Raise ConfigError for a chat template that is asked for and not there, or that does not end."""
        self.tokenizer, self.config = tokenizer, config
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.template == "chat" and not has_template:
            raise ConfigError(
                "prompt.template is 'chat', but the tokenizer has no chat template; use --prompt.template plain."
            )
        self._variables = config.variables()
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = tuple({str(token) for token in added.values() if token.special})
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.is_chat = has_template if config.template == "auto" else config.template == "chat"
        if self.is_chat:
            self._try_template()

    def _try_template(self) -> None:
        """Raise ConfigError where the chat template does not end, or takes all memory: it is a program from elsewhere,
        and only its time can be limited in this process.
        """
        asked = self.with_system([Message(role="user", content="What is 3 + 4?")])
        passed = exceeded(
            lambda: self._filled_in(asked, is_asking=True), seconds=_LIMIT_SECONDS, gigabytes=_LIMIT_GIGABYTES
        )
        if passed:
            limit = f"{_LIMIT_SECONDS:g} s" if passed == "time" else f"{_LIMIT_GIGABYTES:g} GiB of memory"
            raise ConfigError(
                f"the model's chat template takes more than {limit} for one short question. --prompt.template plain "
                "does without it."
            )

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation with the configuration's system message, unless it begins with one."""
        if self.config.system is None or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message(role="system", content=self.config.system), *messages]

    def text(self, messages: Sequence[Message], *, is_asking: bool) -> str:
        """Return what a conversation is for the model; `is_asking` begins the assistant's next turn.

        Raises ConfigError, in its words, where the chat template refuses it.
        """
        return self._templated(messages, is_asking=is_asking) if self.is_chat else self._plain(messages)

    def _plain(self, messages: Sequence[Message]) -> str:
        text = ""
        for message in messages:
            between = "\n\n" if text else ""
            if message.role == "assistant":
                text += f" {message.content}{self.tokenizer.eos_token or ''}"
            elif message.role == "user":
                text += f"{between}Question: {message.content}\nAnswer:"
            else:
                text += f"{between}{message.content}"
        return text

    def _filled_in(self, messages: Sequence[Message], *, is_asking: bool) -> str:
        return self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=is_asking,
            tokenize=False,
            strftime_now=self.config.day().strftime,  # in place of the clock's
            **self._variables,
        )

    def _templated(self, messages: Sequence[Message], *, is_asking: bool) -> str:
        try:
            with time_limit(_LIMIT_SECONDS):
                return self._filled_in(messages, is_asking=is_asking)
        except Exception as error:  # a template is a program from elsewhere, and raises what it likes
            hint = "" if self.config.system is None else " Leave --prompt.system out if it takes no system message."
            raise ConfigError(
                f"the model's chat template refuses {' + '.join(one.role for one in messages)}: {error}.{hint} "
                "--prompt.template plain does without it."
            ) from error

    def spells_special(self, text: str) -> bool:
        """Return whether a text spells a special token of the tokenizer."""
        return any(token in text for token in self._special)

    def parts(self, messages: Sequence[Message], *, is_asking: bool, where: str) -> list[Part]:
        """Return the text of a conversation in pieces: what spells special tokens is said, the rest is the template's.

        Raises ConfigError, naming `where`, for a template or tokenizer that would make such a spelling a token.
        """
        text = self.text(messages, is_asking=is_asking)
        if not any(self.spells_special(message.content) for message in messages):
            return [Part(text=text)]
        for stripped in (False, True):  # some templates strip what is said, and cannot where it is marked
            marked = [self._marked(message, stripped) for message in messages]
            pieces = _MARKED.split(self.text(marked, is_asking=is_asking))
            if "".join(pieces) == text:
                parts = [Part(text=piece, is_said=index % 2 == 1) for index, piece in enumerate(pieces)]
                for message in messages:
                    self._check_spelling(message.content, where)
                return parts
        raise self._becomes_special(where, *messages)

    def _marked(self, message: Message, is_stripped: bool) -> Message:
        if not self.spells_special(message.content):
            return message
        content = message.content.strip() if is_stripped else message.content
        return replace(message, content=f"{_BEGIN}{content}{_END}")

    def _check_spelling(self, content: str, where: str) -> None:
        spelled = {self.tokenizer.convert_tokens_to_ids(token) for token in self._special if token in content}
        spelled.discard(self.tokenizer.unk_token_id)  # what characters become that the tokenizer does not know
        if spelled & set(self._said(content)):
            raise self._becomes_special(where, Message(role="", content=content))

    def _becomes_special(self, where: str, *messages: Message) -> ConfigError:
        names = [token for token in self._special if any(token in message.content for message in messages)]
        return ConfigError(
            f"{where} spells the special token {', '.join(names)}, and the model's template or tokenizer would make it "
            "one. Take it out of the question, or try --prompt.template plain."
        )

    def token_ids(self, parts: Sequence[Part], *, is_start: bool = True) -> list[int]:
        """Return the tokens of pieces of a text, which `is_start` says are its first."""
        found: list[int] = []
        for index, part in enumerate(parts):
            if part.is_said:
                found += self._said(part.text)
            elif is_start and index == 0:
                found += self._tokenized(part.text)
            elif part.text:
                found += self.tokenizer(part.text, add_special_tokens=False)["input_ids"]
        return found

    def _said(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _tokenized(self, text: str) -> list[int]:
        if self.is_chat:  # the template wrote the special tokens already
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        token_ids = self.tokenizer(text)["input_ids"]
        is_closed = bool(token_ids) and token_ids[-1] == self.tokenizer.eos_token_id  # some tokenizers close every text
        return token_ids[:-1] if is_closed else token_ids

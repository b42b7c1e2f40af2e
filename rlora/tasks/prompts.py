"""The one place where a problem becomes the model's prompt, used by training and evaluation alike.

Chat models get their own template; base models a plain one. The result is token ids: nothing is tokenised twice, so a
beginning-of-sequence token is there at most once. What a question says is text: a special token spelled in it, such as
the mark of a turn's end, is tokenised as its characters and ends nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, Literal

from rlora.errors import ConfigError
from rlora.system.bounded import exceeded, time_limit
from rlora.types import Problem, Prompt

TemplateName = Literal["auto", "chat", "plain"]
_ADDED = 8  # tokens at most that a tokenizer puts before a text by itself
_LIMIT_SECONDS, _LIMIT_GIGABYTES = 10.0, 1.0  # of a chat template; a usual one takes a millisecond
_BEGIN, _END = "\ue0b0", "\ue0b1"  # around a question while its place in the prompt is looked for
_PLAIN = "Question: {content}\nAnswer:"


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
    """System message of the chat template; the template's own when left out."""
    enable_thinking: bool = False
    """Ask the template of a thinking model to think; it needs thousands of tokens."""
    date: str | None = None
    """The day (YYYY-MM-DD) that a chat template writes as today's: the day on which the run or the evaluation began,
    when left out, also when it goes on another day.
    """

    def check(self) -> None:
        """Raise ConfigError for a date that is none."""
        try:
            self.day()
        except ValueError as error:
            raise ConfigError(f"prompt.date is {self.date!r}; it must be a day, as in 2026-11-30.") from error

    def day(self) -> datetime:
        """Return the day that is today's for a template, at midnight; ValueError for a text that is no day."""
        return datetime.combine(date.fromisoformat(self.date or today()), time())


def today() -> str:
    """Return the day, as in 2026-11-30."""
    return datetime.now().date().isoformat()


class PromptRenderer:
    """Renders problems for one tokenizer."""

    def __init__(self, tokenizer: Any, config: PromptConfig, *, instruction: str):
        """Use the task's `instruction` unless the configuration has one; ConfigError for a chat template that is not
        there.
        """
        self.tokenizer, self._config = tokenizer, config
        self.instruction = config.instruction if config.instruction is not None else instruction
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.template == "chat" and not has_template:
            raise ConfigError(
                "prompt.template is 'chat', but the tokenizer has no chat template; use --prompt.template plain."
            )
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._special = tuple({str(token) for token in added if token.special})
        self.is_chat = has_template if config.template == "auto" else config.template == "chat"
        if self.is_chat:
            self._try_template()

    def _try_template(self) -> None:
        """Raise ConfigError where the chat template does not end, or takes all memory: it is a program from elsewhere,
        and only its time can be limited in this process.
        """
        passed = exceeded(
            lambda: self._filled_in(self._messages("What is 3 + 4?"), is_asking=True),
            seconds=_LIMIT_SECONDS,
            gigabytes=_LIMIT_GIGABYTES,
        )
        if passed:
            limit = f"{_LIMIT_SECONDS:g} s" if passed == "time" else f"{_LIMIT_GIGABYTES:g} GiB of memory"
            raise ConfigError(
                f"the model's chat template takes more than {limit} for one short question. --prompt.template plain "
                "does without it."
            )

    def turn_end_ids(self) -> tuple[int, ...]:
        """Return the first special token that the chat template writes behind an assistant's message, if any.

        It ends a turn, and so a completion, whether or not the model's configurations list it among the end tokens.
        """
        if not self.is_chat:
            return ()
        said = "Yes, seven."
        turns = [*self._messages("Is it 7?"), {"role": "assistant", "content": said}]
        try:
            text = self._templated(turns, is_asking=False)
        except ConfigError:  # a template that knows of no assistant's turn ends none
            return ()
        _, found, behind = text.rpartition(said)
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        token_ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"] if found else []
        return tuple(token for token in token_ids if token in special)[:1]

    def _messages(self, content: str) -> list[dict[str, str]]:
        system = [] if self._config.system is None else [{"role": "system", "content": self._config.system}]
        return [*system, {"role": "user", "content": content}]

    def _filled_in(self, messages: list[dict[str, str]], *, is_asking: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=is_asking,
            tokenize=False,
            enable_thinking=self._config.enable_thinking,
            strftime_now=self._config.day().strftime,  # in place of the clock's
        )

    def _templated(self, messages: list[dict[str, str]], *, is_asking: bool) -> str:
        """Return what the chat template makes of messages; ConfigError, in its words, where it refuses them."""
        try:
            with time_limit(_LIMIT_SECONDS):
                return self._filled_in(messages, is_asking=is_asking)
        except Exception as error:  # a template is a program from elsewhere, and raises what it likes
            hint = "" if self._config.system is None else " Leave --prompt.system out if it takes no system message."
            raise ConfigError(
                f"the model's chat template refuses {' + '.join(one['role'] for one in messages)}: {error}.{hint} "
                "--prompt.template plain does without it."
            ) from error

    def check(self, problems: Sequence[Problem], *, num_rows: int) -> None:
        """Write every prompt; ConfigError for one that cannot be, or has tokens beyond the embedding's `num_rows`."""
        texts = [self._text(problem) for problem in problems]
        for problem in problems:
            if self._spells_special(problem):
                self._with_question_as_text(problem)
        if max(self.tokenizer.get_vocab().values()) < num_rows:
            return
        for problem, text in zip(problems, texts, strict=True):
            if beyond := sorted({token for token in self._token_ids(problem, text) if token >= num_rows}):
                names = ", ".join(f"{self.tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in beyond[:5])
                raise ConfigError(
                    f"the prompt of {problem.id} has the tokens {names}, and the model's embedding has only {num_rows} "
                    "rows: tokens were added to the tokenizer, and the model was not resized. Take them out of the "
                    "tokenizer, or resize the model (resize_token_embeddings)."
                )

    def num_too_long(self, problems: Sequence[Problem], limit: int) -> int:
        """Return how many prompts have more than `limit` tokens. A token has at least a byte, so few are written out:
        those whose question, with what the first prompt has around its own, could be too long.
        """
        if not problems:
            return 0
        around = len(self._text(problems[0]).encode()) - len(problems[0].question.encode()) + _ADDED
        large = [problem for problem in problems if len(problem.question.encode()) + around > limit]
        return sum(len(self._token_ids(problem, self._text(problem))) > limit for problem in large)

    def render(self, problem: Problem) -> Prompt:
        """Return the prompt of a problem; ConfigError where the chat template refuses it."""
        text = self._text(problem)
        return Prompt(problem=problem, text=text, token_ids=tuple(self._token_ids(problem, text)))

    def _text(self, problem: Problem, *, is_marked: bool = False) -> str:
        question = f"{_BEGIN}{problem.question}{_END}" if is_marked else problem.question
        content = f"{question} {self.instruction}".strip() if self.instruction else question
        return (
            self._templated(self._messages(content), is_asking=True) if self.is_chat else _PLAIN.format(content=content)
        )

    def _spells_special(self, problem: Problem) -> bool:
        return any(token in problem.question for token in self._special)

    def _token_ids(self, problem: Problem, text: str) -> list[int]:
        return self._with_question_as_text(problem) if self._spells_special(problem) else self._tokenized(text)

    def _with_question_as_text(self, problem: Problem) -> list[int]:
        """Return the tokens of a prompt whose question spells special tokens, which are characters there; ConfigError
        where the template or the tokenizer does not let them be.
        """
        before, _, rest = self._text(problem, is_marked=True).partition(_BEGIN)
        question, end, behind = rest.partition(_END)
        plain = self.tokenizer(question, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        spelled = {
            self.tokenizer.convert_tokens_to_ids(token): token for token in self._special if token in problem.question
        }
        spelled.pop(self.tokenizer.unk_token_id, None)  # what characters become that the tokenizer does not know
        if not end or spelled.keys() & set(plain):
            raise ConfigError(
                f"the question of {problem.id} spells the special token {', '.join(spelled.values())}, and the model's "
                "template or tokenizer would make it one. Take it out of the question, or try --prompt.template plain."
            )
        return [*self._tokenized(before), *plain, *self.tokenizer(behind, add_special_tokens=False)["input_ids"]]

    def _tokenized(self, text: str) -> list[int]:
        if self.is_chat:  # the template wrote the special tokens already
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        token_ids = self.tokenizer(text)["input_ids"]
        is_closed = bool(token_ids) and token_ids[-1] == self.tokenizer.eos_token_id  # some tokenizers close every text
        return token_ids[:-1] if is_closed else token_ids

"""The one place where a problem becomes the model's prompt, used by training and evaluation alike.

Chat models get their own template; base models a plain one (`rlora.tasks.chat`). The result is token ids: nothing is
tokenised twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlora.errors import ConfigError
from rlora.tasks.chat import Chat, Part, PromptConfig, TemplateName, today
from rlora.types import Message, Problem, Prompt

__all__ = ["PromptConfig", "PromptRenderer", "TemplateName", "today"]
_ADDED = 8  # tokens at most that a tokenizer puts before a text by itself


class PromptRenderer:
    """Renders problems for one tokenizer."""

    def __init__(self, tokenizer: Any, config: PromptConfig, *, instruction: str):
        """Use the task's `instruction` unless the configuration has one; ConfigError for a chat template that is not
        there.
        """
        self.chat = Chat(tokenizer, config)
        self.instruction = config.instruction if config.instruction is not None else instruction

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.chat.tokenizer

    @property
    def is_chat(self) -> bool:
        """Whether a chat template writes the prompts."""
        return self.chat.is_chat

    def turn_end_ids(self) -> tuple[int, ...]:
        """Return the first special token that the chat template writes behind an assistant's message, if any.

        It ends a turn, and so a completion, whether or not the model's configurations list it among the end tokens.
        """
        if not self.is_chat:
            return ()
        said = "Yes, seven."
        asked = self.chat.with_system([Message(role="user", content="Is it 7?")])
        try:
            text = self.chat.text([*asked, Message(role="assistant", content=said)], is_asking=False)
        except ConfigError:  # a template that knows of no assistant's turn ends none
            return ()
        _, found, behind = text.rpartition(said)
        token_ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"] if found else []
        return tuple(token for token in token_ids if token in self.chat.special_ids)[:1]

    def check(self, problems: Sequence[Problem], *, num_rows: int) -> None:
        """Write every prompt; ConfigError for one that cannot be, or has tokens beyond the embedding's `num_rows`."""
        for problem in problems:
            self._parts(problem)
        if max(self.tokenizer.get_vocab().values()) < num_rows:
            return
        for problem in problems:
            if beyond := sorted({token for token in self.render(problem).token_ids if token >= num_rows}):
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
        first = problems[0]
        around = len(self.chat.text(self._messages(first), is_asking=True).encode()) - _size(first) + _ADDED
        large = [problem for problem in problems if problem.messages or _size(problem) + around > limit]
        return sum(len(self.render(problem).token_ids) > limit for problem in large)

    def render(self, problem: Problem) -> Prompt:
        """Return the prompt of a problem; ConfigError where the chat template refuses it."""
        parts = self._parts(problem)
        token_ids = tuple(self.chat.token_ids(parts))
        return Prompt(problem=problem, text="".join(part.text for part in parts), token_ids=token_ids)

    def _parts(self, problem: Problem) -> list[Part]:
        return self.chat.parts(self._messages(problem), is_asking=True, where=f"the question of {problem.id}")

    def _messages(self, problem: Problem) -> list[Message]:
        """Return the turns of a problem, the instruction behind the last one."""
        messages = problem.messages or (Message(role="user", content=problem.question),)
        last = messages[-1]
        content = f"{last.content} {self.instruction}".strip() if self.instruction else last.content
        return self.chat.with_system([*messages[:-1], replace(last, content=content)])


def _size(problem: Problem) -> int:
    """Return the bytes of what a problem says."""
    return sum(len(message.content.encode()) for message in problem.messages) or len(problem.question.encode())

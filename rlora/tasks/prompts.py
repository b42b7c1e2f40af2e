"""The one place where a problem becomes the model's prompt, used by training and evaluation alike.

Chat models get their own template; base models a plain one. The result is token ids: nothing is tokenised twice, so a
beginning-of-sequence token is there at most once.
"""

from dataclasses import dataclass
from typing import Any, Literal

from rlora.errors import ConfigError
from rlora.types import Problem, Prompt

TemplateName = Literal["auto", "chat", "plain"]
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


class PromptRenderer:
    """Renders problems for one tokenizer."""

    def __init__(self, tokenizer: Any, config: PromptConfig, *, instruction: str):
        """Use the task's `instruction` unless the configuration has one; ConfigError for a chat template that is not
        there.
        """
        self._tokenizer, self._config = tokenizer, config
        self.instruction = config.instruction if config.instruction is not None else instruction
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.template == "chat" and not has_template:
            raise ConfigError(
                "prompt.template is 'chat', but the tokenizer has no chat template; use --prompt.template plain."
            )
        self.is_chat = has_template if config.template == "auto" else config.template == "chat"

    def render(self, problem: Problem) -> Prompt:
        """Return the prompt of a problem."""
        content = f"{problem.question} {self.instruction}".strip() if self.instruction else problem.question
        if self.is_chat:
            messages = [{"role": "user", "content": content}]
            if self._config.system is not None:
                messages.insert(0, {"role": "system", "content": self._config.system})
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=self._config.enable_thinking
            )
            token_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]  # the template wrote them already
        else:
            text = _PLAIN.format(content=content)
            token_ids = self._tokenizer(text)["input_ids"]
            if token_ids and token_ids[-1] == self._tokenizer.eos_token_id:
                token_ids = token_ids[:-1]  # some tokenizers close every text
        return Prompt(problem=problem, text=text, token_ids=tuple(token_ids))

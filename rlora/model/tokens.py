"""Token ids -> the text that was said: what is judged is this, with every special token but the end."""

from collections.abc import Collection, Sequence
from typing import Any


def said_text(tokenizer: Any, token_ids: Sequence[int], end_token_ids: Collection[int]) -> str:
    """Return the text of a completion, without the end token that ended it.

    Other special tokens stay: a mark of thinking is one in some tokenizers, and whoever judges the text must see it.

    Example:
        >>> said_text(tokenizer, [4, 0], end_token_ids=(0,))
        '2'
    """
    said = token_ids[:-1] if token_ids and token_ids[-1] in end_token_ids else token_ids
    return tokenizer.decode(list(said), skip_special_tokens=False)

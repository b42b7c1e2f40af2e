"""Token ids -> the text that was said: what is judged is this, with every special token but the end."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

SPELLING_UNKNOWN = 255  # in place of a number of bytes
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of a byte that no other token spells


def said_text(tokenizer: Any, token_ids: Sequence[int], end_token_ids: Collection[int]) -> str:
    """Return the text of a completion, without the end token that ended it.

    Other special tokens stay: a mark of thinking is one in some tokenizers, and whoever judges the text must see it.

    Example:
        >>> said_text(tokenizer, [4, 0], end_token_ids=(0,))
        '2'
    """
    said = token_ids[:-1] if token_ids and token_ids[-1] in end_token_ids else token_ids
    return tokenizer.decode(list(said), skip_special_tokens=False)


def num_bytes_of(tokenizer: Any) -> np.ndarray:
    """Return how many bytes of a text, in UTF-8, each token of the vocabulary spells: uint8, V of them.

    SPELLING_UNKNOWN stands for a token that spells more, and for one that is not in the vocabulary. Where the sum over
    a text's tokens is not the text's length, its tokenizer spells in another way, and nobody should cut it by these.
    """
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_byte_level = backend is not None and "ByteLevel" in str(backend.decoder)
    added = {index: str(token) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    counts = np.full(size, SPELLING_UNKNOWN, dtype=np.uint8)
    for index, piece in enumerate(pieces):
        if index in added or piece is None:
            count = len(added.get(index, "").encode()) if index in added else SPELLING_UNKNOWN
        elif is_byte_level:
            count = len(piece)  # a letter stands for a byte
        elif _BYTE.fullmatch(piece):
            count = 1
        else:
            count = len(piece.replace("\u2581", " ").encode())
        counts[index] = min(count, SPELLING_UNKNOWN)
    return counts

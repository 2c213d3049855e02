"""A text as windows of token ids, each behind what the tokenizer puts in front of every text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaoken.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Windows(NamedTuple):
    """Of a text, one behind another."""

    ids: NDArray[np.int64]  # [count, context]
    first: int  # position of a window behind its first eighth, which is there for context
    size: int  # bytes of the text that the positions from `first` on stand for


def cut(tokenizer: Tokenizer, text: str, context: int) -> Windows:
    """All whole windows of `context` tokens. Raises InputError where there is none."""
    front = _front(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    first, step = max(1, len(front), context // 8), context - len(front)
    count = len(encoding.ids) // step if context > first else 0
    if count == 0:
        raise InputError(
            f"the text has {len(encoding.ids)} tokens, and a window of {context} takes {max(step, 0)}: give a longer "
            "text, or another context"
        )
    ids = np.array(encoding.ids[: count * step], np.int64).reshape(count, step)
    ends = [0, *(end for _, end in encoding.offsets)]
    skipped = first - len(front)
    size = sum(
        len(text[ends[start + skipped] : ends[start + step]].encode("utf-8", "surrogatepass"))
        for start in range(0, count * step, step)
    )
    return Windows(np.concatenate([np.tile(np.array(front, np.int64), (count, 1)), ids], axis=1), first, size)


def _front(tokenizer: Tokenizer) -> list[int]:
    """The ids in front of every text, such as the one that begins it."""
    whole, bare = (tokenizer.encode("a", add_special_tokens=each).ids for each in (True, False))
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(bare)] == bare), [])


def read_text(path: str | Path) -> str:
    """A file's text. Raises InputError where it is none."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{path} is not UTF-8 (byte {error.start} of it): convert it first") from None
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None

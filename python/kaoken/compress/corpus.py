"""A text as samples to train on: windows of token ids, the same ones in the same order in every run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaoken.errors import InputError

_CHUNK = 1 << 20  # characters that are tokenized at a time, up to the end of a line


@dataclass(frozen=True)
class Corpus:
    """A tokenized text. `tokens` is uint16 or uint32 [n]; `size` is the text's length in UTF-8 bytes."""

    name: str
    tokens: NDArray[Any]
    vocab_size: int
    size: int

    def samples(self, context: int, stride: int | None = None) -> Samples:
        """Every whole window of `context` inputs and as many targets, one each `stride` tokens (default: `context`).

        Raises InputError where the text has not one.
        """
        stride = context if stride is None else stride
        if not 1 <= stride <= context:
            raise InputError(
                f"stride is {stride}; expected from 1 to the context of {context}, as no token is left out"
            )
        if len(self.tokens) <= context:
            raise InputError(
                f"{self.name} has {len(self.tokens)} tokens; expected more than the model's context of {context}: "
                "use a longer text, hold less of it out, or train a model of a shorter context"
            )
        return Samples(self.tokens, context, stride, self.vocab_size)


@dataclass(frozen=True)
class Samples:
    """Sample i is `context` ids from i * stride on, and its targets are those one token further."""

    tokens: NDArray[Any]
    context: int
    stride: int
    vocab_size: int

    def __len__(self) -> int:
        return (len(self.tokens) - self.context - 1) // self.stride + 1

    def inputs(self, start: int, stop: int) -> NDArray[np.int64]:
        """int64 [stop - start, context]."""
        return self.gather(np.arange(start, stop))[0]

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of some samples, both int64 [len(indices), context]."""
        places = np.asarray(indices)[:, None] * self.stride + np.arange(self.context + 1)
        ids = self.tokens[places].astype(np.int64)
        return ids[:, :-1], ids[:, 1:]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids and of how they are cut."""
        state = hashlib.sha256(f"{self.context} {self.stride} {self.vocab_size} {self.tokens.dtype.str}\n".encode())
        state.update(np.ascontiguousarray(self.tokens).data)
        return state.hexdigest()


def read_corpus(path: str | Path, tokenizer: Any, vocab_size: int, holdout: float = 0.1) -> tuple[Corpus, Corpus]:
    """A UTF-8 file as a text to train on and, of its end, the share `holdout` (0 to below 1) to evaluate with.

    `tokenizer` is a `tokenizers.Tokenizer`, `vocab_size` that of the model. Long texts are tokenized some lines at a
    time.

    Raises InputError for a file that is not UTF-8 or empty and for a token outside the vocabulary, and OSError for a
    file that cannot be read.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"holdout is {holdout}; expected a share of the text from 0 to below 1, such as 0.1")
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): convert it first") from None
    if not text:
        raise InputError(f"{path} is empty; expected a text to train on: name another file")
    cut = len(text) - round(len(text) * holdout)
    training = _corpus(str(path), text[:cut], tokenizer, vocab_size)
    return training, _corpus(f"the end of {path}", text[cut:], tokenizer, vocab_size)


def _corpus(name: str, text: str, tokenizer: Any, vocab_size: int) -> Corpus:
    pieces = _pieces(text)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(pieces, add_special_tokens=False)]
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    largest = max((max(piece) for piece in ids if piece), default=0)
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer makes token {largest} of {name}, but the model has {vocab_size} tokens; expected the "
            "model's own tokenizer"
        )
    tokens = np.concatenate([np.asarray(piece, dtype) for piece in ids]) if ids else np.empty(0, dtype)
    return Corpus(name, tokens, vocab_size, len(text.encode()))


def _pieces(text: str) -> list[str]:
    """The text in pieces that end with a line, unless a line is longer than that."""
    pieces, start = [], 0
    while start < len(text):
        stop = min(len(text), start + _CHUNK)
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        pieces.append(text[start:stop])
        start = stop
    return pieces

"""What every engine offers to the runner."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Checkpoint

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Engine(ABC):
    """A loaded model. What it can be asked for is in the class of its task, below."""

    note = ""  # where its work differs from what its task says

    @classmethod  # noqa: B027 (most engines need nothing of the three that are not abstract)
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        """Converts a checkpoint into `directory`, which exists and is empty. By default nothing is needed."""

    @classmethod
    def locate(cls, checkpoint: Checkpoint, variant: str) -> Path | None:
        """What takes the place of a prepared directory, where the engine has a cache of its own."""
        return None

    @abstractmethod
    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        """Loads what `prepare` wrote."""

    def facts(self) -> dict[str, Any]:
        """What else a report should know of it, as JSON."""
        return {}

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        """Python source that loads the model and prints one token, or the first vector of a text of
        16 tokens; None where that is not measured."""
        return None


class Decoder(Engine):
    """Greedy decoding of some sequences of one length: the logits of the last position, the likeliest token."""

    def reserve(self, batch: int, positions: int) -> None:
        """Makes room for `batch` sequences of up to `positions`; never timed."""

    @abstractmethod
    def start(self, ids: Ids) -> Ids:
        """Forgets everything, reads ids [batch, count] and returns the likeliest next tokens, [batch]."""

    @abstractmethod
    def step(self, tokens: Ids) -> Ids:
        """Appends one token to each sequence, [batch], and returns the likeliest next tokens, [batch]."""

    def time_prefill(self, ids: Ids) -> float:
        """Seconds from ids [batch, count] to the first new token."""
        begin = time.perf_counter()
        self.start(ids)
        return time.perf_counter() - begin

    def time_decode(self, ids: Ids, steps: int) -> list[float]:
        """Seconds of each of `steps` steps behind ids [batch, count], whatever the tokens are."""
        tokens = self.start(ids)
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            tokens = self.step(tokens)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def time_generate(self, ids: Ids, steps: int) -> float:
        """Seconds of the library's own `generate`, called once for `steps` new tokens behind ids [batch, count]."""
        raise NotImplementedError(f"{type(self).__name__} has no generate")


class Encoder(Engine):
    """The vectors of the last layer at every position of some texts of any lengths."""

    @abstractmethod
    def encode(self, texts: list[list[int]]) -> list[Vectors]:
        """The vectors of each text, float32 [length, width]."""

    def tune(self, texts: list[list[int]]) -> None:
        """Chooses how to take texts like these; never timed."""

    def time_encode(self, texts: list[list[int]]) -> float:
        """Seconds of `encode`."""
        begin = time.perf_counter()
        self.encode(texts)
        return time.perf_counter() - begin


class SortedEncoder(Encoder):
    """Takes texts in the order of their lengths, in batches of whichever size is the quickest."""

    sizes = (1, 8, 32)
    _size = max(sizes)

    @abstractmethod
    def encode_batch(self, texts: list[list[int]]) -> list[Vectors]:
        """The vectors of each of at most `max(sizes)` texts, float32 [length, width]."""

    def encode(self, texts: list[list[int]]) -> list[Vectors]:
        order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
        found: dict[int, Vectors] = {}
        for begin in range(0, len(order), self._size):
            batch = order[begin : begin + self._size]
            found |= zip(batch, self.encode_batch([texts[text] for text in batch]), strict=True)
        return [found[text] for text in range(len(texts))]

    def tune(self, texts: list[list[int]]) -> None:
        seconds = {}
        for size in dict.fromkeys(min(size, len(texts)) for size in self.sizes):
            self._size = size
            self.encode(texts[:size])
            seconds[size] = self.time_encode(texts)
        self._size = min(seconds, key=seconds.__getitem__)


class PaddedEncoder(SortedEncoder):
    """Pads the texts of a batch to the longest of them."""

    @abstractmethod
    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        """The vectors [batch, longest, width] of ids [batch, longest] whose mask has 0 for the padding behind."""

    def encode_batch(self, texts: list[list[int]]) -> list[Vectors]:
        lengths = np.array([len(text) for text in texts])
        mask = (np.arange(lengths[-1]) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        ids[mask == 1] = np.concatenate(texts)
        return [row[:length] for row, length in zip(self.forward(ids, mask), lengths, strict=True)]


class Translator(Engine):
    """Greedy tokens of an encoder-decoder for sources of one length, whatever the tokens are."""

    @abstractmethod
    def translate(self, ids: Ids, count: int) -> Ids:
        """The first `count` tokens behind the start token, [batch, count], for ids [batch, length]."""

    def time_translate(self, ids: Ids, count: int) -> float:
        """Seconds of `translate`."""
        begin = time.perf_counter()
        self.translate(ids, count)
        return time.perf_counter() - begin

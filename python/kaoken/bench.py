"""`kaoken bench`: how fast a baked model runs on this machine, and how near that is to what memory allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaoken.causal import BakedCausalLM, Session
from kaoken.encoder import BakedEncoder
from kaoken.errors import InputError
from kaoken.library import ModelConfig
from kaoken.model import load
from kaoken.seq2seq import BakedSeq2SeqLM

ROUNDS = 5
PROMPT = 128  # positions, where the model has so many
STEPS = 64
BATCH = 16  # texts of an encoder
READ_BYTES = 256 << 20  # several times the last-level cache of the machines that this is for


@dataclass(frozen=True)
class Benchmark:
    """Medians. `limit` is the machine's measured read bandwidth, `gigabytes_per_second` what decoding reads of it."""

    model: str
    dtype: str
    isa: str
    threads: int
    prompt: int  # positions of the prompt
    steps: int  # tokens decoded behind it
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    bytes_per_token: int
    gigabytes_per_second: float
    limit: float
    percent_of_limit: float


@dataclass(frozen=True)
class Seq2SeqBenchmark(Benchmark):
    """Of an encoder-decoder: the prompt is its source, and a prefill is the encoder's reading of that."""


@dataclass(frozen=True)
class EncoderBenchmark:
    """Medians of an encoder, which decodes nothing."""

    model: str
    dtype: str
    isa: str
    threads: int
    text: int  # positions of a text
    batch: int  # texts of a batch
    text_tokens_per_second: float
    batch_tokens_per_second: float


class _Decoding:
    """One sequence of a decoder, which reads a prompt, or of an encoder-decoder, which reads a source."""

    def __init__(self, model: BakedCausalLM | BakedSeq2SeqLM) -> None:
        self.config = model.config
        self._native = model._session(1)
        self.session = Session(self._native, model.config)
        self.reads_source = isinstance(model, BakedSeq2SeqLM)

    def read(self, ids: NDArray[np.int64]) -> float:
        """Begins anew behind ids [count]; the seconds that this takes."""
        self.session.rewind(0)
        begin = time.perf_counter()
        if self.reads_source:
            self._native.encode(np.array([len(ids)]), ids)
        else:
            self.session.append(ids)
        return time.perf_counter() - begin

    def begin(self) -> None:
        """With nothing decoded, behind any source."""
        if self.reads_source:
            self.read(_random_ids(self.config, min(PROMPT, self.config.source_positions)))
        else:
            self.session.rewind(0)

    def time_decode(self, steps: int) -> float:
        return _time_decode(self.session, steps, self.config.vocab_size)


def measure(model: BakedCausalLM | BakedSeq2SeqLM | BakedEncoder) -> Benchmark | EncoderBenchmark:
    """Reads fresh random ids, and decodes behind them where the model does, for a few seconds.

    InputError for a decoder of n_positions = 1.
    """
    return _measure_encoder(model) if isinstance(model, BakedEncoder) else _measure_decoding(model)


def _measure_decoding(model: BakedCausalLM | BakedSeq2SeqLM) -> Benchmark:
    decoding, info = _Decoding(model), model.info
    prompt, steps = _lengths(model.config)
    rounds = []
    for _ in range(ROUNDS + 1):  # the first for warmth
        rounds.append((decoding.read(_random_ids(model.config, prompt)), decoding.time_decode(steps)))
    prefill, decode = _medians(rounds)
    size, threads = info.bytes_per_token, decoding.session.threads
    rate, limit = size / decode / 1e9, read_limit(threads, READ_BYTES)
    kind = Seq2SeqBenchmark if decoding.reads_source else Benchmark
    return kind(
        model=info.name,
        dtype=info.dtype,
        isa=info.isa,
        threads=threads,
        prompt=prompt,
        steps=steps,
        prefill_tokens_per_second=prompt / prefill,
        decode_tokens_per_second=1 / decode,
        bytes_per_token=size,
        gigabytes_per_second=rate,
        limit=limit,
        percent_of_limit=100 * rate / limit,
    )


def _lengths(config: ModelConfig) -> tuple[int, int]:
    """Of what is read, and of what is decoded behind it."""
    if config.source_positions:
        return min(PROMPT, config.source_positions), min(STEPS, config.n_positions)
    if config.n_positions < 2:
        raise InputError("a model of one position has nothing to decode: bench needs n_positions of at least 2")
    prompt = max(1, min(PROMPT, config.n_positions // 2))
    return prompt, min(STEPS, config.n_positions - prompt)


def _measure_encoder(model: BakedEncoder) -> EncoderBenchmark:
    info, text = model.info, min(PROMPT, model.config.n_positions)
    rounds = [(_time_texts(model, 1, text), _time_texts(model, BATCH, text)) for _ in range(ROUNDS + 1)]
    one, batch = _medians(rounds)
    return EncoderBenchmark(
        model=info.name,
        dtype=info.dtype,
        isa=info.isa,
        threads=model._session(1).threads,
        text=text,
        batch=BATCH,
        text_tokens_per_second=text / one,
        batch_tokens_per_second=BATCH * text / batch,
    )


def decode_seconds(libraries: Sequence[Path]) -> list[float]:
    """Of each library: the median seconds of a token, in rounds that alternate.

    A token is decoded in one sequence; an encoder's is one of a text.
    """
    timers = [_token_timer(load(library)) for library in libraries]
    return _medians([[timer() for timer in timers] for _ in range(ROUNDS + 1)])


def _token_timer(model: Any) -> Callable[[], float]:
    """What measures the seconds of a token."""
    if isinstance(model, BakedEncoder):
        text = min(PROMPT, model.config.n_positions)
        return lambda: _time_texts(model, 1, text) / text
    decoding, steps = _Decoding(model), min(STEPS, model.config.n_positions)

    def seconds() -> float:
        decoding.begin()
        return decoding.time_decode(steps)

    return seconds


def _medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Of each column, without the first row, which is for warmth."""
    return [float(np.median(seconds)) for seconds in zip(*rounds[1:], strict=True)]


def _random_ids(config: ModelConfig, count: int) -> NDArray[np.int64]:
    return np.random.default_rng().integers(0, config.vocab_size, count, np.int64)


def _time_texts(model: BakedEncoder, count: int, length: int) -> float:
    """Seconds to the vectors of `count` texts of random ids."""
    ids = _random_ids(model.config, count * length).reshape(count, length)
    begin = time.perf_counter()
    model.hidden_states(ids)
    return time.perf_counter() - begin


def _time_decode(session: Session, steps: int, vocabulary: int) -> float:
    """The median step's seconds; the tokens are any."""
    stamps = [time.perf_counter()]
    for step in range(steps):
        session.append([step % vocabulary])
        stamps.append(time.perf_counter())
    return float(np.median([after - before for before, after in pairwise(stamps)]))


def read_limit(threads: int, size: int) -> float:
    """GB/s at which `threads` threads read memory that no cache holds; the best of a few tries."""
    shares = np.array_split(np.ones(size // 4, np.int32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(_time_read(pool, shares) for _ in range(ROUNDS + 1))


def _time_read(pool: ThreadPoolExecutor, shares: list[NDArray[np.int32]]) -> float:
    """NumPy's reductions run without the GIL and at the speed of memory."""
    begin = time.perf_counter()
    list(pool.map(np.bitwise_or.reduce, shares))
    return sum(share.nbytes for share in shares) / (time.perf_counter() - begin) / 1e9


def lines(result: Benchmark | EncoderBenchmark) -> list[str]:
    """For people."""
    title = f"{result.model}, {result.dtype}, {result.isa}, {result.threads} threads"
    if isinstance(result, EncoderBenchmark):
        return [
            title,
            f"text     {result.text_tokens_per_second:10.1f} tokens/s, one text of {result.text}",
            f"batch    {result.batch_tokens_per_second:10.1f} tokens/s, {result.batch} texts of {result.text}",
        ]
    reading, read = ("encode", "source") if isinstance(result, Seq2SeqBenchmark) else ("prefill", "prompt")
    return [
        title,
        f"decode   {result.decode_tokens_per_second:10.1f} tokens/s, {result.steps} behind a {read} of {result.prompt}",
        f"{reading:9}{result.prefill_tokens_per_second:10.1f} tokens/s, {result.prompt} at a time",
        f"weights  {result.gigabytes_per_second:10.1f} GB/s of {result.limit:.1f} that this machine reads from memory "
        f"({result.percent_of_limit:.0f} %), {result.bytes_per_token / 1e6:.1f} MB a token",
    ]

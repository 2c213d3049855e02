"""`kaoken bench`: how fast a baked model runs on this machine, and how near that is to what memory allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaoken.causal import BakedCausalLM, Session
from kaoken.errors import InputError
from kaoken.model import load

ROUNDS = 5
PROMPT = 128  # positions, where the model has so many
STEPS = 64
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


def measure(model: BakedCausalLM) -> Benchmark:
    """Reads prompts of fresh random ids and decodes behind them, for a few seconds. InputError for n_positions = 1."""
    config, info = model.config, model.info
    if config.n_positions < 2:
        raise InputError("a model of one position has nothing to decode: bench needs n_positions of at least 2")
    prompt = max(1, min(PROMPT, config.n_positions // 2))
    steps = min(STEPS, config.n_positions - prompt)
    session = model.session()
    generator = np.random.default_rng()
    rounds = []
    for _ in range(ROUNDS + 1):  # the first for warmth
        ids = generator.integers(0, config.vocab_size, prompt, np.int64)
        rounds.append((_time_prefill(session, ids), _time_decode(session, steps, config.vocab_size)))
    prefill, decode = (float(np.median(seconds)) for seconds in zip(*rounds[1:], strict=True))
    size = info.bytes_per_token
    rate, limit = size / decode / 1e9, read_limit(session.threads, READ_BYTES)
    return Benchmark(
        model=info.name,
        dtype=info.dtype,
        isa=info.isa,
        threads=session.threads,
        prompt=prompt,
        steps=steps,
        prefill_tokens_per_second=prompt / prefill,
        decode_tokens_per_second=1 / decode,
        bytes_per_token=size,
        gigabytes_per_second=rate,
        limit=limit,
        percent_of_limit=100 * rate / limit,
    )


def decode_seconds(libraries: Sequence[Path]) -> list[float]:
    """Of each library: the median seconds to decode a token of one sequence, in rounds that alternate."""
    models = [load(library) for library in libraries]
    sessions = [(model.session(), model.config) for model in models]
    rounds = []
    for _ in range(ROUNDS + 1):  # the first for warmth
        times = []
        for session, config in sessions:
            session.rewind(0)
            times.append(_time_decode(session, min(STEPS, config.n_positions), config.vocab_size))
        rounds.append(times)
    return [float(np.median(seconds)) for seconds in zip(*rounds[1:], strict=True)]


def _time_prefill(session: Session, ids: NDArray[np.int64]) -> float:
    """Seconds from the prompt to its last position's logits, which the session then holds."""
    session.rewind(0)
    begin = time.perf_counter()
    session.append(ids)
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


def lines(result: Benchmark) -> list[str]:
    """For people."""
    return [
        f"{result.model}, {result.dtype}, {result.isa}, {result.threads} threads",
        f"decode   {result.decode_tokens_per_second:10.1f} tokens/s, {result.steps} behind a prompt of {result.prompt}",
        f"prefill  {result.prefill_tokens_per_second:10.1f} tokens/s, {result.prompt} at a time",
        f"weights  {result.gigabytes_per_second:10.1f} GB/s of {result.limit:.1f} that this machine reads from memory "
        f"({result.percent_of_limit:.0f} %), {result.bytes_per_token / 1e6:.1f} MB a token",
    ]

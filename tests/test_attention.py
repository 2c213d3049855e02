"""Attention with every type of KV cache on every ISA of this machine, against NumPy in float64.

The cache is only written by the kernel itself, and full of garbage before that.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from kaoken.codegen.dtypes import CACHE_DTYPES
from kaoken.codegen.layout import KEY_TYPES, round_up
from numpy.typing import NDArray

from native_kernels import REGISTRY, UNIT, Side, Values, gamma, guarded, output, pointer

Floats = NDArray[np.float32]
Exact = NDArray[np.float64]

BATCH, POSITIONS = 2, 192
PAGES = np.array([[3, 0, 5], [1, 4, 2]], np.int32)  # of each sequence, in no order
TOTALS = (1, 6, 64, 65, 130, 192)

shapes = pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 12), (2, 64)])
caches = pytest.mark.parametrize("dtype", CACHE_DTYPES)


class Sequence(ctypes.Structure):
    """As runtime/include/kaoken/pass.h declares it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("row", "count", "past", "length")),
        ("pages", ctypes.c_void_p),
        ("source_length", ctypes.c_int64),
        ("source_pages", ctypes.c_void_p),
        ("window_pages", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Inputs:
    """Query, key and value [batch][positions][3][heads][padded], as the linear before leaves them."""

    qkv: Floats

    def part(self, index: int) -> Exact:
        """The query, keys or values [batch][heads][positions][padded]."""
        return np.moveaxis(self.qkv[:, :, index], 1, 2).astype(np.float64)


def make_inputs(heads: int, head_dim: int, total: int = POSITIONS) -> Inputs:
    """Keys and values lie off the middles between the integers that an int8 cache rounds them to."""
    random = np.random.default_rng(heads + head_dim)
    shape = (BATCH, POSITIONS, 3, heads, head_dim)
    steps = np.rint(np.clip(random.normal(0, 50, shape), -126, 126)) + random.uniform(-0.4, 0.4, shape)
    np.put_along_axis(steps, random.integers(0, head_dim, (*shape[:-1], 1)), random.choice([-127, 127]), axis=-1)
    qkv = np.zeros((*shape[:-1], round_up(head_dim)), np.float32)
    qkv[..., :head_dim] = steps * random.uniform(0.01, 0.03, (*shape[:-1], 1))
    return Inputs(np.ascontiguousarray(qkv[:, :total]))


def round_float32(values: Exact) -> Exact:
    return values


def round_bfloat16(values: Exact) -> Exact:
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32) << 16
    return nearest.view(np.float32).astype(np.float64)


def round_int8(values: Exact) -> Exact:
    """Each position and head by itself, the largest at 127."""
    scale = (np.abs(values).max(axis=-1, keepdims=True) / 127).astype(np.float32).astype(np.float64)
    return np.rint(values / np.where(scale > 0, scale, 1)) * scale


ROUND: dict[str, Callable[[Exact], Exact]] = {
    "float32": round_float32,
    "bfloat16": round_bfloat16,
    "int8": round_int8,
}


def exact_attention(inputs: Inputs, dtype: str) -> tuple[Exact, Exact]:
    """The result [batch][positions][heads][padded] over rounded keys and values, and the bound of a kernel's error."""
    query, keys, values = (inputs.part(index) for index in range(3))
    result, bound = exact_rows(query, keys, values, np.tri(query.shape[-2], dtype=bool), dtype)
    return np.moveaxis(result, 1, 2), np.moveaxis(bound, 1, 2)


def exact_rows(
    query: Exact,
    keys: Exact,
    values: Exact,
    visible: NDArray[np.bool_],
    dtype: str,
    bias: Exact | float = 0.0,
    added: Exact | float = 0.0,
) -> tuple[Exact, Exact]:
    """The result [...][heads][queries][padded] and the bound of a kernel's error, with a bias [heads][queries][keys],
    of which `added` is the sum of the magnitudes that it was made of.

    A score is a sum of D products, its probability an exponential of 2 ulp, and sums of up to 192 of them follow; a
    relative error of every probability moves their quotient by twice that. Queries are rounded as keys are. Beside a
    bfloat16 cache probabilities are bfloat16, beside an int8 cache they have 14 bits of a tile's largest.
    """
    query, keys, values = (ROUND[dtype](each) for each in (query, keys, values))
    scores = query @ keys.swapaxes(-1, -2) + bias
    sizes = (np.abs(query) @ np.abs(keys).swapaxes(-1, -2) + added).max(axis=-1, keepdims=True)
    weights = np.where(visible, np.exp(scores - np.where(visible, scores, -np.inf).max(-1, keepdims=True)), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    relative = gamma(query.shape[-1] + 6) * sizes + gamma(POSITIONS) + 8 * UNIT
    rounded = np.zeros(1)
    if dtype == "bfloat16":
        relative = relative + 2.0**-9
    elif dtype == "int8":
        largest = np.abs(values).max(axis=-1)[..., None, :]  # 127 steps of a value
        rounded = visible.sum(axis=-1)[:, None] * (weights * largest).max(axis=-1, keepdims=True) / 16383 / 2
    return weights @ values, 2 * relative * (weights @ np.abs(values)) + rounded


def attend(
    library: ctypes.CDLL, dtype: str, inputs: Inputs, splits: Iterable[int] = (), side: Side = "end"
) -> tuple[Values, Values]:
    """Runs all positions, in parts that the splits cut; the result [batch][positions][heads][padded], and the cache."""
    heads, dim = inputs.qkv.shape[-2:]
    head_dim = {16: 12 if heads == 3 else 16, 64: 64}[dim]
    name = f"{dtype}_{heads}_{head_dim}"
    size = int(getattr(library, f"cache_bytes_{name}")()) * BATCH * POSITIONS
    cache = guarded(np.full(size, 0xFF, np.uint8), side, writable=True)  # NaN, in all that is a float
    results, past = [], 0
    for part in np.split(inputs.qkv, list(splits), axis=1):
        count = part.shape[1]
        sequences = (Sequence * BATCH)(
            *(Sequence(i * count, count, past, past + count, pages.ctypes.data) for i, pages in enumerate(PAGES))
        )
        qkv, out = guarded(part, side), output((*part.shape[:2], heads, dim), side)
        attention = getattr(library, f"attention_{name}")
        attention(ctypes.c_int64(BATCH), sequences, ctypes.c_int64(BATCH * count), *map(pointer, (qkv, cache, out)))
        results.append(out)
        past += count
    return np.concatenate(results, axis=1), cache


def random_splits(total: int, seed: int) -> list[int]:
    """Where to cut `total` positions, in parts of 1 to about 70."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(2 ** random.integers(0, 7, size=total) + random.integers(0, 7, size=total))
    return [int(end) for end in ends if end < total]


@caches
@shapes
@pytest.mark.parametrize("total", TOTALS)
def test_attention(library: ctypes.CDLL, dtype: str, heads: int, head_dim: int, total: int) -> None:
    inputs = make_inputs(heads, head_dim, total)
    out, _ = attend(library, dtype, inputs)
    exact, bound = exact_attention(inputs, dtype)
    assert (np.abs(out - exact) <= bound).all()


@caches
@shapes
def test_the_split_of_a_prompt_does_not_change_a_bit(
    library: ctypes.CDLL, dtype: str, heads: int, head_dim: int
) -> None:
    inputs = make_inputs(heads, head_dim)
    whole, _ = attend(library, dtype, inputs)
    for splits in (range(1, POSITIONS), [63], [64], [191], *(random_splits(POSITIONS, seed) for seed in range(6))):
        parts, _ = attend(library, dtype, inputs, splits)
        assert parts.tobytes() == whole.tobytes(), f"split at {list(splits)}"


@caches
@shapes
def test_nothing_before_an_array_is_touched(library: ctypes.CDLL, dtype: str, heads: int, head_dim: int) -> None:
    """What lies behind them is guarded in every other test."""
    inputs = make_inputs(heads, head_dim)
    first, _ = attend(library, dtype, inputs, [5, 6, 70], "begin")
    assert first.tobytes() == attend(library, dtype, inputs)[0].tobytes()


@caches
def test_positions_to_come_are_not_written(library: ctypes.CDLL, dtype: str) -> None:
    """What a position leaves in the cache is at most its own part of it."""
    _, cache = attend(library, dtype, make_inputs(2, 64, 1))
    assert np.count_nonzero(cache != 0xFF) <= cache.size // POSITIONS


@caches
def test_keys_and_values_of_zero(library: ctypes.CDLL, dtype: str) -> None:
    """Their scale in int8 is zero."""
    inputs = make_inputs(1, 16)
    inputs.qkv[:, ::2, 1:] = 0
    out, _ = attend(library, dtype, inputs)
    exact, bound = exact_attention(inputs, dtype)
    assert (np.abs(out - exact) <= bound).all()


@pytest.mark.parametrize(
    ("dtype", "broken"), [("float32", np.nan), ("bfloat16", np.nan), ("int8", np.nan), ("int8", np.inf)]
)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_what_is_broken_breaks_the_rows_that_see_it_alone(
    library: ctypes.CDLL, part: str, dtype: str, broken: float
) -> None:
    """In floats infinity has scores of its own, and a value breaks its own dimension; int8 has no number for either."""
    sound, inputs = make_inputs(2, 64), make_inputs(2, 64)
    inputs.qkv[0, 20, ["query", "key", "value"].index(part), 1, 3] = broken
    rows = slice(20, 21) if part == "query" else slice(20, None)
    dimensions = slice(3, 4) if part == "value" and dtype != "int8" else slice(None)
    out, _ = attend(library, dtype, inputs)
    assert np.isnan(out[0, rows, 1, dimensions]).all()
    out[0, rows, 1, dimensions] = 0
    expected, _ = attend(library, dtype, sound)
    expected[0, rows, 1, dimensions] = 0
    assert out.tobytes() == expected.tobytes()


# Sequences of different lengths in one pass, at one shape

HEADS, HEAD_DIM = 3, 12
PADDED = round_up(HEAD_DIM)
LENGTHS = (1, 64, 130, 7, 65, 66)  # which need pages of their own, each
LIMIT = 160

Garbage = Literal[0x00, 0x7F, 0xFF]  # 0xFF: NaN, in all that is a float


def ragged_pages(lengths: Iterable[int], side: Side = "end") -> tuple[list[Values], int]:
    """A table of pages for each sequence, as long as it must be, in no order; and how many pages there are."""
    counts = [-(-length // 64) for length in lengths]
    order = np.random.default_rng(3).permutation(sum(counts)).astype(np.int32)
    return [guarded(part, side) for part in np.split(order, np.cumsum(counts)[:-1])], len(order)


def ragged_cache(library: ctypes.CDLL, dtype: str, pages: int, garbage: Garbage, side: Side) -> Values:
    size = int(getattr(library, f"cache_bytes_{dtype}_{HEADS}_{HEAD_DIM}")()) * 64 * pages
    return guarded(np.full(size, garbage, np.uint8), side, writable=True)


def ragged_inputs(parts: int, rows: int, seed: int = 0) -> Floats:
    """Rows of `parts` of queries, keys and values: [rows][parts][heads][padded]."""
    qkv = make_inputs(HEADS, HEAD_DIM).qkv.reshape(-1, 3, HEADS, PADDED)
    return np.ascontiguousarray(np.roll(qkv, seed, axis=0)[:rows, 3 - parts :])


def heads_first(rows: Floats) -> Exact:
    """[rows][heads][padded] -> [heads][rows][padded]."""
    return np.moveaxis(rows, 0, 1).astype(np.float64)


def make_table() -> tuple[Values, Floats]:
    """A bias [heads][2 * LIMIT] by distance, and the table of it that kernels read: times log2 e, and then a page."""
    bias = np.random.default_rng(4).uniform(-4, 4, (HEADS, 2 * LIMIT)).astype(np.float32)
    table = np.full((HEADS, 2 * LIMIT + 64), np.nan, np.float32)
    table[:, : 2 * LIMIT] = bias.astype(np.float64) * np.log2(np.e)
    return bias, table


# Keys and queries of distances

LONGEST = max(LENGTHS)
NEAR = 20  # distances that have a bucket of their own

# Kinds, and how many of the distances beyond those share a bucket.
RELATIVE = {"relative": 7, "relative_keys": 7, "relative_queries": 7, "relative_apart": 1}


def relative_function(kind: str) -> str:
    return kind.removesuffix("_apart")


def make_buckets(kind: str) -> NDArray[np.int32]:
    """The bucket of each distance from -LONGEST on, [2 * LONGEST], from 0 on."""
    distances = np.arange(-LONGEST, LONGEST)
    far = np.maximum(np.abs(distances) - NEAR, 0)
    buckets = np.sign(distances) * (np.minimum(np.abs(distances), NEAR) + -(-far // RELATIVE[kind]))
    return (buckets - buckets[0]).astype(np.int32)


def make_distances(kind: str) -> tuple[Floats, Floats]:
    """Keys and queries [heads][buckets][head_dim] of distances, zeros where a kind has none."""
    count = int(make_buckets(kind)[-1]) + 1
    rows = make_inputs(HEADS, HEAD_DIM).qkv.reshape(-1, 3, HEADS, PADDED)[..., :HEAD_DIM]
    keys, queries = np.moveaxis(np.roll(rows, 17, axis=0)[:count, :2], 0, 2)
    none = np.zeros_like(keys)
    return (none if kind == "relative_queries" else keys), (none if kind == "relative_keys" else queries)


def distance_bias(kind: str, dtype: str, query: Exact, keys: Exact) -> tuple[Exact, Exact]:
    """What distances add to the scores [heads][queries][keys], and the sum of the magnitudes of that."""
    length = query.shape[1]
    places = make_buckets(kind)[LONGEST + np.arange(length)[None] - np.arange(length)[:, None]]
    own = (query[..., :HEAD_DIM], keys[..., :HEAD_DIM])
    tables = (table.astype(np.float64) for table in make_distances(kind))
    query, keys, of_keys, of_queries = (ROUND[dtype](each) for each in (*own, *tables))

    def met(change: Callable[[Exact], Exact]) -> Exact:
        forth = change(query) @ change(of_keys).swapaxes(1, 2)  # [heads][queries][buckets]
        back = change(of_queries) @ change(keys).swapaxes(1, 2)  # [heads][buckets][keys]
        at = np.broadcast_to(places, (HEADS, length, length))
        result: Exact = np.take_along_axis(forth, at, axis=2) + np.take_along_axis(back, at, axis=1)
        return result

    return met(lambda values: values), met(np.abs)


@dataclass(frozen=True)
class DistanceTables:
    """What kernels read of a kind, on guarded memory. Its buckets are the first of a table, or the last at the `end`.

    Queries without a bucket are NaN.
    """

    keys: tuple[Values, ...]
    queries: Values
    buckets: Values


def distance_tables(library: ctypes.CDLL, kind: str, dtype: str, side: Side) -> DistanceTables:
    buckets, tables = make_buckets(kind), make_distances(kind)
    room, count = int(library.relative_buckets()), int(buckets[-1]) + 1
    first = room - count if side == "end" else 0
    keys = np.zeros((HEADS, room, PADDED))
    queries = np.full((HEADS, room, PADDED), np.nan, np.float32)
    for whole, table in zip((keys, queries), tables, strict=True):
        whole[:, first : first + count] = 0
        whole[:, first : first + count, :HEAD_DIM] = table
    packed = KEY_TYPES[dtype].pack(keys.reshape(-1, PADDED))
    places = np.pad(buckets + np.int32(first), (0, 64), mode="edge")
    return DistanceTables(tuple(guarded(each, side) for each in packed), *(guarded(a, side) for a in (queries, places)))


def attend_ragged(
    library: ctypes.CDLL,
    kind: str,
    dtype: str,
    lengths: tuple[int, ...] | None = None,
    splits: tuple[int, ...] = (),
    garbage: Garbage = 0xFF,
    side: Side = "end",
    broken: tuple[int, int] | None = None,
    workers: int = 1,
) -> Values:
    """The result [rows][heads][padded] of sequences one behind another, in parts that the splits cut; with NaN in a row
    and its `broken` part. Rows that see what is to come are split behind a call with all of them. Distances of keys and
    queries take any number of workers."""
    lengths = lengths_of(kind) if lengths is None else lengths
    inputs = ragged_inputs(3, sum(lengths))
    if broken is not None:
        inputs[(*broken, 1, 3)] = np.nan
    qkv = np.split(inputs, np.cumsum(lengths)[:-1])
    pages, count = ragged_pages(lengths, side)
    cache = ragged_cache(library, dtype, count, garbage, side)
    if kind in RELATIVE:
        tables = distance_tables(library, kind, dtype, side)
        arrays = (ctypes.c_void_p * 3)(*(array.ctypes.data for array in tables.keys))
        added = (workers, arrays, *map(pointer, (tables.queries, tables.buckets)), ctypes.c_int64(LONGEST))
    else:
        table = guarded(make_table()[1], side)
        added = (pointer(table), ctypes.c_int64(table.shape[1]), ctypes.c_int64(LIMIT))
    past = kind.startswith("past")
    calls = [*pairwise((0, *splits, max(lengths)))]
    whole = [] if past or not splits else [(0, max(lengths))]
    results: list[list[Values]] = [[] for _ in lengths]
    for begin, end in [*whole, *calls]:
        chosen = [index for index, part in enumerate(qkv) if len(part[begin:end])]
        parts = [qkv[index][begin:end] for index in chosen]
        rows = np.cumsum([0, *map(len, parts)])
        sequences = (Sequence * len(chosen))(
            *(
                Sequence(
                    rows[i],
                    len(part),
                    begin,
                    begin + len(part) if past else lengths[index],
                    pages[index].ctypes.data,
                    window_pages=pages[index].ctypes.data,
                )
                for i, (index, part) in enumerate(zip(chosen, parts, strict=True))
            )
        )
        given, out = guarded(np.concatenate(parts), side), output((rows[-1], HEADS, PADDED), side)
        getattr(library, f"attention_{relative_function(kind)}_{dtype}")(
            ctypes.c_int64(len(chosen)),
            sequences,
            ctypes.c_int64(rows[-1]),
            *map(pointer, (given, cache, out)),
            *added,
        )
        for index, found in zip(chosen, np.split(out, rows[1:-1]), strict=True):
            results[index].append(found)
    return np.concatenate([part for each in results for part in each[len(whole) :]])


KINDS = ("all", "all_biased", "past_biased")

# Kinds with a window, and how far their rows see: below and above a page, on and off the bounds of panels and of groups
# of rows.
WINDOWS = {
    "all_within_0": 0,
    "all_within_64": 64,
    "all_within_75_biased": 75,
    "past_within_5_biased": 5,
    "past_within_63": 63,
    "past_within_130": 130,
}
WINDOW_LENGTHS = (1, 9, 65, 301)

kinds = pytest.mark.parametrize("kind", [*KINDS, *WINDOWS, *RELATIVE])
windows = pytest.mark.parametrize("kind", WINDOWS)


def lengths_of(kind: str) -> tuple[int, ...]:
    return WINDOW_LENGTHS if kind in WINDOWS else LENGTHS


def visible_of(kind: str, length: int) -> NDArray[np.bool_]:
    """Which keys each query of a sequence sees, [queries][keys]."""
    distances = np.arange(length)[None] - np.arange(length)[:, None]
    seen = np.abs(distances) <= WINDOWS.get(kind, length)
    return seen & (distances <= 0) if kind.startswith("past") else seen


@caches
@kinds
def test_attention_of_ragged_sequences(library: ctypes.CDLL, dtype: str, kind: str) -> None:
    bias, _ = make_table()
    out, at = attend_ragged(library, kind, dtype), 0
    for length in lengths_of(kind):
        query, keys, values = (heads_first(ragged_inputs(3, at + length)[at:, part]) for part in range(3))
        distances = np.arange(length)[None] - np.arange(length)[:, None]
        added, sizes = np.zeros(1), np.zeros(1)
        if kind.endswith("biased"):
            added = bias[:, np.clip(distances + LIMIT, 0, 2 * LIMIT - 1)].astype(np.float64)
            sizes = np.abs(added)
        elif kind in RELATIVE:
            added, sizes = distance_bias(kind, dtype, query, keys)
        exact, bound = exact_rows(query, keys, values, visible_of(kind, length), dtype, added, sizes)
        assert (np.abs(heads_first(out[at : at + length]) - exact) <= bound).all(), f"of length {length}"
        at += length


@caches
@kinds
def test_company_and_what_lay_in_memory_change_no_bit(library: ctypes.CDLL, dtype: str, kind: str) -> None:
    lengths = lengths_of(kind)
    whole = attend_ragged(library, kind, dtype)
    for garbage in (0x00, 0x7F):
        assert attend_ragged(library, kind, dtype, garbage=garbage, side="begin").tobytes() == whole.tobytes()
    for count in range(1, len(lengths)):
        fewer = attend_ragged(library, kind, dtype, lengths[:count])
        assert fewer.tobytes() == whole[: sum(lengths[:count])].tobytes()
    if kind.startswith("past") or kind in {*WINDOWS, *RELATIVE}:
        for splits in ((1,), (6,), (63,), (64,), (65,), tuple(range(1, 125))):
            assert attend_ragged(library, kind, dtype, splits=splits).tobytes() == whole.tobytes()


@caches
@pytest.mark.parametrize("kind", RELATIVE)
def test_workers_that_share_rows_change_no_bit(library: ctypes.CDLL, dtype: str, kind: str) -> None:
    whole = attend_ragged(library, kind, dtype)
    for workers in (2, 3, 7):
        assert attend_ragged(library, kind, dtype, workers=workers).tobytes() == whole.tobytes()


@caches
@windows
@pytest.mark.parametrize("part", [1, 2])  # keys, values
def test_what_is_broken_breaks_no_row_whose_window_does_not_reach_it(
    library: ctypes.CDLL, part: int, dtype: str, kind: str
) -> None:
    expected, before = attend_ragged(library, kind, dtype), sum(WINDOW_LENGTHS[:-1])
    for position in (0, 64, 167, 255, 300):
        out = attend_ragged(library, kind, dtype, broken=(before + position, part))
        breaks = np.zeros(len(out), bool)
        breaks[before:] = visible_of(kind, WINDOW_LENGTHS[-1])[:, position]
        assert np.isnan(out[breaks][:, 1, 3]).all()
        assert not np.isnan(out[~breaks]).any()
        assert out[~breaks].tobytes() == expected[~breaks].tobytes()


def attend_sources(
    library: ctypes.CDLL, dtype: str, counts: tuple[int, ...], garbage: Garbage = 0xFF, side: Side = "end"
) -> Values:
    """What so many queries of each sequence [rows][heads][padded] gather from sources of LENGTHS."""
    pages, count = ragged_pages(LENGTHS, side)
    cache = ragged_cache(library, dtype, count, garbage, side)

    def sequences(rows: tuple[int, ...], past: int) -> ctypes.Array[Sequence]:
        firsts = np.cumsum([0, *rows])
        return (Sequence * len(rows))(
            *(
                Sequence(firsts[i], rows[i], past, past + rows[i], None, length, pages[i].ctypes.data)
                for i, length in enumerate(LENGTHS)
            )
        )

    keys_and_values = guarded(ragged_inputs(2, sum(LENGTHS)), side)
    call = (ctypes.c_int64(len(LENGTHS)), sequences(LENGTHS, 0), ctypes.c_int64(sum(LENGTHS)))
    getattr(library, f"source_{dtype}")(*call, *map(pointer, (keys_and_values, cache)))
    queries = guarded(np.ascontiguousarray(ragged_inputs(3, sum(counts), seed=5)[:, 0]), side)
    out = output(queries.shape, side)
    call = (ctypes.c_int64(len(counts)), sequences(counts, 3), ctypes.c_int64(sum(counts)))
    getattr(library, f"to_source_{dtype}")(*call, *map(pointer, (queries, cache, out)))
    return out


@caches
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1, 1), (70, 1, 9, 3, 130, 16)])
def test_attention_to_sources(library: ctypes.CDLL, dtype: str, counts: tuple[int, ...]) -> None:
    """Wherever the queries stand, and however many there are."""
    out, row, at = attend_sources(library, dtype, counts), 0, 0
    for length, count in zip(LENGTHS, counts, strict=True):
        query = heads_first(ragged_inputs(3, row + count, seed=5)[row:, 0])
        keys, values = (heads_first(ragged_inputs(2, at + length)[at:, part]) for part in range(2))
        exact, bound = exact_rows(query, keys, values, np.ones((count, length), bool), dtype)
        assert (np.abs(heads_first(out[row : row + count]) - exact) <= bound).all(), f"of length {length}"
        row, at = row + count, at + length
    for garbage in (0x00, 0x7F):
        assert attend_sources(library, dtype, counts, garbage, "begin").tobytes() == out.tobytes()


def test_every_type_of_cache_of_the_registry_is_tested() -> None:
    registry = REGISTRY.read_text(encoding="utf-8")
    assert re.findall(r"^KAOKEN_CACHE\(\w+, (\w+)\)", registry, re.MULTILINE) == list(ROUND) == list(CACHE_DTYPES)

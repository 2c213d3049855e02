"""From a rewritten graph to named arrays of bytes, placed in blobs; every matrix in the layout of layout.py.

A unit is one generated file of code: the embeddings, a block, or the head. Its arrays lie, 64-byte aligned and in the
order the code reads them, in one blob or, where the compiler's memory is capped below that, in several. A table of
tokens may exceed any cap, so it is cut into shards of whole panels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import BuildError, CheckpointError
from .graph import Block, Graph, Linear, Tensor, merge_sources, pieces
from .layout import PANEL, pack_panels, pad_columns, pad_rows, round_up

Floats = NDArray[np.float32]

ALIGNMENT = 64  # kAlignment of runtime/include/kaoken/pass.h
LITERAL_LIMIT = 64  # arrays up to this many values are readable, and become constexpr literals


@dataclass(frozen=True)
class Packed:
    """One array of a unit: its C++ name, how many float32 it is, and the values in pieces."""

    name: str
    sources: tuple[str, ...]
    size: int
    chunks: Callable[[], Iterator[Floats]]

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    @property
    def literal(self) -> bool:
        return self.size <= LITERAL_LIMIT

    def values(self) -> list[float]:
        """Every value; for literals."""
        return [float(value) for chunk in self.chunks() for value in chunk.ravel()]


@dataclass(frozen=True)
class Blob:
    """Arrays that share one file, with the byte at which each starts."""

    name: str
    arrays: tuple[tuple[int, Packed], ...]

    @property
    def nbytes(self) -> int:
        offset, last = self.arrays[-1]
        return round_up(offset + last.nbytes, ALIGNMENT)

    def chunks(self) -> Iterator[bytes]:
        """The file's content, in pieces."""
        position = 0
        for offset, array in self.arrays:
            yield bytes(offset - position)
            for chunk in array.chunks():
                yield chunk.tobytes()
            position = offset + array.nbytes
        yield bytes(self.nbytes - position)


@dataclass(frozen=True)
class Unit:
    """What one generated file of code embeds."""

    name: str
    blobs: tuple[Blob, ...]
    literals: tuple[Packed, ...]

    @property
    def arrays(self) -> tuple[Packed, ...]:
        return self.literals + tuple(array for blob in self.blobs for _, array in blob.arrays)


@dataclass(frozen=True)
class Table:
    """A token table in shards of `shard_rows` rows, the last one shorter."""

    shards: tuple[Packed, ...]
    shard_rows: int


@dataclass(frozen=True)
class PackedModel:
    """Every unit of a model; `tokens` is the head's own table where they are tied."""

    graph: Graph
    embeddings: Unit
    blocks: tuple[Unit, ...]
    head: Unit
    positions: tuple[Packed, ...]
    tokens: Table
    head_table: Table

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.embeddings, *self.blocks, self.head)

    @property
    def nbytes(self) -> int:
        """Of all blobs."""
        return sum(blob.nbytes for unit in self.units for blob in unit.blobs)


def pack(graph: Graph, blob_limit: int) -> PackedModel:
    """Packs the graph into blobs of at most `blob_limit` bytes.

    Raises BuildError where a single matrix of a block is larger than that.
    """
    tied = graph.spec.tie_word_embeddings
    head_table = _table("head_weight", graph.head.weight, blob_limit, _pack_matrix)
    tokens = head_table if tied else _table("tokens", graph.tokens, blob_limit, pad_columns)
    positions = (_packed("positions", graph.positions, pad_columns),)
    return PackedModel(
        graph=graph,
        embeddings=_unit("embeddings", [*positions, *(() if tied else tokens.shards)], blob_limit),
        blocks=tuple(_pack_block(index, block, blob_limit) for index, block in enumerate(graph.blocks)),
        head=_unit("head", [*_head_vectors(graph), *head_table.shards], blob_limit),
        positions=positions,
        tokens=tokens,
        head_table=head_table,
    )


def _pack_block(index: int, block: Block, blob_limit: int) -> Unit:
    parts = (block.query, block.key, block.value)
    c_attn = [_matrix("", part) for part in parts]

    def fused() -> Iterator[Floats]:
        for part in c_attn:
            yield from part.chunks()

    sources = merge_sources(*(part.weight for part in parts))
    arrays = [
        Packed("c_attn_weight", sources, sum(part.size for part in c_attn), fused),
        *_vector("query_bias", block.query.bias),
        _matrix("attn_c_proj_weight", block.attn_out),
        *_vector("attn_c_proj_bias", block.attn_out.bias),
        _matrix("c_fc_weight", block.mlp_in),
        *_vector("c_fc_bias", block.mlp_in.bias),
        _matrix("mlp_c_proj_weight", block.mlp_out),
        *_vector("mlp_c_proj_bias", block.mlp_out.bias),
    ]
    return _unit(f"block_{index:02}", arrays, blob_limit)


def _head_vectors(graph: Graph) -> list[Packed]:
    norm = graph.ln_f
    return [
        *_vector("ln_f_weight", norm.weight),
        *_vector("ln_f_bias", norm.bias),
        *_vector("head_bias", graph.head.bias),
    ]


def _unit(name: str, arrays: list[Packed], blob_limit: int) -> Unit:
    literals = tuple(array for array in arrays if array.literal)
    groups = _group([array for array in arrays if not array.literal], blob_limit)
    names = [name] if len(groups) == 1 else [f"{name}_part{i}" for i in range(len(groups))]
    return Unit(name, tuple(_blob(*pair) for pair in zip(names, groups, strict=True)), literals)


def _group(arrays: list[Packed], blob_limit: int) -> list[list[Packed]]:
    """Neighbours together while they fit."""
    groups: list[list[Packed]] = []
    filled = 0
    for array in arrays:
        size = round_up(array.nbytes, ALIGNMENT)
        if size > blob_limit:
            raise BuildError(
                f"{' + '.join(array.sources)} packs to {size} bytes, over the {blob_limit} that the compile memory "
                "leaves for one file; raise it"
            )
        if not groups or filled + size > blob_limit:
            groups.append([])
            filled = 0
        groups[-1].append(array)
        filled += size
    return groups


def _blob(name: str, arrays: list[Packed]) -> Blob:
    placed, offset = [], 0
    for array in arrays:
        placed.append((offset, array))
        offset = round_up(offset + array.nbytes, ALIGNMENT)
    return Blob(name, tuple(placed))


def _vector(name: str, tensor: Tensor | None) -> list[Packed]:
    return [] if tensor is None else [_packed(name, tensor, pad_rows)]


def _matrix(name: str, linear: Linear) -> Packed:
    return _packed(name, linear.weight, _pack_matrix)


def _table(name: str, tensor: Tensor, blob_limit: int, pack_rows: Callable[[Floats], Floats]) -> Table:
    rows, width = tensor.shape
    panels = round_up(rows) // PANEL
    per_shard = max(1, blob_limit // (PANEL * 4 * round_up(width)))
    count = -(-panels // per_shard)
    shard_rows = -(-panels // count) * PANEL
    shards = []
    for index, start in enumerate(range(0, rows, shard_rows)):
        shards.append(_packed(f"{name}_{index}", _slice(tensor, start, min(rows, start + shard_rows)), pack_rows))
    return Table(tuple(shards), shard_rows)


def _slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    shape = (stop - start, *tensor.shape[1:])
    return Tensor(shape, tensor.sources, lambda first, last: tensor.rows(start + first, start + last))


def _pack_matrix(rows: Floats) -> Floats:
    return pack_panels(rows)


def _packed(name: str, tensor: Tensor, pack_rows: Callable[[Floats], Floats]) -> Packed:
    """`tensor` in pieces, rounded to float32 and packed by `pack_rows`."""
    width = int(np.prod(tensor.shape[1:], dtype=np.int64))
    size = _packed_size(tensor.shape, pack_rows)

    def chunks() -> Iterator[Floats]:
        for start, stop in pieces(0, tensor.shape[0], width):
            yield pack_rows(_round(tensor, tensor.rows(start, stop)))

    return Packed(name, tensor.sources, size, chunks)


def _packed_size(shape: tuple[int, ...], pack_rows: Callable[[Floats], Floats]) -> int:
    if pack_rows is pad_columns:
        return shape[0] * round_up(shape[1])
    return round_up(shape[0]) * int(np.prod(shape[1:], dtype=np.int64))


def _round(tensor: Tensor, values: NDArray[np.float64]) -> Floats:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise CheckpointError(
            f"{' + '.join(tensor.sources)}: folded together these pass the range of float32; "
            "the checkpoint's weights are too large to be sound"
        )
    return rounded

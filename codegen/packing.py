"""From a rewritten graph to named arrays of bytes, placed in blobs; every matrix in the layout of layout.py.

A unit is one generated file of code: the embeddings, a block, or the head. Its arrays (but those of a block before it
that are the same tensors) lie, 64-byte aligned and in the
order the code reads them, in one blob or, where the compiler's memory is capped below that, in several. A table of
tokens may exceed any cap, so it is cut into slices of whole panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtypes import HEAD, TOKENS, Types
from .errors import BuildError, CheckpointError, InputError
from .exploded import EXPLODED_LIMIT, Strip, StripFile, Weights, explode
from .graph import (
    Array,
    Attention,
    Block,
    Graph,
    Head,
    Linear,
    Mlp,
    Norm,
    Relative,
    Stack,
    Sublayer,
    Tensor,
    merge_sources,
    pieces,
    stack,
)
from .layout import KEY_TYPES, MATRIX_TYPES, PANEL, MatrixType, pad_columns, pad_vector, round_up

Floats = NDArray[np.floating]
Values = NDArray[Any]

PARALLEL_ORDER = ("qkv", "up", "out", "down")  # of the products of sublayers side by side
ALIGNMENT = 64  # kAlignment of runtime/include/kaoken/pass.h
PAGE = 64  # kPage of the same: positions of a page of the cache
ROTARY_STEPS = 1 << 11  # to 1, of the heads of cosines and sines
SMALL_OUTPUT = 64  # outputs up to which a head's last matrix is float32 by default, as other types would save nothing
LITERAL_LIMIT = 64  # float arrays up to this many values are readable, and become constexpr literals

# How C++ declares arrays, by NumPy's name of their values.
C_TYPES = {"f4": "float", "f2": "uint16_t", "u2": "uint16_t", "i4": "int32_t", "i1": "int8_t", "u1": "uint8_t"}


@dataclass(frozen=True)
class Packed:
    """One array of a unit: its C++ name, its type, how many values it has, and the values in pieces."""

    name: str
    sources: tuple[str, ...]
    type: str  # a key of C_TYPES
    size: int
    chunks: Callable[[], Iterator[Values]]

    @property
    def nbytes(self) -> int:
        return int(self.type[1:]) * self.size

    @property
    def literal(self) -> bool:
        return self.type == "f4" and self.size <= LITERAL_LIMIT

    def values(self) -> list[float]:
        """Every value; for literals."""
        return [float(value) for chunk in self.chunks() for value in chunk.ravel().tolist()]


@dataclass(frozen=True)
class Matrix:
    """One matrix: its C++ name, the checkpoint's name of it, its type, and the arrays that it is packed into."""

    name: str
    source: str
    dtype: str
    rows: int
    depth: int
    arrays: tuple[Packed, ...]
    strip_files: tuple[StripFile, ...] = ()  # its code, where it is exploded and has no arrays
    first: int = 0  # the panel with which workers begin
    panels: int | None = None  # that they divide first; None: all
    together: int = 1  # panels that stay with one worker

    @property
    def nbytes(self) -> int:
        """With scales and sums; of code, as many as its weights would have."""
        return sum(array.nbytes for array in self.arrays) or 4 * self.rows * self.depth

    @property
    def strips(self) -> tuple[Strip, ...]:
        return tuple(strip for file in self.strip_files for strip in file.strips)

    @property
    def input_bytes(self) -> int:
        """Of a row of its inputs."""
        return MATRIX_TYPES[self.dtype].row_bytes(self.depth)


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
    """A token table in slices of `slice_rows` rows, the last one shorter."""

    slices: tuple[Matrix, ...]
    slice_rows: int

    @property
    def arrays(self) -> tuple[Packed, ...]:
        return tuple(array for each in self.slices for array in each.arrays)


@dataclass(frozen=True)
class PackedSublayer:
    """A sublayer with its matrices in the order of their use, by what C++ calls them; each but key_value has a bias."""

    name: str  # attention, cross or mlp
    sublayer: Sublayer
    products: dict[str, Matrix]
    key_value: Matrix | None = None  # what a cross attention reads the source with, once
    norm: tuple[str, ...] = ()  # the arrays of a norm that is not bare: weight and bias, or the first of them
    relative: tuple[str, ...] = ()  # those of keys and queries of distances: weights, scales, sums, queries
    heads: tuple[str, ...] = ()  # the weights of the norms of queries and of keys
    branch: tuple[str, ...] = ()  # the weight and the bias of the norm of a branch


@dataclass(frozen=True)
class PackedBlock:
    """A block's unit and its sublayers."""

    unit: Unit
    sublayers: tuple[PackedSublayer, ...]
    arrays: tuple[Packed, ...]  # what it reads: of its unit and, where it shares tensors, of those of blocks before it
    tables: tuple[Packed, ...]  # of the embeddings' unit: rotary positions, biases of distances and their buckets
    parallel: bool = False

    @property
    def products(self) -> dict[str, Matrix]:
        """Those of a pass, in the order of their use."""
        products = {name: matrix for each in self.sublayers for name, matrix in each.products.items()}
        return {name: products[name] for name in PARALLEL_ORDER} if self.parallel else products

    @property
    def shares_inputs(self) -> bool:
        """Whether what sublayers side by side read of the stream is the same."""
        norms = [each.sublayer.before for each in self.sublayers]
        types = {self.products[name].dtype for name in ("qkv", "up")}
        bare = all(norm is None or norm.bare for norm in norms)
        return bare and all(norm == norms[0] for norm in norms) and len(types) == 1

    @property
    def key_value(self) -> Matrix | None:
        return next((each.key_value for each in self.sublayers if each.key_value), None)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return (*self.products.values(), *((self.key_value,) if self.key_value else ()))


@dataclass(frozen=True)
class PackedStack:
    """A stack's units. `prefix` tells the names of an encoder's from those of the decoder behind it."""

    prefix: str
    stack: Stack
    embeddings: Unit
    vectors: dict[str, Packed]  # of the embeddings, by what C++ calls them
    tokens: Table
    projection: Matrix | None  # of the embeddings
    blocks: tuple[PackedBlock, ...]
    outputs: Unit | None  # the norm behind an encoder; a decoder's belongs to its head


@dataclass(frozen=True)
class PackedHead:
    """The head's unit, and its matrices in the order of their use."""

    unit: Unit
    layers: tuple[Matrix, ...]
    table: Table | None  # of its output

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return (*self.layers, *(() if self.table is None else self.table.slices))


@dataclass(frozen=True)
class PackedModel:
    """Every unit of a model. Tables of tokens, and arrays of blocks, that are one tensor are packed once."""

    graph: Graph
    types: Types
    stacks: tuple[PackedStack, ...]
    head: PackedHead | None

    @property
    def units(self) -> tuple[Unit, ...]:
        units = [
            unit
            for each in self.stacks
            for unit in (each.embeddings, *(block.unit for block in each.blocks), each.outputs)
        ]
        units.append(None if self.head is None else self.head.unit)
        return tuple(unit for unit in units if unit is not None)

    @property
    def blocks(self) -> tuple[PackedBlock, ...]:
        """Of the stack that outputs come from."""
        return self.stacks[-1].blocks

    @property
    def parallel(self) -> bool:
        """Whether some block has sublayers side by side."""
        return any(block.parallel for each in self.stacks for block in each.blocks)

    @property
    def decoding(self) -> list[Matrix]:
        """What the stack that outputs come from reads in each pass, and its head; each once."""
        heads = () if self.head is None else self.head.matrices
        return [*_each_once(matrix for block in self.blocks for matrix in block.products.values()), *heads]

    @property
    def matrices(self) -> list[Matrix]:
        """Of every block and of the head: first what decoding a token reads."""
        front = [each.projection for each in self.stacks if each.projection]
        front += _each_once(matrix for stack in self.stacks[:-1] for block in stack.blocks for matrix in block.matrices)
        return [*self.decoding, *front, *(block.key_value for block in self.blocks if block.key_value)]

    @cached_property
    def places(self) -> dict[int, tuple[Blob, int]]:
        """The blob in which an array lies and the byte at which it starts, by the id of the array."""
        blobs = (blob for unit in self.units for blob in unit.blobs)
        return {id(array): (blob, offset) for blob in blobs for offset, array in blob.arrays}

    @property
    def nbytes(self) -> int:
        """Of all blobs."""
        return sum(blob.nbytes for unit in self.units for blob in unit.blobs)

    @property
    def input_bytes(self) -> int:
        """Of a row of the widest inputs."""
        return max(matrix.input_bytes for matrix in self.matrices)


def _each_once(matrices: Iterable[Matrix]) -> list[Matrix]:
    return list({id(matrix): matrix for matrix in matrices}.values())


def pack(graph: Graph, types: Types, blob_limit: int, strip_file_limit: int | None = None) -> PackedModel:
    """Packs the graph into blobs of at most `blob_limit` bytes.

    With a `strip_file_limit` float32 matrices of blocks with at most EXPLODED_LIMIT nonzero weights are exploded.

    Raises BuildError where a single matrix of a block is larger than `blob_limit`, InputError for an override that
    matches nothing or where nothing can be exploded.
    """
    types.check(_matrix_names(graph))
    tables: dict[int, Table] = {}  # by the tensor
    head = None if graph.head is None else _pack_head(graph, graph.head, tables, types, blob_limit)
    stacks = tuple(_pack_stack(graph, stack, tables, types, blob_limit, strip_file_limit) for stack in graph.stacks)
    if strip_file_limit is not None and not any(
        matrix.strip_files for stack in stacks for block in stack.blocks for matrix in block.matrices
    ):
        raise InputError(
            f"kernels='exploded' is for float32 matrices of at most {EXPLODED_LIMIT} weights that are not zero, and no "
            "block of this model has one; use kernels='packed'"
        )
    return PackedModel(graph, types, stacks, head)


def _pack_head(graph: Graph, head: Head, tables: dict[int, Table], types: Types, blob_limit: int) -> PackedHead:
    arrays = _norm_arrays("ln_f", graph.decoder.norm) if graph.decoder is not None else []
    layers, table = [], None
    for index, layer in enumerate(head.layers):
        name = f"layer_{index}"
        layers.append(_matrix(name, layer.linear.name, layer.linear.weight, types.of(layer.linear.name)))
        arrays += [*_vector(f"{name}_bias", layer.linear.bias), *_norm_arrays(f"{name}_norm", layer.norm)]
        arrays += layers[-1].arrays
    if head.output is not None:
        weight = head.output.weight
        small = graph.decoder is None and not graph.tied and weight.shape[0] <= SMALL_OUTPUT
        table = _table("head", HEAD, weight, types.of(HEAD, "float32" if small else None), blob_limit)
        tables[id(weight)] = table
        arrays += [*_vector("head_bias", head.output.bias), *table.arrays]
    return PackedHead(_unit("head", arrays, blob_limit), tuple(layers), table)


def _pack_stack(
    graph: Graph, stack: Stack, tables: dict[int, Table], types: Types, blob_limit: int, strip_file_limit: int | None
) -> PackedStack:
    prefix = "encoder_" if stack is graph.encoder and graph.decoder is not None else ""
    embeddings = stack.embeddings
    own = id(embeddings.tokens) not in tables
    if own:
        tables[id(embeddings.tokens)] = _table("tokens", TOKENS, embeddings.tokens, types.of(TOKENS), blob_limit)
    tokens = tables[id(embeddings.tokens)]
    vectors = [
        _packed(name, tensor, pad_columns)
        for name, tensor in (("positions", embeddings.positions), ("types", embeddings.types))
        if tensor is not None
    ]
    vectors += _norm_arrays("embeddings_norm", embeddings.norm)
    projection = None
    if embeddings.projection is not None:
        name, weight = embeddings.projection.name, embeddings.projection.weight
        projection = _matrix("projection", name, weight, types.of(name))
        vectors += _vector("projection_bias", embeddings.projection.bias)
    rotary, distances, buckets = _rotary_tables(stack), _distance_tables(stack), _bucket_tables(stack)
    shared = _Shared()
    blocks = tuple(
        _pack_block(
            f"{prefix}block_{index:02}",
            block,
            tuple(
                table
                for table in (
                    rotary.get(_rotary_key(block)),
                    distances.get(id(block.attention.distance_bias)),
                    buckets.get(_buckets_of(block)),
                )
                if table
            ),
            shared,
            types,
            blob_limit,
            strip_file_limit,
        )
        for index, block in enumerate(stack.blocks)
    )
    projected = projection.arrays if projection else ()
    tables_of_blocks = [*rotary.values(), *distances.values(), *buckets.values()]
    arrays = [*vectors, *projected, *tables_of_blocks, *(tokens.arrays if own else ())]
    unit = _unit(f"{prefix}embeddings", arrays, blob_limit)
    norm = _norm_arrays("output_norm", stack.norm) if stack is graph.encoder else []
    outputs = _unit(f"{prefix}outputs", norm, blob_limit) if norm else None
    named = {array.name: array for array in vectors}
    return PackedStack(prefix, stack, unit, named, tokens, projection, blocks, outputs)


def _matrix_names(graph: Graph) -> list[str]:
    linears = [linear for stack in graph.stacks for each in stack.sublayers for linear in each.body.linears.values()]
    head = Head() if graph.head is None else graph.head
    linears += [layer.linear for layer in head.layers]
    linears += [stack.embeddings.projection for stack in graph.stacks if stack.embeddings.projection]
    own = [] if head.output is None else [HEAD]
    own += [] if graph.tied else [TOKENS]
    return [*own, *dict.fromkeys(linear.name for linear in linears)]


RotaryKey = tuple[tuple[float, ...], int]


def _rotary_key(block: Block) -> RotaryKey | None:
    attention = block.attention
    return None if attention.rotary is None else (attention.rotary.frequencies, attention.dims)


def _rotary_tables(stack: Stack) -> dict[RotaryKey | None, Packed]:
    """For each way in which blocks turn their heads, what runtime/kernels/rotary.h makes its angles of."""
    keys = [key for key in dict.fromkeys(map(_rotary_key, stack.blocks)) if key is not None]
    return {key: rotary_table(f"rotary_{index}", *key, stack.limit) for index, key in enumerate(keys)}


def rotary_table(name: str, frequencies: tuple[float, ...], dims: int, limit: int) -> Packed:
    """Rows [4, dims / 2] of heads and rests of cosines and of sines: of PAGE positions, and of each page's first."""

    def rows(start: int, stop: int) -> Array:
        index = np.arange(start, stop)
        positions = np.where(index < PAGE, index, (index - PAGE) * PAGE)[:, None]
        angles = positions * np.array(frequencies, np.float32).astype(np.float64)
        table = np.zeros((stop - start, 4, dims // 2))
        for place, values in ((0, np.cos(angles)), (2, np.sin(angles))):
            heads = np.round(values * ROTARY_STEPS) / ROTARY_STEPS
            table[:, place, : len(frequencies)], table[:, place + 1, : len(frequencies)] = heads, values - heads
        return table.reshape(-1, 2 * dims)

    return _packed(name, Tensor((PAGE + -(-limit // PAGE), 2 * dims), (), rows), pad_columns)


def _distance_tables(stack: Stack) -> dict[int, Packed]:
    """By the tensor, for each that blocks add to their scores, its values times log2 e and room for a page behind."""
    biases = [block.attention.distance_bias for block in stack.blocks]
    each = {id(bias): bias for bias in biases if bias is not None}
    return {key: _distance_table(f"distances_{index}", bias) for index, (key, bias) in enumerate(each.items())}


def _distance_table(name: str, bias: Tensor) -> Packed:
    heads, distances = bias.shape

    def rows(start: int, stop: int) -> Array:
        return np.pad(bias.rows(start, stop) / math.log(2), ((0, 0), (0, PAGE)))

    return _packed(name, Tensor((heads, distances + PAGE), bias.sources, rows), pad_columns)


def _buckets_of(block: Block) -> int:
    """The id of its tensor of buckets."""
    return id(block.attention.relative and block.attention.relative.buckets)


def _bucket_tables(stack: Stack) -> dict[int, Packed]:
    """By the id of the tensor, the bucket of each distance, [2 * limit], with room for a page behind."""
    relatives = [block.attention.relative for block in stack.blocks]
    each = {id(relative.buckets): relative.buckets for relative in relatives if relative is not None}
    return {key: _bucket_table(f"buckets_{index}", tensor) for index, (key, tensor) in enumerate(each.items())}


def _bucket_table(name: str, buckets: Tensor) -> Packed:
    def chunks() -> Iterator[Values]:
        numbers = buckets.load().astype(np.int32)
        assert set(np.diff(numbers).tolist()) <= {0, 1}, "kernels need buckets that follow each other"
        yield np.pad(numbers, (0, PAGE), mode="edge")

    return Packed(name, buckets.sources, "i4", buckets.shape[0] + PAGE, chunks)


def _relative_key(attention: Attention) -> Key:
    return _key("relative", [] if attention.relative is None else attention.relative.tables)


def _relative_arrays(relative: Relative | None, dtype: str) -> list[Packed]:
    """Keys of distances as the panels of a matrix of the cache's type, a head behind another, and queries as rows."""
    arrays: list[Packed] = []
    if relative is None:
        return arrays
    if relative.keys is not None:
        arrays += _arrays("relative_key", _flat(relative.keys), KEY_TYPES[dtype])
    if relative.queries is not None:
        arrays.append(_packed("relative_queries", _flat(relative.queries), pad_columns))
    return arrays


def _flat(table: Tensor) -> Tensor:
    """[heads, count, dims] -> [heads * count in whole panels, dims], each head with zeros behind it."""
    heads, count, dims = table.shape
    padded = round_up(count)

    def rows(start: int, stop: int) -> Array:
        first, last = start // padded, -(-stop // padded)
        read = np.pad(table.rows(first, last), ((0, 0), (0, padded - count), (0, 0))).reshape(-1, dims)
        return read[start - first * padded : stop - first * padded]

    return Tensor((heads * padded, dims), table.sources, rows)


Key = tuple[str | int, ...]
Join = Callable[..., Tensor]  # of some tensors


@dataclass
class _Shared:
    """What the blocks of a stack have packed, each by its C++ name and the ids of its tensors.

    Where blocks share tensors, as those of an ALBERT do, the first of them has the arrays and the others read these.
    """

    matrices: dict[Key, Matrix] = field(default_factory=dict)
    vectors: dict[Key, list[Packed]] = field(default_factory=dict)


def _key(name: str, tensors: Iterable[Tensor]) -> Key:
    return (name, *map(id, tensors))


def _pack_block(
    unit: str,
    block: Block,
    tables: tuple[Packed, ...],
    shared: _Shared,
    types: Types,
    blob_limit: int,
    strip_file_limit: int | None = None,
) -> PackedBlock:
    arrays: list[Packed] = []  # that the block reads
    own: list[Packed] = []  # those that no block before it has
    sublayers: list[PackedSublayer] = []

    def product(
        name: str, linears: Sequence[Linear], join: Join = stack, may_explode: bool = True, **order: Any
    ) -> Matrix:
        """`order` is how workers divide it: fields of Matrix."""
        weights = [each.weight for each in linears]
        key = _key(name, weights)
        if key not in shared.matrices:
            dtype, source = _common_type(types, linears), " + ".join(dict.fromkeys(linear.name for linear in linears))
            exploded = _exploded(unit, name, source, join(*weights), dtype, strip_file_limit if may_explode else None)
            shared.matrices[key] = replace(exploded or _matrix(name, source, join(*weights), dtype), **order)
            own.extend(shared.matrices[key].arrays)
        arrays.extend(shared.matrices[key].arrays)
        return shared.matrices[key]

    def vectors(key: Key, pack: Callable[[], list[Packed]]) -> list[Packed]:
        if key not in shared.vectors:
            shared.vectors[key] = pack()
            own.extend(shared.vectors[key])
        arrays.extend(shared.vectors[key])
        return shared.vectors[key]

    def bias(name: str, linears: Sequence[Linear], join: Join = stack) -> None:
        tensors = [each.bias for each in linears if each.bias is not None]
        vectors(_key(f"{name}_bias", tensors), lambda: _vector(f"{name}_bias", join(*tensors)))

    def norm_of(name: str, norm: Norm | None) -> list[Packed]:
        tensors = [] if norm is None else [each for each in (norm.weight, norm.bias) if each is not None]
        return vectors(_key(f"{name}_norm", tensors), lambda: _norm_arrays(f"{name}_norm", norm))

    for sublayer in block.sublayers:
        body, key_value = sublayer.body, None
        relative: list[Packed] = []
        heads: list[Packed] = []
        name = "mlp" if isinstance(body, Mlp) else "cross" if body.sees == "source" else "attention"
        norm = norm_of(name, sublayer.before)
        if isinstance(body, Mlp):
            ups = [body.up] if body.gate is None else [body.gate, body.up]
            products = {"up": product("up", ups, _side_by_side, body.gate is None, together=len(ups))}
            bias("up", ups, _side_by_side)
            products["down"] = product("down", [body.down])
            bias("down", [body.down])
        elif name == "cross":
            products = {"cross_query": product("cross_query", [body.query], together=body.group_panels)}
            bias("cross_query", [body.query])
            products["cross_out"] = product("cross_out", [body.out])
            bias("cross_out", [body.out])
            key_value = product("key_value", [body.key, body.value], may_explode=False)
        else:
            fused, panels = [body.query, body.key, body.value], body.kv_heads * body.dims // PANEL
            products = {"qkv": product("qkv", fused, first=body.width // PANEL, panels=panels)}
            bias("qkv", fused)  # the queries', and the keys' where scores depend on it
            heads = [*norm_of("query", body.query_norm), *norm_of("key", body.key_norm)]
            relative = vectors(_relative_key(body), partial(_relative_arrays, body.relative, types.cache))
            products["out"] = product("out", [body.out])
            bias("out", [body.out])
        branch = norm_of(f"{name}_branch", sublayer.branch)
        names = map(_names, (norm, relative, heads, branch))
        sublayers.append(PackedSublayer(name, sublayer, products, key_value, *names))
    own = sorted(own, key=_place) if block.parallel else own
    return PackedBlock(_unit(unit, own, blob_limit), tuple(sublayers), tuple(arrays), tables, block.parallel)


def _place(array: Packed) -> int:
    """Of an array among those of sublayers side by side."""
    product = array.name.partition("_")[0]
    return PARALLEL_ORDER.index(product) if product in PARALLEL_ORDER else 0


def _names(arrays: Iterable[Packed]) -> tuple[str, ...]:
    return tuple(array.name for array in arrays)


def _side_by_side(*tensors: Tensor) -> Tensor:
    """A panel of each tensor's rows in turns, as a gate and what it gates have to be, in whole panels."""
    if len(tensors) == 1:
        return tensors[0]
    count, height, rest = len(tensors), tensors[0].shape[0], tensors[0].shape[1:]

    def rows(start: int, stop: int) -> Array:
        first, last = start // (count * PANEL), -(-stop // (count * PANEL))
        result = np.zeros((last - first, count, PANEL, *rest))
        for index, tensor in enumerate(tensors):
            read = tensor.rows(first * PANEL, min(last * PANEL, height))
            flat = np.zeros(((last - first) * PANEL, *rest))
            flat[: len(read)] = read
            result[:, index] = flat.reshape(-1, PANEL, *rest)
        begin = start - first * count * PANEL
        return result.reshape(-1, *rest)[begin : begin + stop - start]

    return Tensor((count * round_up(height), *rest), merge_sources(*tensors), rows)


def _common_type(types: Types, linears: Sequence[Linear]) -> str:
    """The one type of matrices that become one product."""
    chosen = {types.of(linear.name): linear.name for linear in linears}
    if len(chosen) > 1:
        names = " and ".join(f"{name} is {dtype}" for dtype, name in chosen.items())
        raise InputError(f"tensor_dtypes: {names}, but they are one product: give them one type")
    return next(iter(chosen))


def _norm_arrays(name: str, norm: Norm | None) -> list[Packed]:
    """Its weight and its bias, where it has them."""
    vectors = () if norm is None else (("weight", norm.weight), ("bias", norm.bias))
    return [array for part, vector in vectors for array in _vector(f"{name}_{part}", vector)]


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
    return [] if tensor is None else [_packed(name, tensor, pad_vector)]


def _packed(name: str, tensor: Tensor, pad: Callable[[Floats], Floats]) -> Packed:
    """A vector or a table of rows, in float32."""
    width = int(np.prod(tensor.shape[1:], dtype=np.int64))
    size = tensor.shape[0] * round_up(width) if len(tensor.shape) > 1 else round_up(tensor.shape[0])

    def chunks() -> Iterator[Values]:
        for start, stop in pieces(0, tensor.shape[0], width):
            with np.errstate(over="ignore"):
                yield _checked(tensor, pad(tensor.rows(start, stop)).astype(np.float32))

    return Packed(name, tensor.sources, "f4", size, chunks)


def _table(name: str, source: str, tensor: Tensor, dtype: str, blob_limit: int) -> Table:
    rows, width = tensor.shape
    count = round_up(rows) // PANEL
    kind = MATRIX_TYPES[dtype]
    per_slice = max(1, blob_limit // (kind.packed_sizes(PANEL, width)[0] * kind.arrays[0].itemsize))
    slice_rows = -(-count // -(-count // per_slice)) * PANEL
    starts = range(0, rows, slice_rows)
    slices = [_slice(tensor, start, min(rows, start + slice_rows)) for start in starts]
    return Table(
        tuple(_matrix(f"{name}_{index}", source, each, dtype) for index, each in enumerate(slices)), slice_rows
    )


def _slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    shape = (stop - start, *tensor.shape[1:])
    return Tensor(shape, tensor.sources, lambda first, last: tensor.rows(start + first, start + last))


def _matrix(name: str, source: str, tensor: Tensor, dtype: str) -> Matrix:
    rows, depth = tensor.shape
    return Matrix(name, source, dtype, rows, depth, _arrays(name, tensor, MATRIX_TYPES[dtype]))


def _arrays(name: str, tensor: Tensor, kind: MatrixType) -> tuple[Packed, ...]:
    rows, depth = tensor.shape
    packed = _Arrays(tensor, kind.pack)
    return tuple(
        Packed(f"{name}_{array.name}", tensor.sources, array.type, size, packed.reader(index))
        for index, (array, size) in enumerate(zip(kind.arrays, kind.packed_sizes(rows, depth), strict=True))
    )


def _exploded(
    unit: str, name: str, source: str, tensor: Tensor, dtype: str, strip_file_limit: int | None
) -> Matrix | None:
    """The matrix as code, where that is asked for and it is small enough."""
    if strip_file_limit is None or dtype != "float32":
        return None
    weights = _few_weights(tensor)
    if weights is None:
        return None
    files = explode(f"{unit}_{name}", tensor.sources, weights, strip_file_limit)
    rows, depth = tensor.shape
    return Matrix(name, source, dtype, rows, depth, (), files)


def _few_weights(tensor: Tensor) -> Weights | None:
    """[rows rounded up to a panel, depth]; None as soon as more than EXPLODED_LIMIT of them are not zero."""
    rows, depth = tensor.shape
    weights = np.zeros((round_up(rows), depth), np.float32)
    count = 0
    for start, stop in pieces(0, rows, depth):
        with np.errstate(over="ignore"):
            weights[start:stop] = _checked(tensor, tensor.rows(start, stop).astype(np.float32))
        count += int(np.count_nonzero(weights[start:stop]))
        if count > EXPLODED_LIMIT:
            return None
    return weights


class _Arrays:
    """The arrays that a matrix is packed into, a piece at a time.

    The weights come first in a blob; their scales and sums, which are small, are kept from the same pass.
    """

    def __init__(self, tensor: Tensor, pack: Callable[[Floats], tuple[Values, ...]]) -> None:
        self._tensor = tensor
        self._pack = pack
        self._small: list[list[Values]] = []

    def reader(self, index: int) -> Callable[[], Iterator[Values]]:
        """What yields the pieces of the array at `index` of the packer's result."""
        return self._weights if index == 0 else lambda: self._small_array(index - 1)

    def _weights(self) -> Iterator[Values]:
        small = []
        for start, stop in pieces(0, *self._tensor.shape):
            weights, *rest = self._pack(_checked(self._tensor, self._tensor.rows(start, stop)))
            small.append(rest)
            yield _checked(self._tensor, weights)
        self._small = small

    def _small_array(self, index: int) -> Iterator[Values]:
        if not self._small:
            for _ in self._weights():
                pass
        return (_checked(self._tensor, piece[index]) for piece in self._small)


def _checked(tensor: Tensor, values: Values) -> Values:
    """`values`, which must be finite."""
    finite = (values & 0x7F80) != 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
    if not finite.all():
        which = "folded together these pass" if len(tensor.sources) > 1 else "some of its values pass"
        raise CheckpointError(
            f"{' + '.join(tensor.sources)}: {which} the range of their type; "
            "the checkpoint's weights are too large to be sound"
        )
    return values

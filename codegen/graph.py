"""What a model computes, in a short closed vocabulary, with its tensors; what the passes rewrite.

A model is a stack of blocks and a head, a block is a list of sublayers, and a sublayer adds what its body makes of the
residual stream to it. Names of tensors and fields are known to the reader of a checkpoint alone.

Tensors are lazy: an op knows the shape of its weights and how to compute them, and nothing is read until emission asks,
a piece of a matrix at a time. That keeps codegen's memory small, and lets the plan be made from headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .layout import PANEL, round_up

Array = NDArray[np.float64]

PIECE_BYTES = 8 << 20  # of a matrix in float64 that codegen works on at a time


@dataclass(frozen=True)
class Tensor:
    """A float64 array to be: its shape, the checkpoint tensors it comes from, and how to compute rows [start, stop)."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    rows: Callable[[int, int], Array]

    def load(self) -> Array:
        """The whole array."""
        return self.rows(0, self.shape[0])

    def map(self, function: Callable[[Array], Array], *others: Tensor) -> Tensor:
        """The array after `function`, which works on any rows by themselves; `others` only add to the sources."""
        return Tensor(self.shape, merge_sources(self, *others), lambda start, stop: function(self.rows(start, stop)))


def merge_sources(*tensors: Tensor) -> tuple[str, ...]:
    """The sources of all, each once, in order."""
    return tuple(dict.fromkeys(source for tensor in tensors for source in tensor.sources))


def stack(*tensors: Tensor) -> Tensor:
    """The rows of all, one tensor behind another."""
    ends = np.cumsum([tensor.shape[0] for tensor in tensors]).tolist()

    def rows(start: int, stop: int) -> Array:
        parts = []
        for tensor, end in zip(tensors, ends, strict=True):
            begin = end - tensor.shape[0]
            if start < end and begin < stop:
                parts.append(tensor.rows(max(start, begin) - begin, min(stop, end) - begin))
        return np.concatenate(parts)

    return Tensor((ends[-1], *tensors[0].shape[1:]), merge_sources(*tensors), rows)


def pieces(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in runs of whole panels whose float64 rows of `width` stay within PIECE_BYTES, if a panel does."""
    step = max(1, PIECE_BYTES // (8 * width * PANEL)) * PANEL
    return ((first, min(stop, first + step)) for first in range(start, stop, step))


def matvec(matrix: Tensor, vector: Array, start: int, stop: int) -> Array:
    """Rows [start, stop) of matrix @ vector, a piece of the matrix at a time.

    Every row is summed in ascending order: a BLAS's bits would depend on its threads and the processor.
    """
    total = np.zeros(stop - start)
    for first, last in pieces(start, stop, matrix.shape[1]):
        rows = matrix.rows(first, last)
        for column, factor in enumerate(vector):
            total[first - start : last - start] += rows[:, column] * factor
    return total


@dataclass(frozen=True)
class Norm:
    """(x - mean) / sqrt(variance + epsilon), then * weight + bias unless they are None; "rms" takes the mean for 0."""

    kind: str  # "layer" or "rms"
    epsilon: float
    weight: Tensor | None  # [width]
    bias: Tensor | None  # [width]

    @property
    def bare(self) -> bool:
        """Whether nothing follows the normalization."""
        return self.weight is None and self.bias is None


@dataclass(frozen=True)
class Linear:
    """x weight^T + bias."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None  # [outputs]

    @property
    def name(self) -> str:
        """Of the matrix, as the checkpoint names it ("h.0.attn.c_attn")."""
        return self.weight.sources[0].removesuffix(".weight")


@dataclass(frozen=True)
class Rotary:
    """Turns dimensions i and i + half of queries and keys by position * frequencies[i] (RoFormer, arXiv:2104.09864)."""

    frequencies: tuple[float, ...]  # of each pair of a head's dimensions, in radians a position


@dataclass(frozen=True)
class Attention:
    """out(softmax(scale * query . key) value), of heads that see their own position and those before it.

    Consecutive heads share a key and value head where there are fewer of those.
    """

    heads: int
    kv_heads: int
    head_dim: int  # of the checkpoint; the linears may have more, which are zero
    query: Linear  # [heads * dims, width]
    key: Linear  # [kv_heads * dims, width], as is the value
    value: Linear
    out: Linear  # [width, heads * dims]
    scale: float
    rotary: Rotary | None = None

    @property
    def width(self) -> int:
        """Of all queries together."""
        return self.query.weight.shape[0]

    @property
    def dims(self) -> int:
        """Of a head, as the linears have it."""
        return self.width // self.heads

    @property
    def padded_dims(self) -> int:
        """Of a head in whole panels; under rotary each half of it."""
        return round_up(self.head_dim) if self.rotary is None else 2 * round_up(self.head_dim // 2)

    @property
    def linears(self) -> dict[str, Linear]:
        return {"query": self.query, "key": self.key, "value": self.value, "out": self.out}


@dataclass(frozen=True)
class Mlp:
    """down(activation(up(x))) or, with a gate, down(activation(gate(x)) * up(x))."""

    up: Linear  # [inner, width]
    down: Linear  # [width, inner]
    activation: str  # gelu_tanh, gelu_erf, relu, silu or tanh
    gate: Linear | None = None  # [inner, width]

    @property
    def inner(self) -> int:
        return self.up.weight.shape[0]

    @property
    def linears(self) -> dict[str, Linear]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}


@dataclass(frozen=True)
class Sublayer:
    """x += body(before(x))."""

    body: Attention | Mlp
    before: Norm


@dataclass(frozen=True)
class Block:
    """Sublayers one after another: attention and an MLP."""

    sublayers: tuple[Sublayer, ...]

    @property
    def attention(self) -> Attention:
        (found,) = (each.body for each in self.sublayers if isinstance(each.body, Attention))
        return found

    @property
    def mlp(self) -> Mlp:
        (found,) = (each.body for each in self.sublayers if isinstance(each.body, Mlp))
        return found

    def map(self, rewrite: Callable[[Sublayer], Sublayer]) -> Block:
        """The block with each sublayer rewritten."""
        return Block(tuple(map(rewrite, self.sublayers)))


@dataclass(frozen=True)
class Embeddings:
    """tokens[id] + positions[position], or the tokens alone."""

    tokens: Tensor  # [vocabulary, width]; the head's own weight where they are tied
    positions: Tensor | None  # [limit, width]


@dataclass(frozen=True)
class Stack:
    """Embeddings, blocks, and a norm behind them."""

    embeddings: Embeddings
    blocks: tuple[Block, ...]
    norm: Norm
    limit: int  # positions that a sequence may have


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that end a text, and those that begin and pad one; each within the vocabulary."""

    eos: tuple[int, ...]
    bos: int | None
    pad: int | None


@dataclass(frozen=True)
class Graph:
    """A decoder and the head behind it."""

    decoder: Stack
    head: Linear  # [vocabulary, width]
    special: SpecialTokens

    @property
    def tied(self) -> bool:
        """Whether the head's matrix is the token table too."""
        return self.head.weight is self.decoder.embeddings.tokens

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.head.weight.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.decoder.blocks

    def map(self, rewrite: Callable[[Sublayer], Sublayer]) -> Graph:
        """The graph with each sublayer rewritten."""
        blocks = tuple(block.map(rewrite) for block in self.blocks)
        return replace(self, decoder=replace(self.decoder, blocks=blocks))


def verify(graph: Graph) -> None:
    """Checks that all shapes fit each other; run on the graph entering and leaving each pass."""
    width = graph.width
    _expect(graph.decoder.embeddings.tokens, graph.head.weight.shape)
    if graph.decoder.embeddings.positions is not None:
        _expect(graph.decoder.embeddings.positions, (graph.decoder.limit, width))
    for sublayer in (each for block in graph.blocks for each in block.sublayers):
        _expect_norm(sublayer.before, width)
        body = sublayer.body
        if isinstance(body, Attention):
            shared = body.kv_heads * body.dims
            shapes = {"query": (body.width, width), "key": (shared, width), "value": (shared, width)}
            shapes["out"] = (width, body.width)
        else:
            shapes = {"gate": (body.inner, width), "up": (body.inner, width), "down": (width, body.inner)}
        for name, linear in body.linears.items():
            _expect_linear(linear, *shapes[name])
    _expect_norm(graph.decoder.norm, width)
    _expect_linear(graph.head, *graph.head.weight.shape)


def _expect_norm(norm: Norm, width: int) -> None:
    for vector in (norm.weight, norm.bias):
        if vector is not None:
            _expect(vector, (width,))


def _expect_linear(linear: Linear, outputs: int, inputs: int) -> None:
    _expect(linear.weight, (outputs, inputs))
    if linear.bias is not None:
        _expect(linear.bias, (outputs,))


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise AssertionError(f"{' + '.join(tensor.sources)}: shape {tensor.shape} where the graph needs {shape}")


def check_ready(graph: Graph) -> None:
    """Asserts what the kernels rely on, behind the last pass: whatever a pass has left would be left out silently."""
    for index, block in enumerate(graph.blocks):
        bodies = [type(each.body) for each in block.sublayers]
        _require(bodies == [Attention, Mlp], index, "attention and an MLP behind it")
        _require(all(each.before.bare for each in block.sublayers), index, "norms without weight and bias")
        attention, mlp = block.attention, block.mlp
        _require(attention.scale == 1, index, "scores that are not scaled")
        _require(attention.value.bias is None, index, "values without a bias")
        _require((attention.key.bias is None) == (attention.rotary is None), index, "a bias of keys just under rotary")
        biases = [linear.bias for linear in (attention.query, attention.out, *mlp.linears.values())]
        _require(None not in biases, index, "a bias of all other linears")
        _require(attention.heads % attention.kv_heads == 0, index, "as many queries of each key")
        _require(attention.dims == attention.padded_dims, index, "heads of whole panels")
    norm = graph.decoder.norm
    _require(norm.bias is None or norm.weight is not None, None, "a weight of the final norm where it has a bias")


def _require(holds: bool, block: int | None, what: str) -> None:
    if not holds:
        raise AssertionError(f"{'the model' if block is None else f'block {block}'}: the kernels need {what}")

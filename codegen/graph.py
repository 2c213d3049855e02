"""The ops of a model, in order, with their tensors; what the passes rewrite.

Tensors are lazy: an op knows the shape of its weights and how to compute them, and nothing is read until emission asks,
a piece of a matrix at a time. That keeps codegen's memory small, and lets the plan be made from headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .layout import PANEL
from .spec import BlockSpec, ModelSpec

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
class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon), then * weight + bias unless they are None (folded away)."""

    epsilon: float
    weight: Tensor | None  # [n_embd]
    bias: Tensor | None  # [n_embd]


@dataclass(frozen=True)
class Linear:
    """x weight^T + bias."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None  # [outputs]


@dataclass(frozen=True)
class Block:
    """x += attn_out(attention(query, key, value of ln_1(x))); x += mlp_out(activation(mlp_in(ln_2(x))))."""

    spec: BlockSpec
    ln_1: LayerNorm
    query: Linear  # [n_head * head_dim, n_embd], as are the next two
    key: Linear
    value: Linear
    attn_out: Linear  # [n_embd, n_head * head_dim]
    ln_2: LayerNorm
    mlp_in: Linear  # [n_inner, n_embd]
    mlp_out: Linear  # [n_embd, n_inner]
    attn_scale: float  # multiplies query . key


@dataclass(frozen=True)
class Graph:
    """GPT-2: embeddings, blocks, final norm, head."""

    spec: ModelSpec
    tokens: Tensor  # [vocab_size, n_embd]; the head's own weight where they are tied
    positions: Tensor  # [n_positions, n_embd]
    blocks: tuple[Block, ...]
    ln_f: LayerNorm
    head: Linear  # [vocab_size, n_embd]


def build_graph(checkpoint: Checkpoint, spec: ModelSpec) -> Graph:
    """The graph as the checkpoint states it, before any pass."""
    tokens = _read(checkpoint, "wte.weight")
    return Graph(
        spec=spec,
        tokens=tokens,
        positions=_read(checkpoint, "wpe.weight"),
        blocks=tuple(_build_block(checkpoint, spec, index) for index in range(len(spec.blocks))),
        ln_f=_layer_norm(checkpoint, spec, "ln_f"),
        head=Linear(tokens if spec.tie_word_embeddings else _read(checkpoint, "lm_head.weight"), None),
    )


def verify(graph: Graph) -> None:
    """Checks every shape against the spec; run on the graph entering and leaving each pass."""
    spec = graph.spec
    _expect(graph.tokens, (spec.vocab_size, spec.n_embd))
    _expect(graph.positions, (spec.n_positions, spec.n_embd))
    for block, block_spec in zip(graph.blocks, spec.blocks, strict=True):
        attention = block.query.weight.shape[0]
        for linear in (block.query, block.key, block.value):
            _expect_linear(linear, attention, spec.n_embd)
        _expect_linear(block.attn_out, spec.n_embd, attention)
        _expect_linear(block.mlp_in, block_spec.n_inner, spec.n_embd)
        _expect_linear(block.mlp_out, spec.n_embd, block_spec.n_inner)
    _expect_linear(graph.head, spec.vocab_size, spec.n_embd)


def _expect_linear(linear: Linear, outputs: int, inputs: int) -> None:
    _expect(linear.weight, (outputs, inputs))
    if linear.bias is not None:
        _expect(linear.bias, (outputs,))


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise AssertionError(f"{' + '.join(tensor.sources)}: shape {tensor.shape} where the graph needs {shape}")


def _build_block(checkpoint: Checkpoint, spec: ModelSpec, index: int) -> Block:
    block = spec.blocks[index]
    prefix = f"h.{index}"
    query, key, value = _split_linear(checkpoint, f"{prefix}.attn.c_attn", 3)
    return Block(
        spec=block,
        ln_1=_layer_norm(checkpoint, spec, f"{prefix}.ln_1"),
        query=query,
        key=key,
        value=value,
        attn_out=_split_linear(checkpoint, f"{prefix}.attn.c_proj", 1)[0],
        ln_2=_layer_norm(checkpoint, spec, f"{prefix}.ln_2"),
        mlp_in=_split_linear(checkpoint, f"{prefix}.mlp.c_fc", 1)[0],
        mlp_out=_split_linear(checkpoint, f"{prefix}.mlp.c_proj", 1)[0],
        attn_scale=block.attn_scale,
    )


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    def rows(start: int, stop: int) -> Array:
        return checkpoint.read(name, slice(start, stop)).astype(np.float64)

    return Tensor(checkpoint.tensors[name].shape, (name,), rows)


def _layer_norm(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> LayerNorm:
    return LayerNorm(spec.layer_norm_epsilon, _read(checkpoint, f"{name}.weight"), _read(checkpoint, f"{name}.bias"))


def _split_linear(checkpoint: Checkpoint, name: str, parts: int) -> list[Linear]:
    """GPT-2's Conv1D, weight [inputs, parts * outputs], as `parts` linears of weight [outputs, inputs]."""
    inputs, columns = checkpoint.tensors[f"{name}.weight"].shape
    outputs = columns // parts

    def linear(part: int) -> Linear:
        begin = part * outputs

        def weight(start: int, stop: int) -> Array:
            return _read_columns(checkpoint, f"{name}.weight", begin + start, begin + stop).T

        def bias(start: int, stop: int) -> Array:
            return checkpoint.read(f"{name}.bias", slice(begin + start, begin + stop)).astype(np.float64)

        return Linear(
            Tensor((outputs, inputs), (f"{name}.weight",), weight), Tensor((outputs,), (f"{name}.bias",), bias)
        )

    return [linear(part) for part in range(parts)]


def _read_columns(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Array:
    """Columns [start, stop) of a stored matrix, some of its rows at a time."""
    rows, columns = checkpoint.tensors[name].shape
    read = np.empty((rows, stop - start))
    for first, last in pieces(0, rows, columns):
        read[first:last] = checkpoint.read(name, slice(first, last))[:, start:stop]
    return read

"""What a graph computes, in NumPy, whatever rewrites it has been through: for calibration, and for the tests.

Tensors come in float64, and so do results. Of tensors and vectors in float32 most of the arithmetic is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Attention, Embeddings, Graph, Head, Linear, Mlp, Norm, Relative, Rotary, Stack, Sublayer, Tensor

Array = NDArray[Any]  # of floats

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)).astype(x.dtype)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def evaluate(
    graph: Graph, ids: Sequence[int], decoder_ids: Sequence[int] | None = None, types: Sequence[int] | None = None
) -> Array:
    """What the head gives or, without one, vectors [count, width]; `types` are the encoder's."""
    source = None
    if graph.encoder is not None:
        source = run_stack(graph.encoder, ids, types, None)
    x = source
    if graph.decoder is not None:
        x = run_stack(graph.decoder, ids if decoder_ids is None else decoder_ids, None, source)
    assert x is not None
    return x if graph.head is None else run_head(graph.head, x)


def run_head(head: Head, x: Array) -> Array:
    """Of vectors [count, width] behind the last norm: [count, outputs] or, where it pools, [1, outputs]."""
    if head.pooling:
        places = np.arange(1, len(x) + 1)
        pooled = {
            "first": x[0],
            "last": x[-1],
            "max": x.max(0),
            "mean": x.mean(0),
            "mean_sqrt_len": x.sum(0) / math.sqrt(len(x)),
            "weighted_mean": places @ x / places.sum(),
        }
        x = np.concatenate([pooled[each] for each in head.pooling])[None]
    for layer in head.layers:
        x = linear(layer.linear, x)
        x = norm(layer.norm, x if layer.activation is None else ACTIVATIONS[layer.activation](x))
    if head.output is not None:
        x = linear(head.output, x)
    return x / np.sqrt((x * x).sum(-1, keepdims=True)) if head.normalize else x


def run_stack(stack: Stack, ids: Sequence[int], types: Sequence[int] | None, source: Array | None) -> Array:
    """Vectors [count, width] behind the last norm."""
    x = embed(stack.embeddings, ids, types)
    for block in stack.blocks:
        if block.parallel:
            x = x + sum(made_of(each, norm(each.before, x), source, stack.limit) for each in block.sublayers)
            continue
        for sublayer in block.sublayers:
            read = norm(sublayer.before, x)
            made = made_of(sublayer, read, source, stack.limit)
            x = norm(sublayer.after, (read if sublayer.replaces else x) + made)
    return norm(stack.norm, x)


def embed(op: Embeddings, ids: Sequence[int], types: Sequence[int] | None = None) -> Array:
    """Vectors [count, the residual stream's width]."""
    x = op.tokens.load()[list(ids)]
    if op.positions is not None:
        x = x + op.positions.load()[: len(ids)]
    if op.types is not None:
        x = x + op.types.load()[[0] * len(ids) if types is None else list(types)]
    x = norm(op.norm, x)
    return x if op.projection is None else linear(op.projection, x)


def made_of(sublayer: Sublayer, read: Array, source: Array | None, limit: int) -> Array:
    """What a sublayer adds to the stream, of what it reads of it."""
    body = sublayer.body
    return norm(sublayer.branch, mlp(body, read) if isinstance(body, Mlp) else attention(body, read, source, limit))


def norm(op: Norm | None, x: Array) -> Array:
    if op is None:
        return x
    x = x - x.mean(-1, keepdims=True) if op.kind == "layer" else x
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + op.epsilon)
    return x * loaded(op.weight, 1.0) + loaded(op.bias, 0.0)


def linear(op: Linear, x: Array) -> Array:
    return x @ op.weight.load().T + loaded(op.bias, 0.0)


def loaded(tensor: Tensor | None, default: float) -> Array | float:
    return default if tensor is None else tensor.load()


def mlp(op: Mlp, x: Array) -> Array:
    return linear(op.down, inner(op, x))


def inner(op: Mlp, x: Array) -> Array:
    """What the last matrix of an MLP reads."""
    activate = ACTIVATIONS[op.activation]
    up = linear(op.up, x)
    return activate(up) if op.gate is None else activate(linear(op.gate, x)) * up


def attention(op: Attention, x: Array, source: Array | None, limit: int) -> Array:
    read = x
    if op.sees == "source":
        assert source is not None
        read = source
    query = linear(op.query, x).reshape(len(x), op.heads, -1)
    key, value = (linear(each, read).reshape(len(read), op.kv_heads, -1) for each in (op.key, op.value))
    query, key = norm_heads(op, op.query_norm, query), norm_heads(op, op.key_norm, key)
    if op.rotary is not None:
        query, key = turn(op.rotary, query), turn(op.rotary, key)
    key, value = (np.repeat(each, op.heads // op.kv_heads, axis=1) for each in (key, value))
    query, key, value = (each.swapaxes(0, 1) for each in (query, key, value))
    scores = query @ key.swapaxes(1, 2)
    distances = np.arange(len(read))[None] - np.arange(len(x))[:, None]
    if op.relative is not None:
        scores = scores + relative_scores(
            op.relative, query, key, op.relative.buckets.load().astype(int)[distances + limit]
        )
    scores = op.scale * scores
    if op.distance_bias is not None:
        scores = scores + op.distance_bias.load()[:, distances + limit]
    if op.sees == "past":
        scores[:, distances > 0] = -np.inf
    if op.reach is not None:
        scores[:, np.abs(distances) > op.reach] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear(op.out, (weights @ value).swapaxes(0, 1).reshape(len(x), -1))


def norm_heads(op: Attention, by: Norm | None, x: Array) -> Array:
    """[count, heads, dims], of which head_dim are no padding."""
    if by is None:
        return x
    rows: Array = x.reshape(len(x), -1) if op.whole_norms else x
    count = (x.shape[1] if op.whole_norms else 1) * op.head_dim
    rows = rows / np.sqrt((rows * rows).sum(-1, keepdims=True) / count + by.epsilon) * loaded(by.weight, 1.0)
    return rows.reshape(x.shape)


def relative_scores(op: Relative, query: Array, key: Array, buckets: NDArray[np.int64]) -> Array:
    """[heads, queries, keys] from queries and keys [heads, count, dims] and the bucket of each pair of them."""
    scores = np.zeros((len(query), *buckets.shape))
    if op.keys is not None:
        with_all = query @ op.keys.load().swapaxes(1, 2)
        scores += np.take_along_axis(with_all, np.broadcast_to(buckets, scores.shape), 2)
    if op.queries is not None:
        with_all = op.queries.load() @ key.swapaxes(1, 2)
        scores += np.take_along_axis(with_all, np.broadcast_to(buckets, scores.shape), 1)
    return scores


def turn(rotary: Rotary, x: Array) -> Array:
    """[count, heads, dims], each half of a head padded with zeros that no frequency turns."""
    half = x.shape[-1] // 2
    frequencies = np.zeros(half)
    frequencies[: len(rotary.frequencies)] = rotary.frequencies
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.arange(len(x))[:, None, None] * frequencies)
    made: Array = np.concatenate([turned.real, turned.imag], axis=-1).astype(x.dtype)
    return made

"""DeBERTa version 2 and 3 (He et al., arXiv:2006.03654 and arXiv:2111.09543), as transformers' DebertaV2Model computes
them; defaults are those of its DebertaV2Config.

Beside query . key, scores have terms for the distance of the two positions: a query meets a key that stands for the
distance, and a key meets such a query. They are what a block's projections make of one table, a row for each bucket of
distances, so they are constants. The convolution of deberta-v2-xlarge is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from ..graph import (
    Array,
    Attention,
    Block,
    Embeddings,
    Graph,
    Head,
    Layer,
    Linear,
    Norm,
    Relative,
    Stack,
    Task,
    Tensor,
    merge_sources,
    pieces,
)
from . import heads, post_norm
from .fields import MAX_LAYERS, MAX_POSITIONS, MAX_TYPES, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import Read
from .weights import Weights

TITLE = "a DeBERTa"
ARCHITECTURES = heads.architectures("DebertaV2")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF | names("conv_kernel_size")
HARMLESS = post_norm.HARMLESS | names(
    "cls_dropout conv_act conv_groups pooler_dropout",
    "legacy pooler_hidden_act pooler_hidden_size",  # of some heads, which read them
    "max_relative_positions norm_rel_ebd position_buckets share_att_key",  # of relative attention, which reads them
)
PREFIX = "deberta."

# The pooler, which most heads do not read, the heads of the training that the first checkpoints still have, and
# positions, where none are added or where old versions of transformers saved 0, 1, 2 ...
IGNORED = re.compile(
    r"(pooler|mask_predictions|lm_predictions)\..*|embeddings\.(position_ids|position_embeddings\.weight)", re.DOTALL
)

NAMES = post_norm.Names(
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)

MAX_HEAD_DIM = 256  # four times what any has, as kernels keep a page of queries of distances on the stack

TERMS = ("c2p", "p2c")  # pos_att_type: queries meet keys of distances, keys meet queries of distances


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 128100, MAX_VOCABULARY)
    shape = _read_shape(fields)
    limit = fields.integer("max_position_embeddings", 512, MAX_POSITIONS)
    embeddings = _read_embeddings(fields, weights, vocabulary, shape.width, limit)
    norm = weights.layer_norm("embeddings.LayerNorm", shape.width, shape.epsilon)
    blocks = list(_read_blocks(fields, weights, shape, limit))
    if embeddings.projection is None:
        embeddings = replace(embeddings, norm=norm)
    else:
        blocks[0] = _behind(norm, blocks[0])
    head, task = _read_head(fields, weights, shape, embeddings.tokens)
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    stack = Stack(embeddings, tuple(blocks), None, limit)
    return Graph(encoder=stack, head=head, task=task, special=special)


def _read_shape(fields: Fields) -> post_norm.Shape:
    shape = post_norm.read_shape(fields, 1536, 24, 6144, epsilon=1e-7)
    head_dim = shape.width // shape.heads
    if head_dim > MAX_HEAD_DIM:
        raise fields.fail("num_attention_heads", f"more, as heads have {MAX_HEAD_DIM} dimensions at most")
    if fields.get("attention_head_size", head_dim) != head_dim:
        raise fields.fail("attention_head_size", f"{head_dim}, which is hidden_size / num_attention_heads")
    return shape


def _read_embeddings(fields: Fields, weights: Weights, vocabulary: int, width: int, limit: int) -> Embeddings:
    """All but their norm, which stands behind the projection where there is one."""
    narrow = fields.integer("embedding_size", width, MAX_WIDTH)
    projection = None
    if narrow != width:
        projection = weights.linear("embeddings.embed_proj", width, narrow, bias=False)
    positions = types = None
    if fields.boolean("position_biased_input", True):
        positions = weights.tensor("embeddings.position_embeddings.weight", (limit, narrow))
    if fields.get("type_vocab_size", 0) != 0:
        rows = fields.integer("type_vocab_size", 0, MAX_TYPES)
        types = weights.tensor("embeddings.token_type_embeddings.weight", (rows, narrow))
    tokens = weights.tensor("embeddings.word_embeddings.weight", (vocabulary, narrow))
    return Embeddings(tokens, positions, types, projection=projection)


def _behind(norm: Norm, block: Block) -> Block:
    """The block with a norm of the stream in front."""
    first, *others = block.sublayers
    return Block((replace(first, before=norm, replaces=True), *others))


def _read_blocks(fields: Fields, weights: Weights, shape: post_norm.Shape, limit: int) -> Iterator[Block]:
    terms = _read_terms(fields)
    norm = None
    if "layer_norm" in _words(fields, "norm_rel_ebd", "none"):
        norm = weights.layer_norm("encoder.LayerNorm", shape.width, shape.epsilon)
    distances = None
    if fields.boolean("relative_attention", False):
        distances = _Distances(fields, weights, shape.width, norm, limit)
    for index in range(fields.integer("num_hidden_layers", 24, MAX_LAYERS)):
        layer = f"encoder.layer.{index}"
        first, *others = post_norm.read_block(weights, layer, NAMES, shape).sublayers
        attention = first.body
        assert isinstance(attention, Attention)
        scale = attention.scale / math.sqrt(1 + len(terms))
        relative = distances.read(layer, attention, terms) if distances and terms else None
        attention = replace(attention, scale=scale, relative=relative)
        yield Block((replace(first, body=attention), *others))


def _read_terms(fields: Fields) -> list[str]:
    """Those of TERMS that the config names, in a list or with | between."""
    given = fields.get("pos_att_type")
    words = given.lower().split("|") if isinstance(given, str) else [] if given is None else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise fields.fail("pos_att_type", f"a list of {' and '.join(TERMS)}, or null")
    words = [word.strip() for word in words]
    unknown = [word for word in words if word not in (*TERMS, "none", "")]
    if unknown:
        raise UnsupportedModelError(
            f"{fields.where}: pos_att_type names {unknown[0][:80]!r}; expected {' and '.join(TERMS)}: choose a "
            "checkpoint with no other terms of scores"
        )
    return [term for term in TERMS if term in words]


class _Distances:
    """The table of distances, and what blocks make of it."""

    def __init__(self, fields: Fields, weights: Weights, width: int, norm: Norm | None, limit: int) -> None:
        self._weights = weights
        self._norm = norm
        self._shared = fields.boolean("share_att_key", False)
        furthest = _positive(fields, "max_relative_positions") or limit
        span = _positive(fields, "position_buckets")
        if span is not None and not 2 <= span < 2 * furthest - 2:
            raise fields.fail(
                "position_buckets", f"from 2 to {2 * furthest - 3}, as the furthest position is {furthest}"
            )
        self._table = weights.tensor("encoder.rel_embeddings.weight", (2 * (span or furthest), width))
        reached = np.zeros(2 * (span or furthest), bool)
        for start, stop in pieces(0, 2 * limit, 1):
            reached[buckets(np.arange(start, stop) - limit, span, furthest)] = True
        self._reached = reached
        numbers = np.cumsum(reached) - 1  # of the buckets that there are
        self._buckets = Tensor(
            (2 * limit,),
            (),
            lambda start, stop: numbers[buckets(np.arange(start, stop) - limit, span, furthest)].astype(np.float64),
        )

    def read(self, layer: str, attention: Attention, terms: list[str]) -> Relative:
        """The terms of the block whose tensors begin with `layer`."""

        def projected(term: str, name: str, own: Linear) -> Tensor | None:
            if term not in terms:
                return None
            width = attention.width
            linear = own if self._shared else self._weights.linear(f"{layer}.attention.self.{name}", width, width)
            return self._projected(linear, attention.heads)

        keys = projected("c2p", "pos_key_proj", attention.key)
        return Relative(self._buckets, keys, projected("p2c", "pos_query_proj", attention.query))

    def _projected(self, linear: Linear, heads: int) -> Tensor:
        """[heads, buckets, dims]: what a projection makes of each row of the table."""
        weight, bias, count = linear.weight, linear.bias, int(self._reached.sum())
        dims = weight.shape[0] // heads
        sources = merge_sources(weight, *((bias,) if bias else ()), self._table)

        def rows(start: int, stop: int) -> Array:
            table, made = self._columns(), np.empty((stop - start, count, dims))
            for head in range(start, stop):
                projection = weight.rows(head * dims, (head + 1) * dims)
                total, product = np.zeros((2, dims, count))
                if bias is not None:
                    total += bias.rows(head * dims, (head + 1) * dims)[:, None]
                # In ascending order, as a BLAS's bits would depend on its threads and the processor.
                for column, values in zip(projection.T, table, strict=True):
                    total += np.multiply(column[:, None], values, out=product)
                made[head - start] = total.T
            return made

        return Tensor((heads, count, dims), sources, rows)

    def _columns(self) -> Array:
        """[width, buckets]: the rows that some distance reaches, behind their norm, in order of distance."""
        table = self._table.load()[::-1][self._reached]  # it is stored from the furthest query on
        if self._norm is not None and self._norm.weight is not None and self._norm.bias is not None:
            centered = table - table.mean(axis=1, keepdims=True)
            table = centered / np.sqrt((centered * centered).mean(axis=1, keepdims=True) + self._norm.epsilon)
            table = table * self._norm.weight.load() + self._norm.bias.load()
        return np.ascontiguousarray(table.T)


def buckets(distances: NDArray[np.int64], span: int | None, furthest: int) -> NDArray[np.int64]:
    """The bucket of each key position - query position: those of transformers, which count from key to query, reversed.

    Up to half of `span` a distance has a bucket of its own. Those beyond share buckets by the logarithm, in float32,
    which transformers makes with torch's functions.
    """
    buckets = distances
    if span is not None:
        half = span // 2
        far = np.maximum(np.abs(distances), half).astype(np.float32) / np.float32(half)
        steps = _log(far) / _log(np.float32((furthest - 1) / half)) * np.float32(half - 1)
        shared = (np.ceil(steps) + half).astype(np.int64)
        buckets = np.where(np.abs(distances) <= half, distances, np.sign(distances) * shared)
    count = span or furthest
    return np.clip(buckets + count - 1, 0, 2 * count - 1)


def _log(values: Any) -> Any:
    """In float32, rounded once, as NumPy's own float32 logarithms differ."""
    return np.log(values.astype(np.float64)).astype(np.float32)


def _positive(fields: Fields, name: str) -> int | None:
    """A number of positions; None where it is absent or below 1, as -1 is."""
    value = fields.get(name, -1)
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        return None
    return fields.integer(name, None, MAX_POSITIONS)


def _words(fields: Fields, name: str, default: str) -> list[str]:
    """The words of a field that has | between them."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise fields.fail(name, "words with | between them")
    return [word.strip() for word in value.lower().split("|")]


def _read_head(fields: Fields, weights: Weights, shape: post_norm.Shape, tokens: Tensor) -> tuple[Head | None, Task]:
    width, narrow = shape.width, tokens.shape[1]

    def layer(name: str, dense: str, norm: str, outputs: int) -> Layer:
        linear = weights.linear(f"{name}.{dense}", outputs, width)
        return Layer(linear, shape.activation, weights.layer_norm(f"{name}.{norm}", outputs, shape.epsilon))

    def masked() -> Read:
        if not fields.boolean("legacy", True):
            return in_training()
        name = "cls.predictions"
        transform = layer(name, "transform.dense", "transform.LayerNorm", narrow)
        return heads.masked(
            fields, tokens, transform, weights, f"{name}.decoder.weight", f"{name}.bias", f"{name}.decoder.bias"
        )

    def in_training() -> Read:
        """The head that the models were trained with, always tied to the table of tokens."""
        if narrow != width:
            raise fields.fail("embedding_size", f"{width}, as the head reads hidden_size inputs with the tokens' table")
        name = "lm_predictions.lm_head"
        transform = layer(name, "dense", "LayerNorm", width)
        bias = weights.tensor(f"{name}.bias", tokens.shape[:1])
        return Head(Linear(tokens, bias), (transform,)), Task("fill-mask")

    def pooler() -> Layer:
        if fields.get("pooler_hidden_size", width) != width:
            raise fields.fail("pooler_hidden_size", f"{width}, which is hidden_size")
        return Layer(weights.linear("pooler.dense", width, width), fields.activation("pooler_hidden_act", "gelu"))

    return heads.read_head(fields, heads.readers(ARCHITECTURES, fields, weights, width, masked, pooler))

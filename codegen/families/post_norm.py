"""What encoders like BERT have in common: their embeddings, and blocks with a norm behind each sublayer.

They differ in what they call the tensors of a block, in whether tokens have types, and in where positions begin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..graph import Attention, Block, Embeddings, Linear, Mlp, Stack, Sublayer, Tensor, part
from .fields import MAX_HEADS, MAX_INNER, MAX_POSITIONS, MAX_TYPES, MAX_WIDTH, Fields, names
from .weights import Weights

OFF = names("is_decoder")
HARMLESS = names("attention_probs_dropout_prob classifier_dropout hidden_dropout_prob tie_word_embeddings")


@dataclass(frozen=True)
class Names:
    """What a family calls the tensors of a block."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    mlp_norm: str


BERT = Names(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


@dataclass(frozen=True)
class Shape:
    """The sizes that blocks share, and what else they have in common."""

    width: int
    heads: int
    inner: int
    activation: str
    epsilon: float


def read_shape(
    fields: Fields,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    activation: str = "gelu",
    epsilon: float = 1e-12,
) -> Shape:
    """From BERT's fields, with a family's defaults."""
    shape = Shape(
        width=fields.integer("hidden_size", width, MAX_WIDTH),
        heads=fields.integer("num_attention_heads", heads, MAX_HEADS),
        inner=fields.integer("intermediate_size", inner, MAX_INNER),
        activation=fields.activation("hidden_act", activation),
        epsilon=fields.epsilon("layer_norm_eps", epsilon),
    )
    if shape.width % shape.heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size, which is {shape.width}")
    return shape


def read_embeddings(
    fields: Fields,
    weights: Weights,
    vocabulary: int,
    width: int,
    epsilon: float,
    *,
    first: int = 0,
    typed: bool = True,
) -> Embeddings:
    """Tokens, positions from row `first` of their table on, and types where tokens have some."""
    rows = fields.integer("max_position_embeddings", 512, MAX_POSITIONS)
    if rows <= first:
        raise fields.fail("max_position_embeddings", f"more than {first}, as positions begin there")
    types = fields.integer("type_vocab_size", 2, MAX_TYPES) if typed else 0
    positions = weights.tensor("embeddings.position_embeddings.weight", (rows, width))
    return Embeddings(
        tokens=weights.tensor("embeddings.word_embeddings.weight", (vocabulary, width)),
        positions=part(positions, first, rows) if first else positions,
        types=weights.tensor("embeddings.token_type_embeddings.weight", (types, width)) if typed else None,
        norm=weights.layer_norm("embeddings.LayerNorm", width, epsilon),
    )


def stack(embeddings: Embeddings, blocks: Iterable[Block]) -> Stack:
    """A stack of sequences as long as the table of positions."""
    assert embeddings.positions is not None
    return Stack(embeddings, tuple(blocks), None, embeddings.positions.shape[0])


def read_block(weights: Weights, layer: str, names: Names, shape: Shape, distance_bias: Tensor | None = None) -> Block:
    """The block whose tensors begin with `layer`."""
    width, head_dim = shape.width, shape.width // shape.heads

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        return weights.linear(f"{layer}.{name}", outputs, inputs)

    attention = Attention(
        heads=shape.heads,
        kv_heads=shape.heads,
        head_dim=head_dim,
        query=linear(names.query, width, width),
        key=linear(names.key, width, width),
        value=linear(names.value, width, width),
        out=linear(names.out, width, width),
        scale=1 / math.sqrt(head_dim),
        sees="all",
        distance_bias=distance_bias,
    )
    after_attention = weights.layer_norm(f"{layer}.{names.attention_norm}", width, shape.epsilon)
    up, down = linear(names.up, shape.inner, width), linear(names.down, width, shape.inner)
    after_mlp = weights.layer_norm(f"{layer}.{names.mlp_norm}", width, shape.epsilon)
    return Block(
        (Sublayer(attention, after=after_attention), Sublayer(Mlp(up, down, shape.activation), after=after_mlp))
    )

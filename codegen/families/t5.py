"""T5 (Raffel et al., arXiv:1910.10683), version 1.1 and FLAN-T5, as transformers' T5ForConditionalGeneration computes
them; defaults are those of its T5Config.

A T5 has no limit of positions: `n_positions` is how long the sequences of its training were, 512 where nothing says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer, Tensor
from .distance import distance_bias
from .fields import (
    ACTIVATIONS,
    MAX_HEADS,
    MAX_INNER,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    Fields,
    names,
)
from .weights import Weights

TITLE = "a T5"
ARCHITECTURES = ("T5ForConditionalGeneration",)

# transformers' family-neutral names of four fields (T5Config.attribute_map).
ALIASES = {
    "head_dim": "d_kv",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
}

OFF = names("is_decoder")
HARMLESS = names("classifier_dropout dropout_rate initializer_factor")
PREFIX = ""
IGNORED = re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")  # never read

# feed_forward_proj -> the activation and whether it is that of a gate.
PROJECTIONS = {
    **{name: (name, False) for name in ACTIVATIONS},
    **{f"gated-{name}": (name, True) for name in ACTIVATIONS},
    "gated-gelu": ("gelu_new", True),
}


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    if not fields.boolean("is_encoder_decoder", True):
        raise fields.fail("is_encoder_decoder", "true")
    width = fields.integer("d_model", 512, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 32128, MAX_VOCABULARY)
    tied = fields.boolean("tie_word_embeddings", True)
    gain = width**-0.5 if fields.boolean("scale_decoder_outputs", tied) else 1.0  # a factor of what the head reads
    shared = weights.tensor("shared.weight", (vocabulary, width))
    layers = fields.integer("num_layers", 6, MAX_LAYERS)
    encoder = _read_stack(fields, weights, "encoder", layers, shared)
    layers = fields.integer("num_decoder_layers", layers, MAX_LAYERS, null=True)
    decoder = _read_stack(fields, weights, "decoder", layers, shared, gain)
    head = weights.head("lm_head.weight", shared, tied)
    special = tokens.special_tokens(vocabulary, eos=1, bos=None, pad=0)
    special = replace(special, start=tokens.token("decoder_start_token_id", None, vocabulary))
    return Graph(encoder=encoder, decoder=decoder, head=Head(Linear(head, None)), special=special)


def _read_stack(fields: Fields, weights: Weights, name: str, layers: int, shared: Tensor, gain: float = 1.0) -> Stack:
    """A stack of `layers` blocks; `gain` multiplies its outputs."""
    epsilon = fields.epsilon("layer_norm_epsilon", 1e-6)
    limit = fields.integer("n_positions", 512, MAX_POSITIONS)
    table = weights.copy(f"{name}.embed_tokens.weight", shared)
    blocks = tuple(_read_blocks(fields, weights, name, layers, shared.shape[1], epsilon, limit))
    norm = weights.rms_norm(f"{name}.final_layer_norm", shared.shape[1], epsilon, gain)
    return Stack(Embeddings(table, None), blocks, norm, limit)


def _read_blocks(
    fields: Fields, weights: Weights, stack: str, layers: int, width: int, epsilon: float, limit: int
) -> Iterator[Block]:
    heads, head_dim = fields.integer("num_heads", 8, MAX_HEADS), fields.integer("d_kv", 64, MAX_WIDTH)
    inner = fields.integer("d_ff", 2048, MAX_INNER)
    named, with_gate = fields.choice("feed_forward_proj", "relu", PROJECTIONS)
    activation, gated = fields.activation("dense_act_fn", named), fields.boolean("is_gated_act", with_gate)
    distances = _read_distances(fields, weights, stack, heads, limit)

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        return weights.linear(name, outputs, inputs, bias=False)

    def attention(name: str, sees: str, bias: Tensor | None) -> Attention:
        query, key, value = (linear(f"{name}.{part}", heads * head_dim, width) for part in "qkv")
        out = linear(f"{name}.o", width, heads * head_dim)
        return Attention(heads, heads, head_dim, query, key, value, out, 1.0, sees=sees, distance_bias=bias)

    def mlp(name: str) -> Mlp:
        up, down = linear(f"{name}.wi_1" if gated else f"{name}.wi", inner, width), linear(f"{name}.wo", width, inner)
        return Mlp(up, down, activation, linear(f"{name}.wi_0", inner, width) if gated else None)

    for index in range(layers):
        block = f"{stack}.block.{index}.layer"
        bodies: list[Attention | Mlp]
        if stack == "encoder":
            bodies = [attention(f"{block}.0.SelfAttention", "all", distances)]
        else:
            bodies = [attention(f"{block}.0.SelfAttention", "past", distances)]
            bodies += [attention(f"{block}.1.EncDecAttention", "source", None)]
        bodies += [mlp(f"{block}.{len(bodies)}.DenseReluDense")]
        norms = [weights.rms_norm(f"{block}.{place}.layer_norm", width, epsilon) for place in range(len(bodies))]
        yield Block(tuple(map(Sublayer, bodies, norms)))


def _read_distances(fields: Fields, weights: Weights, stack: str, heads: int, limit: int) -> Tensor:
    """The bias of the first block's self attention, which all blocks of a stack share."""
    buckets = fields.integer("relative_attention_num_buckets", 32, MAX_POSITIONS)
    furthest = fields.integer("relative_attention_max_distance", 128, MAX_POSITIONS)
    if buckets < 4:
        raise fields.fail("relative_attention_num_buckets", "at least 4")
    if furthest <= buckets // 2:
        raise fields.fail("relative_attention_max_distance", f"more than half the buckets, {buckets // 2}")
    name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return distance_bias(weights.tensor(name, (buckets, heads)), limit, furthest, both_ways=stack == "encoder")

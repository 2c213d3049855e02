"""BLOOM (BigScience, arXiv:2211.05100) in all its sizes, as transformers' BloomForCausalLM computes it; defaults are
those of its BloomConfig. Scores have a bias by distance in place of positions (ALiBi).

A BLOOM has no limit of positions: `seq_length` is how long the sequences of its training were, 2048 where nothing says
it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .distance import alibi
from .fields import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .weights import Weights

TITLE = "a BLOOM"
ARCHITECTURES = ("BloomForCausalLM", "BloomModel")

# Older names of the width, and transformers' family-neutral names of two fields (BloomConfig.attribute_map).
ALIASES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

OFF = names()
HARMLESS = names(
    "attention_dropout hidden_dropout",
    # Of the training's code: how it divides, fuses and rounds what is computed here in one way. n_inner is never read.
    "attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion n_inner offset_alibi pretraining_tp",
    "skip_bias_add skip_bias_add_qkv slow_but_exact",
)
PREFIX = "transformer."
IGNORED = re.compile("(?!)")  # nothing


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 64, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 250880, MAX_VOCABULARY)
    limit = fields.integer("seq_length", 2048, MAX_POSITIONS)
    epsilon = fields.epsilon("layer_norm_epsilon", 1e-5)
    table = weights.tensor("word_embeddings.weight", (vocabulary, width))
    embeddings = Embeddings(table, None, norm=weights.layer_norm("word_embeddings_layernorm", width, epsilon))
    blocks = tuple(_read_blocks(fields, weights, width, limit, epsilon))
    norm = weights.layer_norm("ln_f", width, epsilon)
    head = weights.head("lm_head.weight", table, fields.boolean("tie_word_embeddings", True))
    special = tokens.special_tokens(vocabulary, eos=2, bos=1)
    return Graph(decoder=Stack(embeddings, blocks, norm, limit), head=Head(Linear(head, None)), special=special)


def _read_blocks(fields: Fields, weights: Weights, width: int, limit: int, epsilon: float) -> Iterator[Block]:
    heads = fields.integer("n_head", 8, MAX_HEADS)
    if width % heads:
        raise fields.fail("n_head", f"a divisor of hidden_size, which is {width}")
    head_dim, distances = width // heads, alibi(heads, limit)
    replaces = fields.boolean("apply_residual_connection_post_layernorm", False)
    for index in range(fields.integer("n_layer", 2, MAX_LAYERS)):
        name = f"h.{index}"
        query, key, value = weights.by_heads(f"{name}.self_attention.query_key_value", 3, heads, head_dim, width)
        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            query=query,
            key=key,
            value=value,
            out=weights.linear(f"{name}.self_attention.dense", width, width),
            scale=1 / math.sqrt(head_dim),
            distance_bias=distances,
        )
        mlp = Mlp(
            up=weights.linear(f"{name}.mlp.dense_h_to_4h", 4 * width, width),
            down=weights.linear(f"{name}.mlp.dense_4h_to_h", width, 4 * width),
            activation="gelu_tanh",
        )
        norm_1 = weights.layer_norm(f"{name}.input_layernorm", width, epsilon)
        norm_2 = weights.layer_norm(f"{name}.post_attention_layernorm", width, epsilon)
        yield Block((Sublayer(attention, norm_1, replaces=replaces), Sublayer(mlp, norm_2, replaces=replaces)))

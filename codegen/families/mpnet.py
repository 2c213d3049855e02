"""MPNet (Song et al., arXiv:2004.09297), as transformers' MPNetModel computes it; defaults are its MPNetConfig's.

Tokens have no types. All blocks add one bias by distance to their scores, with T5's buckets. Positions begin at 2,
behind the position 1 that transformers gives to the pad token 1; here one inside a text is a token like any other.
"""

from __future__ import annotations

import re

from ..graph import Graph
from . import heads, post_norm, roberta
from .distance import distance_bias
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields
from .weights import Weights

TITLE = "an MPNet"
ARCHITECTURES = heads.architectures("MPNet")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS
PREFIX = "mpnet."

# The pooler, which no head reads, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"pooler\..*|embeddings\.position_ids", re.DOTALL)

BUCKETS, FURTHEST = 32, 128  # of MPNetEncoder.compute_position_bias, whatever the config says
FIRST = 2  # MPNetEmbeddings.padding_idx + 1

NAMES = post_norm.Names(
    "attention.attn.q",
    "attention.attn.k",
    "attention.attn.v",
    "attention.attn.o",
    "attention.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30527, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields)
    if fields.get("relative_attention_num_buckets", BUCKETS) != BUCKETS:
        raise fields.fail("relative_attention_num_buckets", f"{BUCKETS}, as transformers computes no others")
    embeddings = post_norm.read_embeddings(
        fields, weights, vocabulary, shape.width, shape.epsilon, first=FIRST, typed=False
    )
    assert embeddings.positions is not None
    table = weights.tensor("encoder.relative_attention_bias.weight", (BUCKETS, shape.heads))
    bias = distance_bias(table, embeddings.positions.shape[0], FURTHEST, both_ways=True)
    blocks = [
        post_norm.read_block(weights, f"encoder.layer.{index}", NAMES, shape, bias)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    ]
    head, task = roberta.read_head(fields, weights, shape, embeddings.tokens, ARCHITECTURES)
    special = tokens.special_tokens(vocabulary, eos=2, bos=0, pad=1)
    return Graph(encoder=post_norm.stack(embeddings, blocks), head=head, task=task, special=special)

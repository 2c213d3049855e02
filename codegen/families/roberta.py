"""RoBERTa (Liu et al., arXiv:1907.11692), as transformers' RobertaModel computes it; defaults are its RobertaConfig's.

Positions begin at pad_token_id + 1, so that many rows of their table are left out. In transformers a pad token has the
position pad_token_id wherever it stands; here one inside a text is a token like any other.
"""

from __future__ import annotations

import re

from ..graph import Graph
from . import post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields
from .weights import Weights

TITLE = "a RoBERTa"
ARCHITECTURES = ("RobertaModel", "RobertaForMaskedLM")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS
PREFIX = "roberta."

# The heads, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"(lm_head|pooler)\..*|embeddings\.position_ids", re.DOTALL)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return read_encoder(fields, tokens, weights, vocabulary=50265)


def read_encoder(fields: Fields, tokens: Fields, weights: Weights, vocabulary: int) -> Graph:
    """The same for a family whose config has another default of its vocabulary."""
    vocabulary = fields.integer("vocab_size", vocabulary, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    pad = fields.token("pad_token_id", 1, vocabulary)
    if pad is None:
        raise fields.fail("pad_token_id", "a token of the vocabulary, as positions begin behind it")
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, shape.width, shape.epsilon, first=pad + 1)
    blocks = (
        post_norm.read_block(weights, f"encoder.layer.{index}", post_norm.BERT, shape)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    )
    special = tokens.special_tokens(vocabulary, eos=2, bos=0, pad=1)
    return Graph(encoder=post_norm.stack(embeddings, blocks), special=special)

"""ELECTRA (Clark et al., arXiv:2003.10555), as transformers' ElectraModel computes it; defaults are those of its
ElectraConfig.

Where embeddings have another width than the blocks, a projection stands behind their norm.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..graph import Graph
from . import post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .weights import Weights

TITLE = "an ELECTRA"
ARCHITECTURES = ("ElectraModel", "ElectraForMaskedLM", "ElectraForPreTraining")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS | names("summary_activation summary_last_dropout summary_type summary_use_proj")
PREFIX = "electra."

# The heads, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(
    r"(discriminator_predictions|generator_predictions|generator_lm_head)\..*|embeddings\.position_ids", re.DOTALL
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30522, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields, width=256, heads=4, inner=1024)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    width = fields.integer("embedding_size", 128, MAX_WIDTH)
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, width, shape.epsilon)
    if width != shape.width:
        embeddings = replace(embeddings, projection=weights.linear("embeddings_project", shape.width, width))
    blocks = (
        post_norm.read_block(weights, f"encoder.layer.{index}", post_norm.BERT, shape)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    )
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    return Graph(encoder=post_norm.stack(embeddings, blocks), special=special)

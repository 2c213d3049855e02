"""DistilBERT (Sanh et al., arXiv:1910.01108), as transformers' DistilBertModel computes it; defaults are those of its
DistilBertConfig.

Tokens have no types, and norms have the epsilon 1e-12, which no field changes.
"""

from __future__ import annotations

import re

from ..graph import Graph, Head, Layer, Task, Tensor
from . import heads, post_norm
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import Read
from .weights import Weights

TITLE = "a DistilBERT"
ARCHITECTURES = heads.architectures("DistilBert")

# transformers' family-neutral names of three fields (DistilBertConfig.attribute_map).
ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}

OFF = post_norm.OFF
HARMLESS = names(
    "attention_dropout qa_dropout seq_classif_dropout tie_weights_ tie_word_embeddings",
    "sinusoidal_pos_embds",  # where a table of positions came from that is stored either way
)
PREFIX = "distilbert."

IGNORED = re.compile(r"embeddings\.position_ids")  # 0, 1, 2 ..., which old versions of transformers saved

NAMES = post_norm.Names(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30522, MAX_VOCABULARY)
    shape = post_norm.Shape(
        width=fields.integer("dim", 768, MAX_WIDTH),
        heads=fields.integer("n_heads", 12, MAX_HEADS),
        inner=fields.integer("hidden_dim", 3072, MAX_INNER),
        activation=fields.activation("activation", "gelu"),
        epsilon=1e-12,
    )
    if shape.width % shape.heads:
        raise fields.fail("n_heads", f"a divisor of dim, which is {shape.width}")
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, shape.width, shape.epsilon, typed=False)
    blocks = [
        post_norm.read_block(weights, f"transformer.layer.{index}", NAMES, shape)
        for index in range(fields.integer("n_layers", 6, MAX_LAYERS))
    ]
    head, task = _read_head(fields, weights, shape, embeddings.tokens)
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    return Graph(encoder=post_norm.stack(embeddings, blocks), head=head, task=task, special=special)


def _read_head(fields: Fields, weights: Weights, shape: post_norm.Shape, tokens: Tensor) -> tuple[Head | None, Task]:
    width = shape.width

    def masked() -> Read:
        norm = weights.layer_norm("vocab_layer_norm", width, shape.epsilon)
        layer = Layer(weights.linear("vocab_transform", width, width), shape.activation, norm)
        return heads.masked(fields, tokens, layer, weights, "vocab_projector.weight", "vocab_projector.bias")

    def dense() -> Layer:
        return Layer(weights.linear("pre_classifier", width, width), "relu")

    return heads.read_head(fields, heads.readers(ARCHITECTURES, fields, weights, width, masked, dense))

"""RoBERTa (Liu et al., arXiv:1907.11692), as transformers' RobertaModel computes it; defaults are its RobertaConfig's.

Positions begin at pad_token_id + 1, so that many rows of their table are left out. In transformers a pad token has the
position pad_token_id wherever it stands; here one inside a text is a token like any other.
"""

from __future__ import annotations

import re

from ..graph import Graph, Head, Layer, Task, Tensor
from . import heads, post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields
from .heads import Read
from .weights import Weights

TITLE = "a RoBERTa"
ARCHITECTURES = heads.architectures("Roberta")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS
PREFIX = "roberta."

# The pooler, which no head reads, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"pooler\..*|embeddings\.position_ids", re.DOTALL)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return read_roberta(fields, tokens, weights, ARCHITECTURES, vocabulary=50265)


def read_roberta(
    fields: Fields, tokens: Fields, weights: Weights, architectures: tuple[str, ...], vocabulary: int
) -> Graph:
    """The same for a family of other classes, and with another default of its vocabulary."""
    vocabulary = fields.integer("vocab_size", vocabulary, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    pad = fields.token("pad_token_id", 1, vocabulary)
    if pad is None:
        raise fields.fail("pad_token_id", "a token of the vocabulary, as positions begin behind it")
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, shape.width, shape.epsilon, first=pad + 1)
    blocks = [
        post_norm.read_block(weights, f"encoder.layer.{index}", post_norm.BERT, shape)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    ]
    head, task = read_head(fields, weights, shape, embeddings.tokens, architectures)
    special = tokens.special_tokens(vocabulary, eos=2, bos=0, pad=1)
    return Graph(encoder=post_norm.stack(embeddings, blocks), head=head, task=task, special=special)


def read_head(
    fields: Fields, weights: Weights, shape: post_norm.Shape, tokens: Tensor, architectures: tuple[str, ...]
) -> tuple[Head | None, Task]:
    """A head of RoBERTa's names, which MPNet has too."""
    width = shape.width

    def masked() -> Read:
        norm = weights.layer_norm("lm_head.layer_norm", width, shape.epsilon)
        layer = Layer(weights.linear("lm_head.dense", width, width), "gelu_erf", norm)
        return heads.masked(
            fields, tokens, layer, weights, "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias"
        )

    def dense() -> Layer:
        return Layer(weights.linear("classifier.dense", width, width), "tanh")

    return heads.read_head(
        fields, heads.readers(architectures, fields, weights, width, masked, dense, "classifier.out_proj")
    )

"""ELECTRA (Clark et al., arXiv:2003.10555), as transformers' ElectraModel computes it; defaults are those of its
ElectraConfig.

Where embeddings have another width than the blocks, a projection stands behind their norm. The head of an
ElectraForPreTraining gives one logit for each token, of having been replaced.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..graph import Graph, Head, Layer, Task, Tensor
from . import heads, post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import Read
from .weights import Weights

TITLE = "an ELECTRA"
CLASSES = heads.architectures("Electra")
ARCHITECTURES = (*CLASSES, "ElectraForPreTraining")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS | names("summary_activation summary_last_dropout summary_type summary_use_proj")
PREFIX = "electra."

IGNORED = re.compile(r"embeddings\.position_ids")  # 0, 1, 2 ..., which old versions of transformers saved


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30522, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields, width=256, heads=4, inner=1024)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    width = fields.integer("embedding_size", 128, MAX_WIDTH)
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, width, shape.epsilon)
    if width != shape.width:
        embeddings = replace(embeddings, projection=weights.linear("embeddings_project", shape.width, width))
    blocks = [
        post_norm.read_block(weights, f"encoder.layer.{index}", post_norm.BERT, shape)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    ]
    head, task = _read_head(fields, weights, shape, embeddings.tokens)
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    return Graph(encoder=post_norm.stack(embeddings, blocks), head=head, task=task, special=special)


def _read_head(fields: Fields, weights: Weights, shape: post_norm.Shape, tokens: Tensor) -> tuple[Head | None, Task]:
    width, narrow = shape.width, tokens.shape[1]

    def masked() -> Read:
        norm = weights.layer_norm("generator_predictions.LayerNorm", narrow, shape.epsilon)
        layer = Layer(weights.linear("generator_predictions.dense", narrow, width), "gelu_erf", norm)
        return heads.masked(fields, tokens, layer, weights, "generator_lm_head.weight", "generator_lm_head.bias")

    def replaced() -> Read:
        layer = Layer(weights.linear("discriminator_predictions.dense", width, width), shape.activation)
        return Head(weights.linear("discriminator_predictions.dense_prediction", 1, width), (layer,)), Task("")

    def dense() -> Layer:
        return Layer(weights.linear("classifier.dense", width, width), "gelu_erf")

    readers = heads.readers(CLASSES, fields, weights, width, masked, dense, "classifier.out_proj")
    return heads.read_head(fields, readers | {"ElectraForPreTraining": replaced})

"""ALBERT (Lan et al., arXiv:1909.11942), as transformers' AlbertModel computes it; defaults are those of its
AlbertConfig.

Layers share their weights: each runs the blocks of its group, and layers that follow each other are of one group. A
projection stands behind the norm of the embeddings. An AlbertForPreTraining is read as an AlbertForMaskedLM: whether
sentences are in order is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..graph import Graph, Head, Layer, Task, Tensor
from . import heads, post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import Read
from .weights import Weights

TITLE = "an ALBERT"
CLASSES = heads.architectures("Albert")
ARCHITECTURES = (*CLASSES, "AlbertForPreTraining")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS | names(
    "classifier_dropout_prob",
    "down_scale_factor gap_size layers_to_keep net_structure_type num_memory_blocks",  # which transformers never read
)
PREFIX = "albert."

# The pooler, which most heads do not read, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"(sop_classifier|pooler)\..*|embeddings\.position_ids", re.DOTALL)

NAMES = post_norm.Names(
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.dense",
    "attention.LayerNorm",
    "ffn",
    "ffn_output",
    "full_layer_layer_norm",
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30000, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields, width=4096, heads=64, inner=16384, activation="gelu_new")
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    width = fields.integer("embedding_size", 128, MAX_WIDTH)
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, width, shape.epsilon)
    projection = weights.linear("encoder.embedding_hidden_mapping_in", shape.width, width)
    layers = fields.integer("num_hidden_layers", 12, MAX_LAYERS)
    groups = fields.integer("num_hidden_groups", 1, MAX_LAYERS)
    inner = fields.integer("inner_group_num", 1, MAX_LAYERS // max(layers, groups))
    blocks = [
        [
            post_norm.read_block(weights, f"encoder.albert_layer_groups.{group}.albert_layers.{index}", NAMES, shape)
            for index in range(inner)
        ]
        for group in range(groups)
    ]
    run = (block for layer in range(layers) for block in blocks[int(layer / (layers / groups))])
    head, task = _read_head(fields, weights, shape, embeddings.tokens)
    special = tokens.special_tokens(vocabulary, eos=3, bos=2, pad=0)
    stack = post_norm.stack(replace(embeddings, projection=projection), run)
    return Graph(encoder=stack, head=head, task=task, special=special)


def _read_head(fields: Fields, weights: Weights, shape: post_norm.Shape, tokens: Tensor) -> tuple[Head | None, Task]:
    width, narrow = shape.width, tokens.shape[1]

    def masked() -> Read:
        norm = weights.layer_norm("predictions.LayerNorm", narrow, shape.epsilon)
        layer = Layer(weights.linear("predictions.dense", narrow, width), shape.activation, norm)
        return heads.masked(
            fields, tokens, layer, weights, "predictions.decoder.weight", "predictions.bias", "predictions.decoder.bias"
        )

    def pooler() -> Layer:
        return Layer(weights.linear("pooler", width, width), "tanh")

    readers = heads.readers(CLASSES, fields, weights, width, masked, pooler)
    return heads.read_head(fields, readers | {"AlbertForPreTraining": masked})

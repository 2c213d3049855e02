"""BERT (Devlin et al., arXiv:1810.04805), as transformers' classes compute it; defaults are those of its BertConfig.

A BertForPreTraining is read as a BertForMaskedLM: whether a sentence follows another is left out.
"""

from __future__ import annotations

import re

from ..graph import Embeddings, Graph, Head, Layer, Task
from . import heads, post_norm
from .fields import MAX_LAYERS, MAX_VOCABULARY, Fields, names
from .heads import Read
from .weights import Weights

TITLE = "a BERT"
CLASSES = heads.architectures("Bert")
ARCHITECTURES = (*CLASSES, "BertForPreTraining")
ALIASES: dict[str, str] = {}
OFF = post_norm.OFF
HARMLESS = post_norm.HARMLESS | names(  # of heads that multilingual checkpoints had
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type"
)
PREFIX = "bert."

# The pooler, which most heads do not read, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"(pooler|cls\.seq_relationship)\..*|embeddings\.position_ids", re.DOTALL)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    vocabulary = fields.integer("vocab_size", 30522, MAX_VOCABULARY)
    shape = post_norm.read_shape(fields)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    embeddings = post_norm.read_embeddings(fields, weights, vocabulary, shape.width, shape.epsilon)
    blocks = [
        post_norm.read_block(weights, f"encoder.layer.{index}", post_norm.BERT, shape)
        for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS))
    ]
    head, task = _read_head(fields, weights, shape, embeddings)
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    return Graph(encoder=post_norm.stack(embeddings, blocks), head=head, task=task, special=special)


def _read_head(
    fields: Fields, weights: Weights, shape: post_norm.Shape, embeddings: Embeddings
) -> tuple[Head | None, Task]:
    width = shape.width

    def masked() -> Read:
        name = "cls.predictions"
        dense = weights.linear(f"{name}.transform.dense", width, width)
        norm = weights.layer_norm(f"{name}.transform.LayerNorm", width, shape.epsilon)
        layer, table = Layer(dense, shape.activation, norm), f"{name}.decoder.weight"
        return heads.masked(fields, embeddings.tokens, layer, weights, table, f"{name}.bias", f"{name}.decoder.bias")

    def pooler() -> Layer:
        return Layer(weights.linear("pooler.dense", width, width), "tanh")

    readers = heads.readers(CLASSES, fields, weights, width, masked, pooler)
    return heads.read_head(fields, readers | {"BertForPreTraining": masked})

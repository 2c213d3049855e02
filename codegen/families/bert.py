"""BERT (Devlin et al., arXiv:1810.04805), as transformers' classes compute it; defaults are those of its BertConfig.

A BertForPreTraining is read as a BertForMaskedLM: whether a sentence follows another is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Layer, Linear, Mlp, Stack, Sublayer, Task
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_TYPES, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import read_head, read_labels
from .weights import Weights

TITLE = "a BERT"
ARCHITECTURES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
ALIASES: dict[str, str] = {}
OFF = names("is_decoder")
HARMLESS = names(
    "attention_probs_dropout_prob classifier_dropout hidden_dropout_prob",
    # Of the heads that multilingual checkpoints had.
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type",
    "tie_word_embeddings",
)
PREFIX = "bert."

# The pooler, which most heads do not read, and the positions 0, 1, 2 ... that old versions of transformers saved.
IGNORED = re.compile(r"(pooler|cls\.seq_relationship)\..*|embeddings\.position_ids", re.DOTALL)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 768, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 30522, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 512, MAX_POSITIONS)
    types = fields.integer("type_vocab_size", 2, MAX_TYPES)
    epsilon = fields.epsilon("layer_norm_eps", 1e-12)
    fields.choice("position_embedding_type", "absolute", {"absolute": None})
    embeddings = Embeddings(
        tokens=weights.tensor("embeddings.word_embeddings.weight", (vocabulary, width)),
        positions=weights.tensor("embeddings.position_embeddings.weight", (limit, width)),
        types=weights.tensor("embeddings.token_type_embeddings.weight", (types, width)),
        norm=weights.layer_norm("embeddings.LayerNorm", width, epsilon),
    )
    blocks = tuple(_read_blocks(fields, weights, width, epsilon))
    head, task = _read_head(fields, weights, embeddings, epsilon)
    special = tokens.special_tokens(vocabulary, eos=None, bos=None, pad=0)
    return Graph(encoder=Stack(embeddings, blocks, None, limit), head=head, task=task, special=special)


def _read_head(fields: Fields, weights: Weights, embeddings: Embeddings, epsilon: float) -> tuple[Head | None, Task]:
    vocabulary, width = embeddings.tokens.shape

    def masked() -> tuple[Head, Task]:
        name = "cls.predictions"
        dense = weights.linear(f"{name}.transform.dense", width, width)
        norm = weights.layer_norm(f"{name}.transform.LayerNorm", width, epsilon)
        tied = fields.boolean("tie_word_embeddings", True)
        table = weights.head(f"{name}.decoder.weight", embeddings.tokens, tied)
        bias = weights.copy(f"{name}.decoder.bias", weights.tensor(f"{name}.bias", (vocabulary,)))
        layer = Layer(dense, fields.activation("hidden_act", "gelu"), norm)
        return Head(Linear(table, bias), (layer,)), Task("fill-mask")

    def sequence() -> tuple[Head, Task]:
        labels = read_labels(fields)
        pooler = Layer(weights.linear("pooler.dense", width, width), "tanh")
        classifier = weights.linear("classifier", len(labels.names), width)
        return Head(classifier, (pooler,), ("first",)), labels.task("text-classification")

    def token() -> tuple[Head, Task]:
        labels = read_labels(fields)
        return Head(weights.linear("classifier", len(labels.names), width)), labels.task("token-classification")

    def answer() -> tuple[Head, Task]:
        return Head(weights.linear("qa_outputs", 2, width)), Task("question-answering", ("start", "end"))

    return read_head(fields, dict(zip(ARCHITECTURES, (None, masked, masked, sequence, token, answer), strict=True)))


def _read_blocks(fields: Fields, weights: Weights, width: int, epsilon: float) -> Iterator[Block]:
    heads = fields.integer("num_attention_heads", 12, MAX_HEADS)
    if width % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size, which is {width}")
    inner = fields.integer("intermediate_size", 3072, MAX_INNER)
    activation = fields.activation("hidden_act", "gelu")
    for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS)):
        layer = f"encoder.layer.{index}"

        def linear(name: str, outputs: int, inputs: int, layer: str = layer) -> Linear:
            return weights.linear(f"{layer}.{name}", outputs, inputs)

        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            query=linear("attention.self.query", width, width),
            key=linear("attention.self.key", width, width),
            value=linear("attention.self.value", width, width),
            out=linear("attention.output.dense", width, width),
            scale=1 / math.sqrt(width // heads),
            sees="all",
        )
        norm_1 = weights.layer_norm(f"{layer}.attention.output.LayerNorm", width, epsilon)
        mlp = Mlp(linear("intermediate.dense", inner, width), linear("output.dense", width, inner), activation)
        norm_2 = weights.layer_norm(f"{layer}.output.LayerNorm", width, epsilon)
        yield Block((Sublayer(attention, after=norm_1), Sublayer(mlp, after=norm_2)))

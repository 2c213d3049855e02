"""ModernBERT (Warner et al., arXiv:2412.13663), as transformers' classes compute it.

Defaults are those of its ModernBertConfig. By default every third block sees the whole text and the others a window of
it, and the two kinds turn their heads by frequencies of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Layer, Linear, Mlp, Norm, Stack, Sublayer, Task
from . import heads
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .heads import Read
from .rotary import MAX_VALUE, Turning, read_rotary_by_kind
from .weights import Weights
from .windows import GLOBAL, LOCAL, read_layer_types

TITLE = "a ModernBERT"
ARCHITECTURES = heads.architectures("ModernBert")
ALIASES: dict[str, str] = {}
OFF = names("rope_scaling")
HARMLESS = names(
    "attention_dropout classifier_dropout deterministic_flash_attn embedding_dropout initializer_cutoff_factor",
    "mlp_dropout reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction",
    # Fields of BERT, which its checkpoints have and its layers do not read.
    "layer_norm_eps position_embedding_type",
    # Fields of the heads, and what layer_types says otherwise.
    "classifier_activation classifier_bias classifier_pooling decoder_bias global_attn_every_n_layers",
    "tie_word_embeddings",
)
PREFIX = "model."
IGNORED = re.compile("(?!)")  # nothing


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 768, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 50368, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 8192, MAX_POSITIONS)
    epsilon, norm_bias = fields.epsilon("norm_eps", 1e-5), fields.boolean("norm_bias", False)

    def norm(name: str) -> Norm:
        return weights.layer_norm(name, width, epsilon, norm_bias)

    table = weights.tensor("embeddings.tok_embeddings.weight", (vocabulary, width))
    embeddings = Embeddings(table, None, norm=norm("embeddings.norm"))
    blocks = []
    for index, (attention, mlp) in enumerate(_read_bodies(fields, weights, width, limit)):
        before = norm(f"layers.{index}.attn_norm") if index else None
        blocks.append(Block((Sublayer(attention, before), Sublayer(mlp, norm(f"layers.{index}.mlp_norm")))))
    stack = Stack(embeddings, tuple(blocks), norm("final_norm"), limit)

    def layer() -> Layer:
        dense = weights.linear("head.dense", width, width, fields.boolean("classifier_bias", False))
        return Layer(dense, fields.activation("classifier_activation", "gelu"), norm("head.norm"))

    def masked() -> Read:
        matrix = weights.head("decoder.weight", table, fields.boolean("tie_word_embeddings", True))
        bias = weights.tensor("decoder.bias", (vocabulary,)) if fields.boolean("decoder_bias", True) else None
        return Head(Linear(matrix, bias), (layer(),)), Task("fill-mask")

    def sequence() -> Read:
        pooling = fields.choice("classifier_pooling", "cls", {"cls": "first", "mean": "mean"})
        return heads.sequence(fields, weights, "classifier", layer(), pooling)

    readers = {
        "ModernBertModel": None,
        "ModernBertForMaskedLM": masked,
        "ModernBertForSequenceClassification": sequence,
        "ModernBertForTokenClassification": lambda: heads.token(fields, weights, "classifier", width, layer()),
        "ModernBertForQuestionAnswering": lambda: heads.answers(weights, "classifier", width, layer()),
    }
    head, task = heads.read_head(fields, readers)
    special = tokens.special_tokens(vocabulary, eos=50282, bos=50281, pad=50283)
    return Graph(encoder=stack, head=head, task=task, special=special)


def _read_bodies(fields: Fields, weights: Weights, width: int, limit: int) -> Iterator[tuple[Attention, Mlp]]:
    """Of each block."""
    count = fields.integer("num_attention_heads", 12, MAX_HEADS)
    head_dim = width // count
    if width % (2 * count):
        raise fields.fail("num_attention_heads", f"a divisor of half of hidden_size, which is {width}")
    inner = fields.integer("intermediate_size", 1152, MAX_INNER)
    activation = fields.activation("hidden_activation", "gelu")
    attention_bias, mlp_bias = fields.boolean("attention_bias", False), fields.boolean("mlp_bias", False)
    window = fields.integer("local_attention", 128, MAX_POSITIONS)
    turning = _read_rotary(fields, head_dim, limit)
    for index, kind in enumerate(_read_kinds(fields)):
        query, key, value = weights.fused(f"layers.{index}.attn.Wqkv", 3, width, width, attention_bias)
        attention = Attention(
            heads=count,
            kv_heads=count,
            head_dim=head_dim,
            query=query,
            key=key,
            value=value,
            out=weights.linear(f"layers.{index}.attn.Wo", width, width, attention_bias),
            scale=turning[kind].gain / math.sqrt(head_dim),
            rotary=turning[kind].rotary,
            sees="all",
            window=window if kind == LOCAL else None,
        )
        gate, up = weights.fused(f"layers.{index}.mlp.Wi", 2, inner, width, mlp_bias)
        down = weights.linear(f"layers.{index}.mlp.Wo", width, inner, mlp_bias)
        yield attention, Mlp(up, down, activation, gate)


def _read_kinds(fields: Fields) -> list[str]:
    """What each block attends to: `layer_types` (transformers 5) or `global_attn_every_n_layers`."""
    count = fields.integer("num_hidden_layers", 22, MAX_LAYERS)
    kinds = read_layer_types(fields, count)
    if kinds is None:
        every = fields.integer("global_attn_every_n_layers", 3, MAX_LAYERS)
        return [LOCAL if index % every else GLOBAL for index in range(count)]
    return kinds


def _read_rotary(fields: Fields, head_dim: int, limit: int) -> dict[str, Turning]:
    """By the kind: `rope_parameters` (transformers 5), or `global_rope_theta` and `local_rope_theta`."""
    theta = fields.number("global_rope_theta", 160000.0, 1.0, MAX_VALUE)
    thetas = {GLOBAL: theta, LOCAL: theta}
    if fields.get("local_rope_theta", 10000.0) is not None:
        thetas[LOCAL] = fields.number("local_rope_theta", 10000.0, 1.0, MAX_VALUE)
    return read_rotary_by_kind(fields, head_dim, thetas, limit, TITLE)

"""OPT (Zhang et al., arXiv:2205.01068) in all its sizes, as transformers' OPTForCausalLM computes it; defaults are
those of its OPTConfig.

OPT-350M has norms behind its sublayers, and embeddings that are narrower than its stream: the projections in front and
behind go into the table of tokens and into the head, which are two matrices then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import (
    Attention,
    Block,
    Embeddings,
    Graph,
    Head,
    Linear,
    Mlp,
    Norm,
    Stack,
    Sublayer,
    part,
    product,
    transpose,
)
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .weights import Weights

TITLE = "an OPT"
ARCHITECTURES = ("OPTForCausalLM", "OPTModel")
ALIASES: dict[str, str] = {}
OFF = names("_remove_final_layer_norm")
HARMLESS = names("activation_dropout attention_dropout init_std layerdrop")
PREFIX = "model."
IGNORED = re.compile("(?!)")  # nothing

FIRST = 2  # row of the table of positions
EPSILON = 1e-5  # torch's default


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 768, MAX_WIDTH)
    narrow = fields.integer("word_embed_proj_dim", width, MAX_WIDTH, null=True)
    vocabulary = fields.integer("vocab_size", 50272, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 2048, MAX_POSITIONS)
    table = weights.tensor("decoder.embed_tokens.weight", (vocabulary, narrow))
    head = weights.head("lm_head.weight", table, fields.boolean("tie_word_embeddings", True))
    if narrow != width:
        table = product(table, transpose(weights.tensor("decoder.project_in.weight", (width, narrow))))
        head = product(head, weights.tensor("decoder.project_out.weight", (narrow, width)))
    positions = weights.tensor("decoder.embed_positions.weight", (FIRST + limit, width))
    before = fields.boolean("do_layer_norm_before", True)
    stack = Stack(
        Embeddings(table, part(positions, FIRST, FIRST + limit)),
        tuple(_read_blocks(fields, weights, width, before)),
        _read_norm(fields, weights, "decoder.final_layer_norm", width) if before else None,
        limit,
    )
    special = tokens.special_tokens(vocabulary, eos=2, bos=2, pad=1)
    return Graph(decoder=stack, head=Head(Linear(head, None)), special=special)


def _read_blocks(fields: Fields, weights: Weights, width: int, before: bool) -> Iterator[Block]:
    heads = fields.integer("num_attention_heads", 12, MAX_HEADS)
    if width % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size, which is {width}")
    inner = fields.integer("ffn_dim", 3072, MAX_INNER)
    activation = fields.activation("activation_function", "relu")
    bias = fields.boolean("enable_bias", True)
    for index in range(fields.integer("num_hidden_layers", 12, MAX_LAYERS)):
        layer = f"decoder.layers.{index}"
        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            query=weights.linear(f"{layer}.self_attn.q_proj", width, width, bias),
            key=weights.linear(f"{layer}.self_attn.k_proj", width, width, bias),
            value=weights.linear(f"{layer}.self_attn.v_proj", width, width, bias),
            out=weights.linear(f"{layer}.self_attn.out_proj", width, width, bias),
            scale=1 / math.sqrt(width // heads),
        )
        mlp = Mlp(
            up=weights.linear(f"{layer}.fc1", inner, width, bias),
            down=weights.linear(f"{layer}.fc2", width, inner, bias),
            activation=activation,
        )
        norm_1 = _read_norm(fields, weights, f"{layer}.self_attn_layer_norm", width)
        norm_2 = _read_norm(fields, weights, f"{layer}.final_layer_norm", width)
        if before:
            yield Block((Sublayer(attention, before=norm_1), Sublayer(mlp, before=norm_2)))
        else:
            yield Block((Sublayer(attention, after=norm_1), Sublayer(mlp, after=norm_2)))


def _read_norm(fields: Fields, weights: Weights, name: str, width: int) -> Norm:
    if fields.boolean("layer_norm_elementwise_affine", True):
        return weights.layer_norm(name, width, EPSILON)
    return Norm("layer", EPSILON, None, None)

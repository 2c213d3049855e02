"""Llama (Touvron et al., arXiv:2302.13971) in all its sizes, as transformers' LlamaForCausalLM computes it; defaults
are those of its LlamaConfig. SmolLM2 and TinyLlama are Llamas."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .rotary import read_rotary
from .weights import Weights

TITLE = "a Llama"
ARCHITECTURES = ("LlamaForCausalLM", "LlamaModel")
ALIASES: dict[str, str] = {}
OFF = names("rope_interleaved")
HARMLESS = names("attention_dropout is_llama_config pretraining_tp transformers.js_config")
PREFIX = "model."
IGNORED = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # of old versions; the config says it


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 4096, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 32000, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 2048, MAX_POSITIONS)
    epsilon = fields.epsilon("rms_norm_eps", 1e-6)
    table = weights.tensor("embed_tokens.weight", (vocabulary, width))
    blocks = tuple(_read_blocks(fields, weights, width, epsilon))
    norm = weights.rms_norm("norm", width, epsilon)
    head = weights.head("lm_head.weight", table, fields.boolean("tie_word_embeddings", False))
    return Graph(
        decoder=Stack(Embeddings(table, None), blocks, norm, limit),
        head=Head(Linear(head, None)),
        special=tokens.special_tokens(vocabulary, eos=2, bos=1),
    )


def _read_blocks(fields: Fields, weights: Weights, width: int, epsilon: float) -> Iterator[Block]:
    heads = fields.integer("num_attention_heads", 32, MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", heads, MAX_HEADS, null=True)
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    head_dim = fields.integer("head_dim", max(1, width // heads), MAX_WIDTH, null=True)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number")
    inner = fields.integer("intermediate_size", 11008, MAX_INNER)
    activation = fields.activation("hidden_act", "silu")
    attention_bias, mlp_bias = fields.boolean("attention_bias", False), fields.boolean("mlp_bias", False)
    rotary = read_rotary(fields, head_dim, 10000.0)
    for index in range(fields.integer("num_hidden_layers", 32, MAX_LAYERS)):

        def linear(name: str, outputs: int, inputs: int, bias: bool, layer: str = f"layers.{index}") -> Linear:
            return weights.linear(f"{layer}.{name}", outputs, inputs, bias)

        attention = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query=linear("self_attn.q_proj", heads * head_dim, width, attention_bias),
            key=linear("self_attn.k_proj", kv_heads * head_dim, width, attention_bias),
            value=linear("self_attn.v_proj", kv_heads * head_dim, width, attention_bias),
            out=linear("self_attn.o_proj", width, heads * head_dim, attention_bias),
            scale=1 / math.sqrt(head_dim),
            rotary=rotary,
        )
        mlp = Mlp(
            up=linear("mlp.up_proj", inner, width, mlp_bias),
            down=linear("mlp.down_proj", width, inner, mlp_bias),
            activation=activation,
            gate=linear("mlp.gate_proj", inner, width, mlp_bias),
        )
        yield Block(
            (
                Sublayer(attention, before=weights.rms_norm(f"layers.{index}.input_layernorm", width, epsilon)),
                Sublayer(mlp, before=weights.rms_norm(f"layers.{index}.post_attention_layernorm", width, epsilon)),
            )
        )

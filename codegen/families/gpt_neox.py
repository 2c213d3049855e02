"""GPT-NeoX (Black et al., arXiv:2204.06745) and Pythia (Biderman et al., arXiv:2304.01373), as transformers'
GPTNeoXForCausalLM computes them: by default attention and MLP read the same stream, and a quarter of each head turns by
positions; defaults are those of its GPTNeoXConfig."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .rotary import read_rotary
from .weights import Weights

TITLE = "a GPT-NeoX"
ARCHITECTURES = ("GPTNeoXForCausalLM", "GPTNeoXModel")
ALIASES = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
OFF = names()
HARMLESS = names("attention_dropout attention_probs_dropout_prob classifier_dropout hidden_dropout hidden_dropout_prob")
PREFIX = "gpt_neox."
IGNORED = re.compile(
    r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
)  # the mask, and of old versions


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 6144, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 50432, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 2048, MAX_POSITIONS)
    epsilon = fields.epsilon("layer_norm_eps", 1e-5)
    table = weights.tensor("embed_in.weight", (vocabulary, width))
    blocks = tuple(_read_blocks(fields, weights, width, limit, epsilon))
    norm = weights.layer_norm("final_layer_norm", width, epsilon)
    head = weights.head("embed_out.weight", table, fields.boolean("tie_word_embeddings", False), "lm_head.weight")
    special = tokens.special_tokens(vocabulary, eos=2, bos=0)
    stack = Stack(Embeddings(table, None), blocks, norm, limit)
    return Graph(decoder=stack, head=Head(Linear(head, None)), special=special)


def _read_blocks(fields: Fields, weights: Weights, width: int, limit: int, epsilon: float) -> Iterator[Block]:
    heads = fields.integer("num_attention_heads", 64, MAX_HEADS)
    if width % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size, which is {width}")
    head_dim = width // heads
    inner = fields.integer("intermediate_size", 24576, MAX_INNER)
    activation = fields.activation("hidden_act", "gelu")
    bias = fields.boolean("attention_bias", True)
    parallel = fields.boolean("use_parallel_residual", True)
    turning = read_rotary(fields, head_dim, 10000.0, limit, share=0.25)
    for index in range(fields.integer("num_hidden_layers", 44, MAX_LAYERS)):
        layer = f"layers.{index}"
        fused = f"{layer}.attention.query_key_value"
        query, key, value = weights.by_heads(fused, 3, heads, head_dim, width, bias)
        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            query=turning.reorder(query),
            key=turning.reorder(key),
            value=value,
            out=weights.linear(f"{layer}.attention.dense", width, width, bias),
            scale=turning.gain / math.sqrt(head_dim),
            rotary=turning.rotary,
        )
        mlp = Mlp(
            up=weights.linear(f"{layer}.mlp.dense_h_to_4h", inner, width),
            down=weights.linear(f"{layer}.mlp.dense_4h_to_h", width, inner),
            activation=activation,
        )
        norm_1 = weights.layer_norm(f"{layer}.input_layernorm", width, epsilon)
        norm_2 = weights.layer_norm(f"{layer}.post_attention_layernorm", width, epsilon)
        yield Block((Sublayer(attention, before=norm_1), Sublayer(mlp, before=norm_2)), parallel)

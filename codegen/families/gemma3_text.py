"""Gemma 3 of texts (Gemma Team, arXiv:2503.19786), as transformers' Gemma3ForCausalLM computes it in float32: a Llama
with norms in front of each sublayer, behind it and on queries and keys, of which five blocks in six see a window;
defaults are those of its Gemma3TextConfig."""

from __future__ import annotations

import numpy as np

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH, Fields, names
from .llama import Biases, Defaults, Factors, Kind, Norms, Variant, read_head_dim, read_llama
from .rotary import MAX_VALUE, read_rotary_by_kind
from .weights import Weights
from .windows import GLOBAL, LOCAL, read_layer_types, read_window, read_windows

TITLE = "a Gemma 3"
ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3TextModel")
ALIASES: dict[str, str] = {}
OFF = names("attn_logit_softcapping final_logit_softcapping use_bidirectional_attention")
HARMLESS = names(
    "attention_dropout cache_implementation",
    "_sliding_window_pattern sliding_window_pattern",  # where layer_types says it
)
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = Defaults(
    vocabulary=262208,
    width=2304,
    inner=9216,
    heads=8,
    kv_heads=4,
    head_dim=256,
    positions=131072,
    tied=True,
    eos=1,
    bos=2,
    pad=0,
)
NORMS = Norms(
    before=("input_layernorm", "pre_feedforward_layernorm"),
    branch=("post_attention_layernorm", "post_feedforward_layernorm"),
    heads=True,
    offset=1.0,
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", DEFAULTS.width, MAX_WIDTH)
    bias = fields.boolean("attention_bias", False)
    factors = Factors(
        embeddings=_embedding_scale(width),
        scores=fields.number("query_pre_attn_scalar", 256.0, 1e-6, 1e6) ** -0.5,
    )
    variant = Variant(
        _read_kinds(fields),
        Biases(projections=bias, out=bias),
        DEFAULTS,
        factors,
        NORMS,
        ("hidden_activation", "gelu_pytorch_tanh"),
    )
    return read_llama(fields, tokens, weights, variant)


def _embedding_scale(width: int) -> float:
    """sqrt(width) in float32, whatever the type in which the checkpoint stores its weights.

    transformers rounds it to the type in which it computes: a checkpoint of bfloat16 that it loads in float32 gets this
    one, and in bfloat16 34 in place of 33.94 for the 1B model (Gemma3TextScaledWordEmbedding).
    """
    return float(np.sqrt(np.float32(width)))


def _read_kinds(fields: Fields) -> list[Kind]:
    """What tells the blocks from each other: windows, and how positions turn heads."""
    layers = fields.integer("num_hidden_layers", 26, MAX_LAYERS)
    types = read_layer_types(fields, layers)
    if types is None:
        every = fields.integer("sliding_window_pattern", 6, MAX_LAYERS)
        types = [LOCAL if (index + 1) % every else GLOBAL for index in range(layers)]
    windows = read_windows(fields, read_window(fields, 4096), types)
    thetas = {
        GLOBAL: fields.number("rope_theta", 1000000.0, 1.0, MAX_VALUE),
        LOCAL: fields.number("rope_local_base_freq", 10000.0, 1.0, MAX_VALUE),
    }
    head_dim = read_head_dim(fields, 256)
    limit = fields.integer("max_position_embeddings", DEFAULTS.positions, MAX_POSITIONS)
    turnings = read_rotary_by_kind(fields, head_dim, thetas, limit, TITLE, scaled=GLOBAL)
    return [Kind(window, turning=turnings[each]) for window, each in zip(windows, types, strict=True)]

"""Qwen 3 (Yang et al., arXiv:2505.09388) without experts, as transformers' Qwen3ForCausalLM computes it: a Llama with
norms of each head's queries and keys, of which some blocks may see a window; defaults are those of its Qwen3Config."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph
from . import llama, qwen2
from .fields import Fields, names
from .llama import Biases, Norms, Variant, read_llama
from .qwen2 import read_kinds
from .weights import Weights

TITLE = "a Qwen 3"
ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen3Model")
ALIASES: dict[str, str] = {}
OFF = names()
HARMLESS = qwen2.HARMLESS
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = replace(qwen2.DEFAULTS, head_dim=128)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    bias = fields.boolean("attention_bias", False)
    variant = Variant(read_kinds(fields), Biases(projections=bias, out=bias), DEFAULTS, norms=Norms(heads=True))
    return read_llama(fields, tokens, weights, variant)

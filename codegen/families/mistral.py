"""Mistral (Jiang et al., arXiv:2310.06825), as transformers' MistralForCausalLM computes it: a Llama whose blocks may
see a window of the text; defaults are those of its MistralConfig."""

from __future__ import annotations

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, Fields, names
from .llama import Biases, Defaults, Kind, Variant, read_llama
from .weights import Weights
from .windows import read_window

TITLE = "a Mistral"
ARCHITECTURES = ("MistralForCausalLM", "MistralModel")
ALIASES: dict[str, str] = {}
OFF = names()
HARMLESS = names("attention_dropout")
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = Defaults(inner=14336, kv_heads=8, positions=131072)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    kind = Kind(window=read_window(fields, 4096))
    kinds = [kind] * fields.integer("num_hidden_layers", 32, MAX_LAYERS)
    return read_llama(fields, tokens, weights, Variant(kinds, Biases(), DEFAULTS))

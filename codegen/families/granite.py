"""Granite 3, as transformers' GraniteForCausalLM computes it: a Llama with four constants (muP; Yang et al.,
arXiv:2203.03466), which go into the weights; defaults are those of its GraniteConfig."""

from __future__ import annotations

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, Fields, names
from .llama import Factors, Kind, Variant, read_biases, read_llama
from .weights import Weights

TITLE = "a Granite"
ARCHITECTURES = ("GraniteForCausalLM", "GraniteModel")
ALIASES: dict[str, str] = {}
OFF = names()
HARMLESS = names("attention_dropout")
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

LEAST, MOST = 1e-6, 1e6  # of a constant


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    kinds = [Kind()] * fields.integer("num_hidden_layers", 32, MAX_LAYERS)
    factors = Factors(
        embeddings=fields.number("embedding_multiplier", 1.0, LEAST, MOST),
        scores=fields.number("attention_multiplier", 1.0, LEAST, MOST),
        branches=fields.number("residual_multiplier", 1.0, LEAST, MOST),
        logits=1 / fields.number("logits_scaling", 1.0, LEAST, MOST),
    )
    return read_llama(fields, tokens, weights, Variant(kinds, read_biases(fields), factors=factors))

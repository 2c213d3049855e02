"""OLMo 2 (Team OLMo, arXiv:2501.00656), as transformers' Olmo2ForCausalLM computes it: a Llama with norms of what each
sublayer adds instead of those in front, with one norm of all queries of a position and one of all its keys; defaults
are those of its Olmo2Config."""

from __future__ import annotations

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, Fields, names
from .llama import Biases, Defaults, Kind, Norms, Variant, read_llama
from .weights import Weights

TITLE = "an OLMo 2"
ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo2Model")
ALIASES: dict[str, str] = {}
OFF = names()
HARMLESS = names("attention_dropout")
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = Defaults(vocabulary=50304, eos=50279, bos=None, pad=1, epsilon=1e-5)
NORMS = Norms(before=None, branch=("post_attention_layernorm", "post_feedforward_layernorm"), heads=True, whole=True)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    kinds = [Kind()] * fields.integer("num_hidden_layers", 32, MAX_LAYERS)
    bias = fields.boolean("attention_bias", False)
    return read_llama(fields, tokens, weights, Variant(kinds, Biases(bias, bias), DEFAULTS, norms=NORMS))

"""Qwen 2 and 2.5 (Yang et al., arXiv:2407.10671), as transformers' Qwen2ForCausalLM computes them: Llamas with a bias
of queries, keys and values, of which some blocks may see a window; defaults are those of its Qwen2Config."""

from __future__ import annotations

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, Fields, names
from .llama import Biases, Defaults, Kind, Variant, read_llama
from .weights import Weights
from .windows import GLOBAL, LOCAL, read_layer_types, read_window, read_windows

TITLE = "a Qwen 2"
ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen2Model")
ALIASES: dict[str, str] = {}
OFF = names("use_mrope")
HARMLESS = names("attention_dropout max_window_layers sliding_window")  # where no block sees a window
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = Defaults(vocabulary=151936, inner=22016, kv_heads=32, positions=32768, eos=None, bos=None)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    return read_llama(fields, tokens, weights, Variant(read_kinds(fields), Biases(projections=True), DEFAULTS))


def read_kinds(fields: Fields) -> list[Kind]:
    """What tells the blocks from each other."""
    layers = fields.integer("num_hidden_layers", 32, MAX_LAYERS)
    window = read_window(fields, 4096) if fields.boolean("use_sliding_window", False) else None
    types = read_layer_types(fields, layers)
    if types is None:
        first = layers if window is None else _read_first(fields)
        types = [GLOBAL if index < first else LOCAL for index in range(layers)]
    return [Kind(window=each) for each in read_windows(fields, window, types)]


def _read_first(fields: Fields) -> int:
    """The first block that sees a window."""
    value = fields.get("max_window_layers", 28)
    return 0 if value == 0 and value is not False else fields.integer("max_window_layers", 28, MAX_LAYERS)

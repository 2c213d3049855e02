"""SmolLM3, as transformers' SmolLM3ForCausalLM computes it: a Llama of which by default every fourth block knows no
positions (NoPE; Yang et al., arXiv:2501.18795); defaults are those of its SmolLM3Config."""

from __future__ import annotations

from ..graph import Graph
from . import llama
from .fields import MAX_LAYERS, Fields, names
from .llama import Defaults, Kind, Variant, read_biases, read_llama
from .weights import Weights
from .windows import GLOBAL, LOCAL, read_layer_types, read_window, read_windows

TITLE = "a SmolLM3"
ARCHITECTURES = ("SmolLM3ForCausalLM", "SmolLM3Model")
ALIASES: dict[str, str] = {}
OFF = names()
HARMLESS = names(
    "attention_dropout max_window_layers pretraining_tp transformers.js_config",
    "no_rope_layer_interval",  # where no_rope_layers says it
    "sliding_window",  # where no block sees a window
)
PREFIX = llama.PREFIX
IGNORED = llama.IGNORED

DEFAULTS = Defaults(
    vocabulary=128256,
    width=2048,
    heads=16,
    kv_heads=4,
    positions=32768,
    theta=2000000.0,
    tied=True,
    eos=128001,
    bos=128000,
    pad=128004,
)


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    turned = _read_turned(fields, fields.integer("num_hidden_layers", 36, MAX_LAYERS))
    window = read_window(fields, None) if fields.boolean("use_sliding_window", False) else None
    types = read_layer_types(fields, len(turned))
    if types is None:  # the blocks without positions see the window
        types = [GLOBAL if each or window is None else LOCAL for each in turned]
    windows = read_windows(fields, window, types)
    kinds = [Kind(*each) for each in zip(windows, turned, strict=True)]
    return read_llama(fields, tokens, weights, Variant(kinds, read_biases(fields), DEFAULTS))


def _read_turned(fields: Fields, layers: int) -> list[bool]:
    """Whether each block knows positions: `no_rope_layers` has a 1 where it does."""
    given = fields.get("no_rope_layers")
    if given is None:
        interval = fields.integer("no_rope_layer_interval", 4, MAX_LAYERS)
        return [(index + 1) % interval != 0 for index in range(layers)]
    if not isinstance(given, list) or len(given) < layers or not all(each in (0, 1) for each in given):
        raise fields.fail("no_rope_layers", f"a list with 0 or 1 for each of {layers} layers")
    return [bool(each) for each in given[:layers]]

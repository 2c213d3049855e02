"""GPT-Neo (Black et al., 2021) and TinyStories (Eldan and Li, arXiv:2305.07759), as transformers' GPTNeoForCausalLM
computes them; defaults are those of its GPTNeoConfig. By default every other block sees a window of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .weights import Weights

TITLE = "a GPT-Neo"
ARCHITECTURES = ("GPTNeoForCausalLM", "GPTNeoModel")

# transformers' family-neutral names of two fields (GPTNeoConfig.attribute_map).
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

OFF = names()
HARMLESS = names(
    "attention_dropout classifier_dropout embed_dropout resid_dropout summary_activation summary_first_dropout",
    "summary_proj_to_labels summary_type summary_use_proj",
)
PREFIX = "transformer."
IGNORED = re.compile(r"h\.\d+\.attn\.attention\.(bias|masked_bias)")  # the mask, which old versions saved

GLOBAL, LOCAL = "global", "local"


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("hidden_size", 2048, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 50257, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", 2048, MAX_POSITIONS)
    epsilon = fields.epsilon("layer_norm_epsilon", 1e-5)
    embeddings = Embeddings(
        tokens=weights.tensor("wte.weight", (vocabulary, width)),
        positions=weights.tensor("wpe.weight", (limit, width)),
    )
    blocks = tuple(_read_blocks(fields, weights, width, limit, epsilon))
    norm = weights.layer_norm("ln_f", width, epsilon)
    head = weights.head("lm_head.weight", embeddings.tokens, fields.boolean("tie_word_embeddings", True))
    special = tokens.special_tokens(vocabulary, eos=50256, bos=50256)
    return Graph(decoder=Stack(embeddings, blocks, norm, limit), head=Head(Linear(head, None)), special=special)


def _read_blocks(fields: Fields, weights: Weights, width: int, limit: int, epsilon: float) -> Iterator[Block]:
    heads = fields.integer("num_heads", 16, MAX_HEADS)
    if width % heads:
        raise fields.fail("num_heads", f"a divisor of hidden_size, which is {width}")
    inner = fields.integer("intermediate_size", 4 * width, MAX_INNER, null=True)
    activation = fields.activation("activation_function", "gelu_new")
    window = fields.integer("window_size", 256, MAX_POSITIONS)
    for index, kind in enumerate(_read_kinds(fields)):
        attn = f"h.{index}.attn.attention"
        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            query=weights.linear(f"{attn}.q_proj", width, width, bias=False),
            key=weights.linear(f"{attn}.k_proj", width, width, bias=False),
            value=weights.linear(f"{attn}.v_proj", width, width, bias=False),
            out=weights.linear(f"{attn}.out_proj", width, width),
            scale=1.0,
            window=window if kind == LOCAL and window < limit else None,
        )
        mlp = Mlp(
            up=weights.linear(f"h.{index}.mlp.c_fc", inner, width),
            down=weights.linear(f"h.{index}.mlp.c_proj", width, inner),
            activation=activation,
        )
        norm_1 = weights.layer_norm(f"h.{index}.ln_1", width, epsilon)
        norm_2 = weights.layer_norm(f"h.{index}.ln_2", width, epsilon)
        yield Block((Sublayer(attention, before=norm_1), Sublayer(mlp, before=norm_2)))


def _read_kinds(fields: Fields) -> list[str]:
    """GLOBAL or LOCAL for each block: [[[GLOBAL, LOCAL], 2]] of `attention_types` is twice the two."""
    layers = fields.integer("num_layers", 24, MAX_LAYERS)
    given = fields.get("attention_types")
    runs = [[[GLOBAL, LOCAL], 12]] if given is None else given
    expected = f"lists like [[{GLOBAL}, {LOCAL}], 2], for {layers} layers together"
    if not isinstance(runs, list) or not all(map(_is_run, runs)) or sum(len(run[0]) * run[1] for run in runs) != layers:
        raise fields.fail("attention_types", expected)
    kinds = [kind for run, times in runs for kind in run * times]
    if not all(kind in (GLOBAL, LOCAL) for kind in kinds):
        raise fields.fail("attention_types", expected)
    if fields.get("attention_layers", kinds) != kinds:
        raise fields.fail("attention_layers", "what attention_types says")
    return kinds


def _is_run(run: object) -> bool:
    """Whether it is a list of kinds and how often they follow."""
    return isinstance(run, list) and len(run) == 2 and isinstance(run[0], list) and type(run[1]) is int and run[1] >= 0

"""Llama (Touvron et al., arXiv:2302.13971) in all its sizes, as transformers' LlamaForCausalLM computes it; defaults
are those of its LlamaConfig. SmolLM2 and TinyLlama are Llamas.

Families that are Llamas with one field more call `read_llama`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Norm, Stack, Sublayer
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .rotary import Turning, read_rotary
from .weights import Weights

TITLE = "a Llama"
ARCHITECTURES = ("LlamaForCausalLM", "LlamaModel")
ALIASES: dict[str, str] = {}
OFF = names("rope_interleaved")
HARMLESS = names("attention_dropout is_llama_config pretraining_tp transformers.js_config")
PREFIX = "model."
IGNORED = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # of old versions; the config says it


@dataclass(frozen=True)
class Defaults:
    """Of fields, as a family's config class has them."""

    vocabulary: int = 32000
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    kv_heads: int | None = None  # as many as heads
    head_dim: int | None = None  # width / heads
    positions: int = 2048
    theta: float = 10000.0
    tied: bool = False
    eos: int | None = 2
    bos: int | None = 1
    pad: int | None = None
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Biases:
    """Which linears have one."""

    projections: bool = False  # of queries, keys and values
    out: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class Kind:
    """What tells one block from another."""

    window: int | None = None  # positions that it sees, itself among them
    turned: bool = True  # whether it knows positions
    turning: Turning | None = None  # how positions turn heads; None: as the config says for all blocks


@dataclass(frozen=True)
class Factors:
    """What a family multiplies by."""

    embeddings: float = 1.0
    scores: float | None = None  # by default 1 / sqrt(head_dim)
    branches: float = 1.0  # what a sublayer adds
    logits: float = 1.0


@dataclass(frozen=True)
class Norms:
    """Which ones there are, by their names in a block: of attention, then of the MLP."""

    before: tuple[str, str] | None = ("input_layernorm", "post_attention_layernorm")
    branch: tuple[str, str] | None = None  # of what a sublayer adds
    heads: bool = False  # of queries and keys: of each head or, where they are `whole`, of all heads together
    whole: bool = False
    offset: float = 0.0  # of every weight, above what is stored


@dataclass(frozen=True)
class Variant:
    """What a family makes of Llama."""

    kinds: Sequence[Kind]  # of each block
    biases: Biases
    defaults: Defaults = Defaults()
    factors: Factors = Factors()
    norms: Norms = Norms()
    activation: tuple[str, str] = ("hidden_act", "silu")  # the field of it, and its default


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    kinds = [Kind()] * fields.integer("num_hidden_layers", 32, MAX_LAYERS)
    return read_llama(fields, tokens, weights, Variant(kinds, read_biases(fields)))


def read_biases(fields: Fields) -> Biases:
    """As Llama's two fields say."""
    attention = fields.boolean("attention_bias", False)
    return Biases(attention, attention, fields.boolean("mlp_bias", False))


def read_llama(fields: Fields, tokens: Fields, weights: Weights, variant: Variant) -> Graph:
    """The graph of a config of such a family."""
    defaults, factors, offset = variant.defaults, variant.factors, variant.norms.offset
    width = fields.integer("hidden_size", defaults.width, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", defaults.vocabulary, MAX_VOCABULARY)
    limit = fields.integer("max_position_embeddings", defaults.positions, MAX_POSITIONS)
    epsilon = fields.epsilon("rms_norm_eps", defaults.epsilon)
    table = weights.tensor("embed_tokens.weight", (vocabulary, width))
    if factors.embeddings != 1.0:
        table = table.map(lambda rows: rows * factors.embeddings)
    blocks = tuple(_read_blocks(fields, weights, variant, width, limit, epsilon))
    head = weights.head("lm_head.weight", table, fields.boolean("tie_word_embeddings", defaults.tied))
    # A tied head has the factor of the embeddings in its matrix, too.
    gain = factors.logits / (factors.embeddings if head is table else 1.0)
    norm = weights.rms_norm("norm", width, epsilon, gain, offset)
    return Graph(
        decoder=Stack(Embeddings(table, None), blocks, norm, limit),
        head=Head(Linear(head, None)),
        special=tokens.special_tokens(vocabulary, eos=defaults.eos, bos=defaults.bos, pad=defaults.pad),
    )


def _read_blocks(
    fields: Fields, weights: Weights, variant: Variant, width: int, limit: int, epsilon: float
) -> Iterator[Block]:
    defaults, biases, factors, norms = variant.defaults, variant.biases, variant.factors, variant.norms
    heads = fields.integer("num_attention_heads", defaults.heads, MAX_HEADS)
    kv_heads = _read_kv_heads(fields, heads, defaults)
    head_dim = read_head_dim(fields, defaults.head_dim or max(1, width // heads))
    inner = fields.integer("intermediate_size", defaults.inner, MAX_INNER)
    activation = fields.activation(*variant.activation)
    common = (
        None if all(kind.turning for kind in variant.kinds) else read_rotary(fields, head_dim, defaults.theta, limit)
    )
    scale = 1 / math.sqrt(head_dim) if factors.scores is None else factors.scores
    for index, kind in enumerate(variant.kinds):

        def linear(name: str, outputs: int, inputs: int, bias: bool, layer: str = f"layers.{index}") -> Linear:
            return weights.linear(f"{layer}.{name}", outputs, inputs, bias)

        def norm(name: str, over: int = width, layer: str = f"layers.{index}") -> Norm:
            return weights.rms_norm(f"{layer}.{name}", over, epsilon, offset=norms.offset)

        turning = kind.turning or common
        assert turning is not None
        attention = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query=linear("self_attn.q_proj", heads * head_dim, width, biases.projections),
            key=linear("self_attn.k_proj", kv_heads * head_dim, width, biases.projections),
            value=linear("self_attn.v_proj", kv_heads * head_dim, width, biases.projections),
            out=linear("self_attn.o_proj", width, heads * head_dim, biases.out).scaled(factors.branches),
            scale=scale * turning.gain if kind.turned else scale,
            rotary=turning.rotary if kind.turned else None,
            query_norm=norm("self_attn.q_norm", head_dim * (heads if norms.whole else 1)) if norms.heads else None,
            key_norm=norm("self_attn.k_norm", head_dim * (kv_heads if norms.whole else 1)) if norms.heads else None,
            whole_norms=norms.whole,
            window=kind.window if kind.window is not None and kind.window < limit else None,
        )
        mlp = Mlp(
            up=linear("mlp.up_proj", inner, width, biases.mlp),
            down=linear("mlp.down_proj", width, inner, biases.mlp).scaled(factors.branches),
            activation=activation,
            gate=linear("mlp.gate_proj", inner, width, biases.mlp),
        )
        first, second = (None, None) if norms.before is None else map(norm, norms.before)
        branches = (None, None) if norms.branch is None else tuple(map(norm, norms.branch))
        yield Block((Sublayer(attention, first, branch=branches[0]), Sublayer(mlp, second, branch=branches[1])))


def read_head_dim(fields: Fields, default: int) -> int:
    """An even number, as pairs turn."""
    head_dim = fields.integer("head_dim", default, MAX_WIDTH, null=True)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number")
    return head_dim


def _read_kv_heads(fields: Fields, heads: int, defaults: Defaults) -> int:
    if fields.get("num_key_value_heads", defaults.kv_heads) is None:
        return heads
    kv_heads = fields.integer("num_key_value_heads", defaults.kv_heads, MAX_HEADS)
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    return kv_heads

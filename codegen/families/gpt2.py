"""GPT-2 (Radford et al., 2019), as transformers' GPT2LMHeadModel computes it; defaults are those of its GPT2Config.

Blocks may have sizes of their own: `kaoken_blocks` in config.json gives n_head, head_dim and n_inner of each, as
pruning leaves them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .fields import MAX_HEADS, MAX_INNER, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Fields, names
from .weights import Weights

TITLE = "a GPT-2"

# A double-heads model is the language model with one more head; a GPT2Model lacks only the head, which is tied unless
# the config says otherwise.
ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel")

# transformers' family-neutral names of four fields (GPT2Config.attribute_map).
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

OFF = names()
HARMLESS = names(
    "attn_pdrop embd_pdrop resid_pdrop summary_activation summary_first_dropout summary_last_dropout",
    "summary_proj_to_labels summary_type summary_use_proj",
    # The first GPT-2 code: n_ctx sized the causal mask; the special tokens are counted in vocab_size.
    "n_ctx n_special predict_special_tokens",
)

PREFIX = "transformer."

# The causal mask that old versions of transformers saved beside each attention, and the other of a model's two heads.
IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|multiple_choice_head\..*", re.DOTALL)

Sizes = tuple[int, int, int]  # n_head, head_dim, n_inner


def read(fields: Fields, tokens: Fields, weights: Weights) -> Graph:
    """The graph of a config; special tokens stand in `tokens`."""
    width = fields.integer("n_embd", 768, MAX_WIDTH)
    vocabulary = fields.integer("vocab_size", 50257, MAX_VOCABULARY)
    epsilon = fields.epsilon("layer_norm_epsilon", 1e-5)
    fields.boolean("reorder_and_upcast_attn", False)  # decides where half precision is left; there is none here
    limit = fields.integer("n_positions", 1024, MAX_POSITIONS)
    embeddings = Embeddings(
        tokens=weights.tensor("wte.weight", (vocabulary, width)),
        positions=weights.tensor("wpe.weight", (limit, width)),
    )
    blocks = tuple(_read_blocks(fields, weights, width, epsilon))
    norm = weights.layer_norm("ln_f", width, epsilon)
    head = weights.head("lm_head.weight", embeddings.tokens, fields.boolean("tie_word_embeddings", True))
    special = tokens.special_tokens(vocabulary, eos=50256, bos=50256)
    return Graph(decoder=Stack(embeddings, blocks, norm, limit), head=Head(Linear(head, None)), special=special)


def _read_blocks(fields: Fields, weights: Weights, width: int, epsilon: float) -> Iterator[Block]:
    activation = fields.activation("activation_function", "gelu_new")
    scaled = fields.boolean("scale_attn_weights", True)
    by_layer = fields.boolean("scale_attn_by_inverse_layer_idx", False)
    for index, (heads, head_dim, inner) in enumerate(_sizes(fields, width)):
        name, all_heads = f"h.{index}", heads * head_dim
        norm_1 = weights.layer_norm(f"{name}.ln_1", width, epsilon)
        query, key, value = weights.conv1d(f"{name}.attn.c_attn", all_heads, width, parts=3)
        (out,) = weights.conv1d(f"{name}.attn.c_proj", width, all_heads)
        scale = (1 / math.sqrt(head_dim) if scaled else 1.0) / (index + 1 if by_layer else 1)
        attention = Attention(heads, heads, head_dim, query, key, value, out, scale)
        norm_2 = weights.layer_norm(f"{name}.ln_2", width, epsilon)
        (up,) = weights.conv1d(f"{name}.mlp.c_fc", inner, width)
        (down,) = weights.conv1d(f"{name}.mlp.c_proj", width, inner)
        yield Block((Sublayer(attention, before=norm_1), Sublayer(Mlp(up, down, activation), before=norm_2)))


def _sizes(fields: Fields, width: int) -> list[Sizes]:
    """The sizes of each block: those of kaoken_blocks where it is given, otherwise all alike."""
    layers = fields.integer("n_layer", 12, MAX_LAYERS)
    if "kaoken_blocks" in fields.values:
        fields.ignore("n_head", "n_inner")
        each = fields.objects("kaoken_blocks", layers, ("n_head", "head_dim", "n_inner"), "layer")
        return [
            (
                block.integer("n_head", None, MAX_HEADS),
                block.integer("head_dim", None, MAX_WIDTH),
                block.integer("n_inner", None, MAX_INNER),
            )
            for block in each
        ]
    heads = fields.integer("n_head", 12, MAX_HEADS)
    if width % heads:
        raise fields.fail("n_head", f"a divisor of n_embd, which is {width}")
    given = fields.get("n_inner") is not None
    return [(heads, width // heads, fields.integer("n_inner", None, MAX_INNER) if given else 4 * width)] * layers

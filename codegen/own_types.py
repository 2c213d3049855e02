"""The types nearest those that a checkpoint's matrices are stored in, for checkpoints that are quantized: GGUF files.

Groups of Q8_0, Q4_0 and Q4_1, as llama.cpp's quantizer makes them, are kept: layout.py finds the grid that their values
lie on. Those of Q4_K are, too, but for their scales and minima, which are rounded to float16.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from .checkpoint import Checkpoint
from .dtypes import HEAD, OWN, TOKENS, Types, make_types
from .families import read_weights
from .gguf_checkpoint import GgufCheckpoint
from .graph import Attention, Graph, Tensor

# Each holds what those before it hold, or nearly so.
_HOLDING = ("int4", "int4-min", "int8-g32", "bfloat16", "float32")
_NEAREST = {
    "F32": "float32",
    "F16": "bfloat16",
    "BF16": "bfloat16",
    "Q4_0": "int4",
    "Q4_1": "int4-min",
    "Q4_K": "int4-min",
}
_OTHERS = "int8-g32"  # of 2 to 8 bits


def resolve(types: Types, checkpoint: Checkpoint) -> Types:
    """`types` where they name a dtype, else the checkpoint's own, which overrides may change; float32 without blocks.

    Raises what `read_graph` raises.
    """
    if types.dtype != OWN:
        return types
    own: dict[str, str] = {}
    if isinstance(checkpoint, GgufCheckpoint):
        graph, weights = read_weights(checkpoint)
        for product in _products(graph):
            sources = [source for tensor in product.values() for source in tensor.sources]
            nearest = {_NEAREST.get(weights.type_of(source), _OTHERS) for source in sources}
            own |= dict.fromkeys(product, max(nearest, key=_HOLDING.index))
    blocks = Counter(dtype for name, dtype in own.items() if name not in (HEAD, TOKENS))
    found = make_types(max(blocks, key=lambda each: blocks[each], default="float32"), cache=types.cache or None)
    differing = {pattern: dtype for pattern, dtype in _patterns(own).items() if found.of(pattern) != dtype}
    return Types(found.dtype, (*differing.items(), *types.overrides), found.cache)


def _products(graph: Graph) -> Iterator[dict[str, Tensor]]:
    """The matrices of each product, which have one type, by their names."""
    for stack in graph.stacks:
        for sublayer in stack.sublayers:
            parts = dict(sublayer.body.linears)
            together = ("query", "key", "value") if isinstance(sublayer.body, Attention) else ("gate", "up")
            fused = [parts.pop(part) for part in together if part in parts]
            yield {each.name: each.weight for each in fused}
            yield from ({each.name: each.weight} for each in parts.values())
    if graph.head is not None and graph.head.output is not None:
        yield {HEAD: graph.head.output.weight}
    if not graph.tied:
        yield {TOKENS: graph.stack.embeddings.tokens}


def _patterns(own: dict[str, str]) -> dict[str, str]:
    """Names of the same matrix of all blocks as one pattern, where they have one type."""
    patterns = {name: re.sub(r"\b\d+\b", "*", name) for name in own}
    alike: dict[str, set[str]] = {}
    for name, dtype in own.items():
        alike.setdefault(patterns[name], set()).add(dtype)
    return {patterns[name] if len(alike[patterns[name]]) == 1 else name: dtype for name, dtype in own.items()}

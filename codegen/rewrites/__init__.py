"""The rewrites between a checkpoint's graph and the one that is emitted, each Graph -> Graph, in order.

Folds are computed in float64 and rounded once, at packing.
"""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph, check_ready, verify
from .drop_key_bias import drop_key_bias
from .fill_biases import fill_biases
from .fold_attention_scale import fold_attention_scale
from .fold_norm import fold_norm
from .move_post_norms import move_post_norms
from .move_value_bias import move_value_bias
from .pad_heads import pad_heads

PIPELINE: tuple[Callable[[Graph], Graph], ...] = (
    move_post_norms,
    fold_norm,
    fold_attention_scale,
    drop_key_bias,
    move_value_bias,
    fill_biases,
    pad_heads,
)


def run(graph: Graph) -> Graph:
    """Runs every rewrite; verifies the graph before the first and after each, and that it is ready for kernels."""
    verify(graph)
    for rewrite in PIPELINE:
        graph = rewrite(graph)
        verify(graph)
    check_ready(graph)
    return graph

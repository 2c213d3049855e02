"""The rewrites between a checkpoint's graph and the one that is emitted, each Graph -> Graph, in order.

Folds are computed in float64 and rounded once, at packing.
"""

from __future__ import annotations

from collections.abc import Callable

from ..dtypes import HEAD, Types
from ..graph import Graph, Linear, check_ready, verify
from ..layout import MATRIX_TYPES
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


def run(graph: Graph, types: Types | None = None) -> Graph:
    """Runs every rewrite; verifies the graph before the first and after each, and that it is ready for kernels.

    Matrices of `types` whose inputs are quantized keep their columns.
    """
    head = None if graph.head is None else graph.head.output

    def keeps(linear: Linear) -> bool:
        if types is None:
            return False
        return MATRIX_TYPES[types.of(HEAD if linear is head else linear.name)].row_group is not None

    verify(graph)
    for rewrite in PIPELINE:
        graph = fold_norm(graph, keeps) if rewrite is fold_norm else rewrite(graph)
        verify(graph)
    check_ready(graph)
    return graph

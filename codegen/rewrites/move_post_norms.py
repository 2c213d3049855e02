"""Moves a norm from behind a sublayer to the front of the next: kernels normalize only where a sublayer begins.

The next sublayer reads x = after(x + body(x)) and adds to it, so its `before` replaces the residual stream. The next
sublayer may belong to the next block. Behind the last sublayer the norm becomes the stack's own. The place has to be
free: a norm behind a sublayer and another in front of the next are refused, as is a norm in front of sublayers side by
side, all of which would read it.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedModelError
from ..graph import Graph, Norm, Stack, Sublayer


def move_post_norms(graph: Graph) -> Graph:
    """No sublayer has a norm behind it."""
    return graph.map_stacks(_move)


def _move(stack: Stack) -> Stack:
    moving: Norm | None = None
    moved: dict[tuple[int, int], Sublayer] = {}  # sublayers that are one and follow the same norm stay one
    blocks = []
    for block in stack.blocks:
        sublayers = []
        if moving is not None and block.parallel:
            raise UnsupportedModelError(
                "a norm stands behind a sublayer, and in the block behind it attention and MLP read the same stream; "
                "expected one of the two: choose a model without such norms"
            )
        for sublayer in block.sublayers:
            key = id(sublayer), id(moving)
            if key not in moved:
                moved[key] = _behind(moving, sublayer)
            sublayers.append(moved[key])
            moving = sublayer.after
        blocks.append(replace(block, sublayers=tuple(sublayers)))
    if moving is not None:
        _require_free(stack.norm)
    return replace(stack, blocks=tuple(blocks), norm=stack.norm if moving is None else moving)


def _behind(moving: Norm | None, sublayer: Sublayer) -> Sublayer:
    """The sublayer without the norm behind it, and with the one that stood behind the sublayer before."""
    if moving is None:
        return replace(sublayer, after=None)
    _require_free(sublayer.before)
    return replace(sublayer, before=moving, replaces=True, after=None)


def _require_free(norm: Norm | None) -> None:
    if norm is not None:
        raise UnsupportedModelError(
            "a norm stands behind a sublayer and another before what follows it; expected one of the two: "
            "choose a model without norms on both sides"
        )

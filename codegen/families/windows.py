"""Which blocks see the whole text and which a window of it, as the configs of transformers say it."""

from __future__ import annotations

from .fields import MAX_POSITIONS, Fields

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def read_layer_types(fields: Fields, count: int) -> list[str] | None:
    """GLOBAL or LOCAL for each of `count` blocks, from `layer_types`; None where the config has none."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in (GLOBAL, LOCAL) for kind in kinds):
        raise fields.fail("layer_types", f"a list of {count}, each {GLOBAL} or {LOCAL}")
    return kinds


def read_window(fields: Fields, default: int | None) -> int | None:
    """The positions that a block sees, itself among them; None: all, as null in `sliding_window` says."""
    if fields.get("sliding_window", default) is None:
        return None
    return fields.integer("sliding_window", default, MAX_POSITIONS)


def read_windows(fields: Fields, window: int | None, kinds: list[str]) -> list[int | None]:
    """The window of each block. Raises CheckpointError where blocks are LOCAL and the config has no window."""
    if window is None and LOCAL in kinds:
        raise fields.fail("layer_types", f"no {LOCAL} where sliding_window is off")
    return [window if kind == LOCAL else None for kind in kinds]

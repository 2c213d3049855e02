"""The sizes of a smaller model: which factors give which shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kaoken.errors import InputError

AXES = ("layers", "width", "heads", "context")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model whose blocks are alike; `width` is a multiple of `heads`."""

    layers: int
    width: int
    heads: int
    inner: int  # neurons of an MLP
    context: int


def scale(shape: Shape, factor: float, axes: Sequence[str] = AXES) -> Shape:
    """The shape with some of its sizes times `factor`, rounded (halves up).

    - `layers` and `context` are rounded to whole numbers.
    - `width` with `heads`: heads are rounded, and each keeps its size, so the width is so many heads.
    - `width` alone: the nearest multiple of the heads, which become narrower.
    - `heads` alone: the nearest divisor of the width; the heads become wider.
    - an MLP has as many neurons for each unit of width as before.

    So 0.8 of 6 layers, width 128 and 8 heads is 5 layers, width 96 and 6 heads.

    Raises InputError for a factor outside (0, 1], an unknown axis, and where nothing would be left of a size.
    """
    unknown = set(axes) - set(AXES)
    if unknown or not axes:
        raise InputError(f"axes are {', '.join(axes) or 'none'}; expected some of {', '.join(AXES)}")
    if not 0 < factor <= 1:
        raise InputError(f"the scale is {factor}; expected a factor above 0, up to 1, such as 0.5")
    layers = _scaled(shape.layers, factor, "layers") if "layers" in axes else shape.layers
    context = _scaled(shape.context, factor, "positions") if "context" in axes else shape.context
    heads, width = shape.heads, shape.width
    if "heads" in axes and "width" in axes:
        heads = _scaled(heads, factor, "heads")
        width = heads * (shape.width // shape.heads)
    elif "width" in axes:
        width = heads * _scaled(shape.width // heads, factor, "channels a head")
    elif "heads" in axes:
        wanted = _scaled(heads, factor, "heads")
        divisors = [count for count in range(1, width + 1) if width % count == 0]
        heads = min(divisors, key=lambda count: (abs(count - wanted), -count))
    inner = max(1, _round(shape.inner * width / shape.width))
    return Shape(layers, width, heads, inner, context)


def scale_parameters(
    shape: Shape, share: float, axes: Sequence[str], parameters: Callable[[Shape], int]
) -> tuple[Shape, float]:
    """The scaled shape whose parameters are nearest to `share` of this one's, and its factor (in hundredths)."""
    if not 0 < share <= 1:
        raise InputError(f"the share of parameters is {share}; expected above 0, up to 1, such as 0.5")
    wanted = share * parameters(shape)
    shapes = {}
    for hundredths in range(100, 0, -1):
        try:
            shapes[hundredths / 100] = scale(shape, hundredths / 100, axes)
        except InputError:  # nothing left of a size
            break
    factor = min(shapes, key=lambda factor: abs(parameters(shapes[factor]) - wanted))
    return shapes[factor], factor


def resolve(
    shape: Shape, factor: float, axes: Sequence[str], of_parameters: bool, parameters: Callable[[Shape], int]
) -> Shape:
    """The shape at a factor of the sizes, or at a share of the parameters."""
    return scale_parameters(shape, factor, axes, parameters)[0] if of_parameters else scale(shape, factor, axes)


def evenly(count: int, kept: int) -> list[int]:
    """`kept` of the numbers 0 to count - 1, the first and the last among them, evenly: 3 of 6 are 0, 3, 5."""
    if kept == 1:
        return [0]
    return [_round(place * (count - 1) / (kept - 1)) for place in range(kept)]


def check_steps(steps: Sequence[float], scale: float | None) -> tuple[float, ...]:
    """The factors of a chain, each smaller than the one before; the last is `scale` where that is given."""
    if not steps and scale is None:
        raise InputError("neither a scale nor steps are given; expected one, such as 0.5")
    falling = all(after < before for before, after in pairwise(steps))
    if not falling or (steps and scale is not None and not math.isclose(steps[-1], scale)):
        end = "" if scale is None else f", down to the scale of {scale}"
        raise InputError(f"steps are {', '.join(map(str, steps))}; expected falling factors{end}")
    return tuple(steps) if scale is None else (*steps[:-1], scale)


def _scaled(size: int, factor: float, what: str) -> int:
    result = _round(size * factor)
    if result < 1:
        raise InputError(f"{factor} of {size} {what} leaves none: choose a larger factor or other axes")
    return result


def _round(value: float) -> int:
    """Halves up; a product of a factor of a few decimals is not split by its rounding error."""
    return math.floor(value + 0.5 + 1e-9)

"""The sizes of smaller models: the rule by examples, shares of parameters against all factors, and bad factors."""

from __future__ import annotations

import pytest

from kaoken.compress.scaling import AXES, Shape, check_steps, evenly, resolve, scale, scale_parameters
from kaoken.errors import InputError

SHAPE = Shape(6, 128, 8, 512, 256)
ODD = Shape(3, 30, 5, 45, 7)


@pytest.mark.parametrize(
    ("shape", "factor", "axes", "expected"),
    [
        (SHAPE, 1.0, AXES, SHAPE),
        (SHAPE, 0.8, ("layers", "width", "heads"), Shape(5, 96, 6, 384, 256)),  # the documented example
        (SHAPE, 0.5, AXES, Shape(3, 64, 4, 256, 128)),
        (SHAPE, 0.5, ("layers",), Shape(3, 128, 8, 512, 256)),
        (SHAPE, 0.5, ("context",), Shape(6, 128, 8, 512, 128)),
        (SHAPE, 0.9, AXES, Shape(5, 112, 7, 448, 230)),  # 5.4 layers, 7.2 heads of 16, 230.4 positions
        (SHAPE, 0.75, ("layers",), Shape(5, 128, 8, 512, 256)),  # 4.5: halves go up
        (SHAPE, 0.7, ("width",), Shape(6, 88, 8, 352, 256)),  # heads of 11.2
        (SHAPE, 0.9, ("heads",), Shape(6, 128, 8, 512, 256)),  # of 7 heads, 8 is the nearest divisor
        (SHAPE, 0.6, ("heads",), Shape(6, 128, 4, 512, 256)),  # of 5, 4
        (SHAPE, 0.4, ("heads",), Shape(6, 128, 4, 512, 256)),  # 3 heads, as far from 4 as from 2: more of them
        (ODD, 0.5, AXES, Shape(2, 18, 3, 27, 4)),  # 1.5 layers, 2.5 heads of 6, 3.5 positions
        (ODD, 0.5, ("width",), Shape(3, 15, 5, 23, 7)),  # 22.5 neurons
        (ODD, 0.8, ("heads",), Shape(3, 30, 5, 45, 7)),  # 4 does not divide 30; 5 and 3 are as near
        (Shape(10, 10, 1, 7, 10), 0.15, ("layers",), Shape(2, 10, 1, 7, 10)),  # 0.15 * 10 is below 1.5 in binary
    ],
)
def test_the_rule(shape: Shape, factor: float, axes: tuple[str, ...], expected: Shape) -> None:
    assert scale(shape, factor, axes) == expected
    assert expected.width % expected.heads == 0


@pytest.mark.parametrize(
    ("factor", "axes", "error"),
    [
        (0.05, AXES, r"0\.05 of 6 layers leaves none: choose a larger factor or other axes"),
        (0.05, ("width", "heads"), "0.05 of 8 heads leaves none"),
        (0.02, ("width",), "0.02 of 16 channels a head leaves none"),
        (0.001, ("context",), "0.001 of 256 positions leaves none"),
        (0.0, AXES, r"the scale is 0\.0; expected a factor above 0, up to 1"),
        (-0.5, AXES, "the scale is -0.5"),
        (1.1, AXES, "the scale is 1.1"),
        (float("nan"), AXES, "the scale is nan"),
        (0.5, ("layers", "depth"), "axes are layers, depth; expected some of layers, width, heads, context"),
        (0.5, (), "axes are none"),
    ],
)
def test_factors_that_leave_nothing_or_are_none(factor: float, axes: tuple[str, ...], error: str) -> None:
    with pytest.raises(InputError, match=error):
        scale(SHAPE, factor, axes)


def blocks_of(shape: Shape) -> int:
    """Matrices of the blocks and 257 tokens."""
    return shape.layers * shape.width * (4 * shape.width + 2 * shape.inner) + 257 * shape.width


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.01])
@pytest.mark.parametrize("axes", [AXES, ("layers",), ("width",)])
def test_a_share_of_the_parameters_is_met_as_nearly_as_factors_can(share: float, axes: tuple[str, ...]) -> None:
    shape, factor = scale_parameters(SHAPE, share, axes, blocks_of)
    assert shape == scale(SHAPE, factor, axes)
    error = abs(blocks_of(shape) - share * blocks_of(SHAPE))
    for hundredths in range(1, 101):
        try:
            other = scale(SHAPE, hundredths / 100, axes)
        except InputError:
            continue
        assert error <= abs(blocks_of(other) - share * blocks_of(SHAPE))
    assert resolve(SHAPE, share, axes, True, blocks_of) == shape


def test_resolve_by_sizes() -> None:
    assert resolve(SHAPE, 0.5, AXES, False, blocks_of) == scale(SHAPE, 0.5)


@pytest.mark.parametrize("share", [0.0, -1, 1.01, float("nan")])
def test_a_share_of_the_parameters_outside_its_range(share: float) -> None:
    with pytest.raises(InputError, match=rf"the share of parameters is {share}; expected above 0"):
        scale_parameters(SHAPE, share, AXES, blocks_of)


@pytest.mark.parametrize(
    ("count", "kept", "expected"),
    [(6, 3, [0, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (6, 1, [0]), (6, 2, [0, 5]), (10, 5, [0, 2, 5, 7, 9])],
)
def test_layers_are_kept_evenly(count: int, kept: int, expected: list[int]) -> None:
    assert evenly(count, kept) == expected


@pytest.mark.parametrize("count", [1, 5, 48])
def test_no_layer_is_kept_twice(count: int) -> None:
    for kept in range(1, count + 1):
        assert len(set(evenly(count, kept))) == kept


@pytest.mark.parametrize(
    ("steps", "last", "expected"),
    [
        ((), 0.5, (0.5,)),
        ((), 1.0, (1.0,)),
        ((1.0,), None, (1.0,)),
        ((1.0, 0.9, 0.5), 0.5, (1.0, 0.9, 0.5)),
        ((0.9, 0.5), None, (0.9, 0.5)),
    ],
)
def test_steps(steps: tuple[float, ...], last: float | None, expected: tuple[float, ...]) -> None:
    assert check_steps(steps, last) == expected


@pytest.mark.parametrize(
    ("steps", "last", "error"),
    [
        ((), None, "neither a scale nor steps"),
        ((0.5, 0.9), 0.9, "steps are 0.5, 0.9; expected falling factors, down to the scale of 0.9"),
        ((0.9, 0.9), None, "steps are 0.9, 0.9; expected falling factors$"),
        ((0.5, 1.0), None, "steps are 0.5, 1.0; expected falling"),
        ((0.9, 0.6), 0.5, "down to the scale of 0.5"),
        ((0.9, float("nan")), None, "steps are 0.9, nan"),
    ],
)
def test_steps_that_do_not_fall(steps: tuple[float, ...], last: float | None, error: str) -> None:
    with pytest.raises(InputError, match=error):
        check_steps(steps, last)

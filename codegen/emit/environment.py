"""The Jinja2 environment of the templates, which stay C++ that a formatter can read: GEN(...) is a value and a line
starting with //% a statement."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from ..layout import MATRIX_TYPES, round_up
from ..packing import C_TYPES, Blob, Matrix, Packed, Unit

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
WIDTH = 118


@cache
def environment() -> jinja2.Environment:
    """The one environment; a name that a template misses is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        line_statement_prefix="//%",
        block_start_string="/*%",
        block_end_string="%*/",
        comment_start_string="/*#",
        comment_end_string="#*/",
        variable_start_string="GEN(",
        variable_end_string=")",
        keep_trailing_newline=True,
    )
    env.filters.update(
        float32=hex_float,
        literal=literal,
        names=names,
        c_type=c_type,
        sources=unit_sources,
        comment=wrap_comment,
        layout=layout,
        kind=kind,
        value=value,
        floats=floats,
        round_up=round_up,
        zip=zip,
    )
    return env


def hex_float(value: float) -> str:
    """A float32 literal without rounding."""
    return re.sub(r"\.?0*p", "p", float(np.float32(value)).hex()) + "f"


def literal(array: Packed) -> str:
    """The values of a small array, as an initializer, wrapped."""
    return textwrap.fill(
        ", ".join(map(hex_float, array.values())), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )


def names(arrays: tuple[Packed, ...]) -> str:
    """The arrays' C++ names, as an initializer."""
    return ", ".join(array.name for array in arrays)


def c_type(array: Packed) -> str:
    """What C++ calls the array's values."""
    return C_TYPES[array.type]


def unit_sources(units: list[Unit]) -> str:
    """The checkpoint tensors behind some units, for a comment; the names are of a family's closed set."""
    return wrap_comment(dict.fromkeys(source for unit in units for array in unit.arrays for source in array.sources))


def kind(matrix: Matrix) -> str:
    """The C++ type that multiplies by a matrix (runtime/kernels/kinds.h)."""
    return "Exploded" if matrix.strip_files else MATRIX_TYPES[matrix.dtype].kind


def value(matrix: Matrix) -> str:
    """The initializer of a matrix of that type."""
    if matrix.strip_files:
        return f"{{{matrix.name}_strips, {len(matrix.strips)}}}"
    return f"{{{names(matrix.arrays)}}}"


def floats(values: list[float]) -> str:
    """An initializer's values, on one line."""
    return ", ".join(map(hex_float, values))


def layout(blob: Blob) -> str:
    """Where each array of a blob starts, wrapped for a comment."""
    return wrap_comment(f"{array.name} at {offset}" for offset, array in blob.arrays)


def wrap_comment(words: Iterable[str]) -> str:
    """Words separated by commas, over as many comment lines as they need."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - len("//   From: "):
            lines.append("")
        lines[-1] += f", {word}" if lines[-1] else word
    return ",\n//   ".join(lines)

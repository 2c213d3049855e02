"""`kaoken.calibrate`: a recipe for a checkpoint, made of a text that it reads in float32."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kaoken.arguments import file_path, integer
from kaoken.baking import overrides_text
from kaoken.codegen.dtypes import make_types
from kaoken.errors import CheckpointError, InputError
from kaoken.progress import Bar
from kaoken.tools import check_packages
from kaoken.windows import cut, read_text

WINDOWS = 32
CONTEXT = 512


def calibrate(
    checkpoint: str | os.PathLike[str],
    text: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str,
    tensor_dtypes: Mapping[str, str] | str | None = None,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    windows: int = WINDOWS,
    context: int = CONTEXT,
    show_progress_bar: bool = False,
) -> Path:
    """Writes a recipe, with which `kaoken.bake` loses less in a quantized type, and returns its path.

    The model reads the text in float32, in NumPy. Where it changes no output, channels that are hard to quantize are
    made smaller in front of a matrix and larger in its columns, as far as that brings the quantized product nearer to
    the exact one (SmoothQuant, arXiv:2211.10438). Baking with a recipe gives the same bytes everywhere; making one does
    not, as a BLAS's sums depend on the machine.

    Args:
        checkpoint, revision, adapter: As for `kaoken.bake`.
        text: A UTF-8 file, such as the model is for; a longer one is read in windows that are spread over it.
        out: The file to write.
        dtype, tensor_dtypes: The types that the recipe is for.
        windows: How many windows at most are read.
        context: Tokens of each; of a model with a shorter context that.
        show_progress_bar: On standard error.

    Raises:
        InputError: A text that is shorter than a window, or an option out of range.
        CheckpointError, UnsupportedModelError, HubError: See `kaoken.errors`. A checkpoint needs a tokenizer.
        BuildError: The recipe cannot be written.
    """
    types = make_types(dtype, overrides_text(tensor_dtypes))
    windows, context = integer("windows", windows, minimum=1), integer("context", context, minimum=2)
    destination = file_path("out", out)
    if not destination.absolute().parent.is_dir():
        raise InputError(f"out is {destination}, but its directory does not exist: make it first")
    content = read_text(file_path("text", text))
    check_packages()
    from tokenizers import Tokenizer

    from kaoken.codegen.calibration import calibrate
    from kaoken.codegen.checkpoint import open_checkpoint
    from kaoken.codegen.families import read_graph
    from kaoken.codegen.hub import resolve_model
    from kaoken.codegen.own_types import resolve
    from kaoken.codegen.recipe import write_recipe

    named = checkpoint if isinstance(checkpoint, str) else os.path.abspath(file_path("checkpoint", checkpoint))
    source = resolve_model(named, revision=revision, root=Path.cwd())
    opened = open_checkpoint(source.path, None if adapter is None else file_path("adapter", adapter).absolute())
    if opened.tokenizer is None:
        raise CheckpointError(f"{source.path} has no tokenizer, which makes tokens of the text: add its tokenizer.json")
    graph = read_graph(opened)
    ids = cut(Tokenizer.from_str(opened.tokenizer.decode()), content, min(context, graph.stack.limit)).ids
    ids = ids[np.linspace(0, len(ids) - 1, min(windows, len(ids))).astype(int)]
    with Bar(len(graph.blocks), "block", show_progress_bar) as bar:
        origin, factors = calibrate(opened, resolve(types, opened), ids, lambda: bar.advance(1))
    write_recipe(destination, origin, factors)
    return destination

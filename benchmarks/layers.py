"""`layers`: single layers of GPT-2 in float32, ours beside PyTorch eager, taking turns."""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.children import Child
from benchmarks.machine import header
from benchmarks.native_library import NativeLibrary, build, machine_isas
from benchmarks.peers import SETTLE, save
from benchmarks.summary import ratios, summarize

ROW_COUNTS = (1, 128)


@dataclass(frozen=True)
class Layer:
    """`published` is what the project that gave baking its name reported for one row on an Arm laptop, in
    milliseconds: its own and PyTorch's. `repeats` are those of one row between two looks at the clock."""

    title: str
    native: str
    torch: str
    repeats: int
    published: tuple[float | None, float | None]


LAYERS = (
    Layer("LayerNorm [768]", "layer_norm", "layer_norm", 2000, (0.0052, 0.052)),
    Layer("GELU [768], as transformers' gelu_new", "layer_gelu", "gelu", 2000, (0.084, 0.174)),
    Layer("GELU [768], as PyTorch's own tanh form", "layer_gelu", "gelu_fused", 2000, (0.084, 0.174)),
    Layer("Linear [768, 50257]", "layer_linear", "linear", 5, (2.378, 22.4)),
    Layer("Attention [768], 12 heads", "layer_attention", "attention", 100, (9.386, 14.484)),
    Layer("MLP [768, 3072, 768]", "layer_mlp", "mlp", 100, (None, 32.51)),
)

NOTE = (
    "Ours as a baked model runs it: inside a pass of the team, a barrier behind each layer that workers divide; a lone "
    "row's LayerNorm and GELU are each worker's own and in a model cost no pass over memory. PyTorch's are calls of "
    "eager modules from Python. Both repeat on the same weights, which the last-level cache may hold."
)


def run(options: argparse.Namespace, arguments: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Builds, measures and writes layers.json."""
    document = header(" ".join(["layers", *arguments]), options.threads)
    document |= {"note": NOTE, "missing": {}, "layers": []}
    isas = [isa for isa in machine_isas() if isa != "scalar"] or ["scalar"]
    best = "avx512" if "avx512" in isas else isas[-1]  # the others differ in integers and bfloat16 alone
    library = build([best], options.build)[best]
    document["isa"] = best
    torch = _torch_child(options, document)
    with torch or nullcontext():
        for layer in LAYERS:
            for rows in ROW_COUNTS:
                record = _measure(layer, rows, library, torch, options)
                document["layers"].append(record)
                say(describe(record))
    save(document, options.out / "layers.json")
    return document


def _torch_child(options: argparse.Namespace, document: dict[str, Any]) -> Child | None:
    lacking = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if lacking:
        document["missing"]["torch float32"] = f"not installed: {', '.join(lacking)}"
        return None
    return Child("torch float32", options.threads, options.out / "logs" / "torch-layers.log")


def _measure(
    layer: Layer, rows: int, library: NativeLibrary, torch: Child | None, options: argparse.Namespace
) -> dict[str, Any]:
    repeats = max(1, layer.repeats // (1 if rows == 1 else 30))
    ours, theirs = [], []
    for _ in range(options.rounds):
        time.sleep(SETTLE)
        timed = library.time(layer.native, options.threads, rows, repeats, passes=3, result=ctypes.c_int64)
        ours.append(summarize(timed.seconds).median / repeats)
        if torch:
            time.sleep(SETTLE)
            fields = {"name": layer.torch, "rows": rows, "repeats": repeats, "threads": options.threads}
            theirs.append(torch.ask("torch_layer", **fields)["seconds"])
    return {
        "layer": layer.title,
        "rows": rows,
        "ours_seconds": ours,
        "torch_seconds": theirs,
        "published_milliseconds": list(layer.published) if rows == 1 else [None, None],
    }


def describe(record: dict[str, Any]) -> str:
    """One line."""
    text = f"{record['layer']}, {record['rows']} rows: {1e6 * summarize(record['ours_seconds']).median:.2f} us"
    if not record["torch_seconds"]:
        return text
    ratio = summarize(ratios(record["ours_seconds"], record["torch_seconds"])).median
    return f"{text}, PyTorch {1e6 * summarize(record['torch_seconds']).median:.2f} us, ratio {ratio:.3f}"

"""What torch's two ONNX exporters make of GPT-2, beside Kaoken's own graph: counts, sizes and pictures.

Of a two-head block and of a whole model of two such blocks, with random weights from a seed. No times are measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import make_types
from kaoken.codegen.families import read_graph
from kaoken.codegen.graph import Graph, Tensor
from kaoken.codegen.packing import pack
from onnx import numpy_helper
from torch import Tensor as TorchTensor
from torch import nn

from benchmarks.shapes import random_tensors
from benchmarks.tables import markdown_table
from kaoken.graphs import Picture, block_ops, checkpoint_picture, onnx_picture, render
from kaoken.onnx_export import CausalGPT2, ExportedBlock, ExportedGPT2, Names, difference, export

CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "vocab_size": 61,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
SEED = 1
DROPOUT = 0.1  # GPT-2's

# Ops that move or measure tensors; a Gather does where it reads no table of weights.
SHAPE_OPS = {"Cast", "Concat", "Expand", "Gather", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze"}
SHAPE_OPS |= {"Transpose", "Unsqueeze"}


@dataclass
class Row:
    """One graph; bytes are of its constants, and `twice` of those that repeat another, transposed or not."""

    subject: str  # block or model
    maker: str
    way: str = ""  # traced or scripted
    mode: str = ""  # eval or train
    nodes: int = 0
    shape_nodes: int = 0
    arrays: int = 0
    bytes: int = 0
    twice: int = 0
    file_bytes: int | None = None
    dropouts: int = 0  # whose training_mode is true
    difference: float | None = None  # of onnxruntime from torch in eval mode
    difference_as_written: float | None = None  # without onnxruntime's rewrites
    refusal: str | None = None
    ops: dict[str, int] = field(default_factory=dict)
    optimized_ops: dict[str, int] = field(default_factory=dict)  # after onnxruntime's fusions

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.subject, self.maker, self.way, self.mode))).replace(" ", "-")


class Block(nn.Module):
    """hidden [B, T, E] to the hidden of the first block."""

    def __init__(self, block: ExportedBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: TorchTensor) -> TorchTensor:
        result: TorchTensor = self.block(hidden)[0]
        return result

    def example(self) -> tuple[TorchTensor, ...]:
        return (torch.randn(2, 4, self.block.qkv.in_features, generator=torch.Generator().manual_seed(SEED)),)

    def names(self) -> Names:
        axes = {0: "batch", 1: "count"}
        return Names(["hidden"], ["output"], {"hidden": axes, "output": axes})


def run(out: Path, say: Callable[[str], None]) -> None:
    """Writes graphs.json, graphs.md and the pictures into a directory."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "two-blocks"
        write_checkpoint(directory)
        rows = [*own_rows(directory, out), *_exports(directory, Path(temporary), out, say)]
    packages = ("torch", "onnx", "onnxruntime", "onnxscript")
    versions = {name: importlib.metadata.version(name) for name in packages}
    document = {"versions": versions, "config": CONFIG, "rows": [asdict(row) for row in rows]}
    (out / "graphs.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / "graphs.md").write_text("\n".join(_tables(rows, versions)), encoding="utf-8")


def write_checkpoint(directory: Path) -> None:
    """No bias 0 and no gain 1: exporters may merge arrays that are alike."""
    from safetensors.numpy import save_file

    directory.mkdir()
    generator = np.random.default_rng(SEED)
    tensors = random_tensors(CONFIG, SEED)
    noisy = {name: each + 0.2 * generator.standard_normal(each.shape, np.float32) for name, each in tensors.items()}
    save_file(noisy, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


# Kaoken's own


def own_rows(directory: Path, out: Path) -> Iterator[Row]:
    """Kaoken's graph of a checkpoint, its first block and the whole; draws the whole."""
    before = read_graph(open_checkpoint(directory))
    after = rewrites.run(before)
    packed = pack(after, make_types("float32", "", None), 1 << 30)
    for subject, units in (("block", packed.units[1:2]), ("model", packed.units)):
        for state, graph in (("before rewrites", before), ("after rewrites", after)):
            picture = checkpoint_picture(directory, directory.name, before=graph is before, all_blocks=True)
            row = _own_row(subject, f"Kaoken {state}", picture, graph)
            if subject == "model":
                _draw(out, row.name, picture)
            yield row
        arrays = [array for unit in units for array in unit.arrays]
        linears = 4 * (1 if subject == "block" else len(after.blocks)) + (subject == "model")
        yield Row(subject, "Kaoken baked", nodes=linears, arrays=len(arrays), bytes=sum(each.nbytes for each in arrays))


def _own_row(subject: str, maker: str, picture: Picture, graph: Graph) -> Row:
    clusters = [each for each in picture.clusters if subject == "model" or each.label.startswith("block 0")]
    titles = [node.title for each in clusters for node in each.nodes if node.kind != "end"]
    ops = Counter(title.split()[0] for title in titles)
    blocks = graph.blocks[: 1 if subject == "block" else None]
    parts: list[Any] = [op for block in blocks for op in block_ops(block).values()]
    if subject == "model":
        embeddings = graph.stack.embeddings
        parts += [embeddings.tokens, embeddings.positions, graph.stack.norm, graph.head and graph.head.output]
    found = [
        each for part in parts for each in ([part] if isinstance(part, Tensor) else [part.weight, part.bias]) if each
    ]
    arrays = {id(each): 4 * int(np.prod(each.shape)) for each in found}
    return Row(subject, maker, nodes=len(titles), arrays=len(arrays), bytes=sum(arrays.values()), ops=dict(ops))


# The exporters'


def _exports(directory: Path, work: Path, out: Path, say: Callable[[str], None]) -> Iterator[Row]:
    def block() -> Any:
        return Block(CausalGPT2(directory, DROPOUT).blocks[0])

    def model() -> Any:
        return CausalGPT2(directory, DROPOUT)

    for subject, make in (("block", block), ("model", model)):
        for maker in ("torchscript", "dynamo"):
            for way in ("traced", "scripted"):
                for mode in ("eval", "train"):
                    yield _export(Row(subject, maker, way, mode), make(), work, out, say)
    yield _export(Row("model with cache", "torchscript", "traced", "eval"), ExportedGPT2(directory), work, out, say)
    yield _export(Row("model with cache", "torchscript", "scripted", "eval"), ExportedGPT2(directory), work, out, say)


def _export(row: Row, module: Any, work: Path, out: Path, say: Callable[[str], None]) -> Row:
    say(row.name)
    file = work / "graph.onnx"
    module.train(row.mode == "train")
    try:
        given = torch.jit.script(module) if row.way == "scripted" else module
        export(
            given, module.example(), module.names(), file, dynamo=row.maker == "dynamo", training=row.mode == "train"
        )
    except Exception as error:  # whatever an exporter refuses with is the result
        row.refusal = _reason(error)
        return row
    count(row, file)
    row.file_bytes = file.stat().st_size
    module.eval()
    row.difference = difference(module, module.example(), module.names(), file)
    row.difference_as_written = difference(module, module.example(), module.names(), file, rewrites=False)
    row.optimized_ops = _optimized_ops(file)
    _draw(out, row.name, onnx_picture(file, row.name))
    return row


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, without colors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines()[0].rstrip(": ")


def count(row: Row, file: Path) -> None:
    """Fills a row with what an ONNX file has."""
    graph = onnx.load(file).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    constants = [node for node in graph.node if node.op_type == "Constant"]
    arrays |= {node.output[0]: _value(node) for node in constants}
    ops = [node for node in graph.node if node.op_type != "Constant"]
    tables = sum(node.op_type == "Gather" and node.input[0] in arrays for node in ops)
    row.ops = _op_counts(graph)
    row.nodes, row.arrays = len(ops), len(arrays)
    row.shape_nodes = sum(count for name, count in row.ops.items() if name in SHAPE_OPS) - tables
    row.bytes = sum(each.nbytes for each in arrays.values())
    row.dropouts = sum(
        node.op_type == "Dropout" and len(node.input) > 2 and bool(arrays[node.input[2]]) for node in ops
    )
    distinct = {_canonical(each): each.nbytes for each in arrays.values()}
    row.twice = row.bytes - sum(distinct.values())


def _op_counts(graph: Any) -> dict[str, int]:
    return dict(Counter(node.op_type for node in graph.node if node.op_type != "Constant"))


def _value(node: Any) -> Any:
    return numpy_helper.to_array(node.attribute[0].t)


def _canonical(array: Any) -> bytes:
    """The same for an array and its transpose."""
    texts: list[bytes] = [array.tobytes(), array.T.tobytes()]
    return min(texts)


def _optimized_ops(file: Path) -> dict[str, int]:
    """What onnxruntime's own fusions leave, those for a processor's layouts aside."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return _op_counts(onnx.load(options.optimized_model_filepath).graph)


# What is written


# What a page does not need of Graphviz's SVG, and what says the same once for all.
_LESS = (
    (r"<!--.*?-->\n|<title>.*?</title>\n", ""),
    (r' id="(node|edge)\d+" class="(node|edge)"| xml:space="preserve"| text-anchor="middle"', ""),
    (r' font-family="Helvetica,sans-Serif" font-size="10.00"', ""),
    (r'<path fill="none" stroke="black"', "<path"),
    (r'<polygon fill="black" stroke="black"', "<polygon"),
    (
        r'<g id="graph0"',
        "<style>text{font:10px Helvetica,sans-serif;text-anchor:middle}path{fill:none;stroke:#000}</style>\n\\g<0>",
    ),
)


def _draw(out: Path, name: str, picture: Picture) -> None:
    """DOT, and an SVG that is small, as it is committed."""
    (out / f"{name}.dot").write_bytes(render(picture, "dot"))
    svg = render(picture, "svg").decode()
    for pattern, less in _LESS:
        svg = re.sub(pattern, less, svg, flags=re.DOTALL)
    (out / f"{name}.svg").write_text(svg, encoding="utf-8")


def _tables(rows: list[Row], versions: dict[str, str]) -> Iterator[str]:
    yield "# ONNX graphs beside Kaoken's\n"
    yield f"`python -m benchmarks graphs`; {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
    head = ["graph", "ops", "of them shapes", "arrays", "bytes", "of them twice", "file", "dropouts"]
    head += ["from torch", "as written", "ops in onnxruntime"]
    drawn = [row for row in rows if row.refusal is None]
    yield markdown_table(head, [_line(row) for row in drawn])
    yield "Refused:\n"
    yield from (f"- `{row.name}`: {row.refusal}" for row in rows if row.refusal)
    yield "\nOps by type:\n"
    shown = [row for row in drawn if row.file_bytes and row.way == "traced"]
    types = sorted({name for row in shown for name in row.ops})
    counts = [[name, *(str(row.ops.get(name, "")) for row in shown)] for name in types]
    yield markdown_table(["op", *(row.name for row in shown)], counts)


def _line(row: Row) -> list[str]:
    name = f"[{row.name}]({row.name}.svg)" if row.file_bytes or (row.subject == "model" and row.ops) else row.name
    numbers = [str(each) for each in (row.nodes, row.shape_nodes, row.arrays, row.bytes, row.twice)]
    if row.difference is None or row.difference_as_written is None:
        return [name, *numbers, *[""] * 5]
    found = (f"{row.difference:.1e}", f"{row.difference_as_written:.1e}")
    return [name, *numbers, str(row.file_bytes), str(row.dropouts), *found, str(sum(row.optimized_ops.values()))]

"""Pictures of graphs: Kaoken's own before or after its passes, and ONNX files, as Graphviz DOT and as SVG.

Nothing here reads weights (but the head, where a tied checkpoint stores one all the same): an op knows its shapes.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from kaoken.cache import install
from kaoken.codegen.graph import Block, Graph, Linear, Norm, Tensor, verify
from kaoken.codegen.passes import PIPELINE
from kaoken.errors import InputError, KaokenError
from kaoken.inputs import file_path

FORMATS = ("dot", "svg")

_COLORS = {"op": "#f4f4f4", "changed": "#fff0c2", "end": "#dcebfa"}
_BLOCK = re.compile(r"blocks?[./_](\d+)")

_NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}

Op = Tensor | Norm | Linear | float


@dataclass(frozen=True)
class Node:
    """One box; `name` is unique in its picture. "changed" ops are those that a pass has rewritten."""

    name: str
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "op"  # a key of _COLORS


@dataclass(frozen=True)
class Cluster:
    """Nodes in one frame; without a label, in none."""

    label: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Picture:
    """A graph to draw; edges are pairs of names."""

    title: str
    clusters: tuple[Cluster, ...]
    edges: tuple[tuple[str, str], ...]


def write_graph(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    before: bool = False,
    all_blocks: bool = False,
    onnx: bool = False,
    revision: str | None = None,
) -> list[Path] | str:
    """Draws a checkpoint's graph into `out` and returns the paths written, or the DOT text where `out` is None.

    `format` is dot or svg; None goes by out's ending. `before` draws the graph as the checkpoint states it, before the
    passes; `all_blocks` draws blocks that are alike one by one. `onnx` puts the exports of torch's two exporters beside
    it: OUT.torchscript.onnx and OUT.dynamo.onnx, each with its picture, checked with onnxruntime.

    Raises KaokenError where a package is missing, where `out` cannot be written, or for an unsound checkpoint.
    """
    kind = _format(out, format)
    if onnx and out is None:
        raise InputError("--onnx needs a file that the exports can lie beside: say which with -o")
    if onnx:
        _require("exporting to ONNX", ("torch", "onnx", "onnxruntime", "onnxscript"), "onnx")
    directory, name = _resolve(checkpoint, revision)
    picture = checkpoint_picture(directory, name, before=before, all_blocks=all_blocks)
    if out is None:
        return dot(picture)
    path = file_path("out", out)
    if path.is_dir():
        raise InputError(f"out is {path}, which is a directory: name the one file to write")
    if not path.parent.is_dir():
        raise InputError(f"out is {path}, but the directory {path.parent} does not exist: make it first")
    with tempfile.TemporaryDirectory(prefix="kaoken-") as temporary:
        work = Path(temporary)
        (work / "graph").write_bytes(render(picture, kind))
        files = {work / "graph": path}
        for file in _export_both(directory, name, work, kind) if onnx else ():
            files[file] = path.with_name(f"{path.stem}.{file.name}")
        install(files)
    return list(files.values())


def _export_both(directory: Path, name: str, work: Path, kind: str) -> Iterator[Path]:
    from kaoken.onnx_export import CausalGPT2, checked_export

    gpt2 = CausalGPT2(directory)
    for exporter in ("torchscript", "dynamo"):
        file = work / f"{exporter}.onnx"
        checked_export(gpt2, gpt2.example(), gpt2.names(), file, dynamo=exporter == "dynamo")
        yield file
        drawn = work / f"{exporter}.{kind}"
        drawn.write_bytes(render(onnx_picture(file, f"{name}: ONNX by the {exporter} exporter"), kind))
        yield drawn


def _format(out: str | os.PathLike[str] | None, format: str | None) -> str:
    kind = format or ("dot" if out is None else file_path("out", out).suffix[1:])
    if kind not in FORMATS:
        raise InputError(
            f"the format is {kind!r}, but pictures are {' or '.join(FORMATS)}: end out in one, or say format"
        )
    if out is None and kind != "dot":
        raise InputError("an SVG needs a file: say which with -o")
    return kind


def _resolve(checkpoint: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    from kaoken.codegen.hub import resolve_model

    named = checkpoint if isinstance(checkpoint, str) else os.path.abspath(file_path("checkpoint", checkpoint))
    source = resolve_model(named, revision=revision, root=Path.cwd())
    return source.directory, source.name


def _require(what: str, packages: Iterable[str], extra: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise KaokenError(f'{what} needs the Python packages {", ".join(missing)}: `pip install "kaoken[{extra}]"`')


# DOT and SVG


def dot(picture: Picture) -> str:
    """The picture as DOT, the same text each time."""
    lines = [
        f"digraph {_quote(picture.title)} {{",
        f'  graph [label={_quote(picture.title)}, labelloc=t, fontname="Helvetica", ranksep=0.25, nodesep=0.2];',
        '  node [shape=box, style=filled, fontname="Helvetica", fontsize=10, margin="0.1,0.05", height=0.2];',
        "  edge [arrowsize=0.6];",
    ]
    for index, cluster in enumerate(picture.clusters):
        nodes = [
            f"{_quote(node.name)} [label={_quote(node.title, *node.lines)}, fillcolor={_quote(_COLORS[node.kind])}];"
            for node in cluster.nodes
        ]
        if cluster.label:
            lines += [f"  subgraph cluster_{index} {{", f"    label={_quote(cluster.label)};"]
            lines += [*(f"    {node}" for node in nodes), "  }"]
        else:
            lines += [f"  {node}" for node in nodes]
    lines += [f"  {_quote(source)} -> {_quote(target)};" for source, target in picture.edges]
    return "\n".join([*lines, "}", ""])


def _quote(*lines: str) -> str:
    """A DOT string of some lines, in which nothing is an escape or an entity, and what cannot be printed is a `?`."""
    shown = ("".join(each if each.isprintable() else "?" for each in line) for line in lines)
    escaped = (line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in shown)
    return '"' + "\\n".join(escaped) + '"'


def render(picture: Picture, format: str) -> bytes:
    """The picture in one of FORMATS; raises KaokenError where SVG needs a package that is not there."""
    text = dot(picture)
    if format == "dot":
        return text.encode()
    if find_spec("pygraphviz") is None:
        raise KaokenError(
            'SVG needs the Python package pygraphviz: `pip install "kaoken[graph]"`, or write a .dot file'
        )
    from pygraphviz import AGraph

    svg: bytes = AGraph(string=text).draw(format="svg", prog="dot")
    return svg


# Kaoken's graphs


def checkpoint_picture(directory: Path, name: str, *, before: bool = False, all_blocks: bool = False) -> Picture:
    """The picture of a checkpoint's graph, in which each rewritten op says which passes did what to it."""
    from kaoken.codegen.checkpoint import open_checkpoint
    from kaoken.codegen.families import read_graph

    graph = read_graph(open_checkpoint(directory))
    graph, notes = (graph, {}) if before else run_with_notes(graph)
    return graph_picture(
        graph, notes, f"{name}: Kaoken's graph {'before' if before else 'after'} its passes", all_blocks
    )


def run_with_notes(graph: Graph) -> tuple[Graph, dict[str, list[str]]]:
    """The graph after the passes, and by the name of each op that they changed, "pass: what it did"."""
    notes: dict[str, list[str]] = {}
    verify(graph)
    for rewrite in PIPELINE:
        rewritten = rewrite(graph)
        verify(rewritten)
        for (name, old), (_, new) in zip(_ops(graph), _ops(rewritten), strict=True):
            changes = list(_changes(old, new))
            if changes:
                notes.setdefault(name, []).append(f"{rewrite.__name__}: {'; '.join(changes)}")
        graph = rewritten
    return graph, notes


def _ops(graph: Graph) -> Iterator[tuple[str, Op]]:
    """What a pass may rewrite, by the name of its node."""
    yield "tokens", graph.decoder.embeddings.tokens
    if graph.decoder.embeddings.positions is not None:
        yield "positions", graph.decoder.embeddings.positions
    for index, block in enumerate(graph.blocks):
        yield from ((f"h.{index}.{part}", op) for part, op in block_ops(block).items())
        yield f"h.{index}.attention", block.attention.scale
    yield "ln_f", graph.decoder.norm
    yield "head", graph.head


def block_ops(block: Block) -> dict[str, Norm | Linear]:
    """A block's ops that have tensors, in order."""
    attention, mlp = block.sublayers
    linears = {**block.attention.linears, **block.mlp.linears}
    names = {"out": "attn_out", "gate": "mlp_gate", "up": "mlp_in", "down": "mlp_out"}
    named = {names.get(name, name): linear for name, linear in linears.items()}
    return {"ln_1": attention.before, **named, "ln_2": mlp.before}


def _changes(old: Op, new: Op) -> Iterator[str]:
    if isinstance(old, float):
        if old != new:
            yield f"scale {old:.6g} is now {new:.6g}"
        return
    before, after = _tensors(old), _tensors(new)
    for part in before | after:
        was, now = before.get(part), after.get(part)
        if was is None and now is not None:
            yield f"{part} made of {_names(now.sources)}"
        elif was is not None and now is None:
            yield f"{part} gone"
        elif was is not None and now is not None and was != now:
            yield _change(part, was, now)


def _change(part: str, was: Tensor, now: Tensor) -> str:
    if was.shape != now.shape:
        return f"{part} was {list(was.shape)}"
    added = [source for source in now.sources if source not in was.sources]
    return f"{part} takes in {_names(added)}" if added else f"{part} scaled"


def _tensors(op: Op) -> dict[str, Tensor]:
    if isinstance(op, Tensor):
        return {"table": op}
    parts = {name: getattr(op, name) for name in ("weight", "bias")}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def _names(sources: Iterable[str]) -> str:
    return ", ".join(sources)


def graph_picture(graph: Graph, notes: dict[str, list[str]], title: str, all_blocks: bool = False) -> Picture:
    """The picture of a graph; T is the number of positions of a pass."""
    embeddings = graph.decoder.embeddings
    tie = ("the head's own matrix",) if graph.tied else ()
    start = [
        Node("ids", "ids [T]", kind="end"),
        _node(notes, "tokens", "Gather tokens", *_tensor_lines(embeddings.tokens), *tie),
    ]
    edges, hidden = [("ids", "tokens")], "tokens"
    if embeddings.positions is not None:
        start.append(_node(notes, "positions", "Slice positions", *_tensor_lines(embeddings.positions)))
        start.append(Node("embedded", f"Add -> [T, {graph.width}]"))
        edges += [("tokens", "embedded"), ("positions", "embedded")]
        hidden = "embedded"
    clusters = [Cluster("", tuple(start))]
    for first, last in _runs(graph, notes, all_blocks):
        clusters.append(_block_cluster(graph, notes, first, last))
        edges += _block_edges(f"h.{first}", hidden, graph.blocks[first].mlp.gate is not None)
        hidden = f"h.{first}.add_2"
    end = (
        _node(notes, "ln_f", f"{_NORMS[graph.decoder.norm.kind]} ln_f", *_tensor_lines(graph.decoder.norm)),
        _node(notes, "head", f"Linear head -> [T, {graph.vocabulary}]", *_tensor_lines(graph.head)),
        Node("logits", f"logits [T, {graph.vocabulary}]", kind="end"),
    )
    edges += [(hidden, "ln_f"), ("ln_f", "head"), ("head", "logits")]
    return Picture(title, (*clusters, Cluster("", end)), tuple(edges))


def _runs(graph: Graph, notes: dict[str, list[str]], all_blocks: bool) -> list[tuple[int, int]]:
    """[first, last] of each run of blocks that would look alike."""
    runs: list[tuple[int, int]] = []
    for index, block in enumerate(graph.blocks):
        if (
            not all_blocks
            and index
            and _alike(graph, notes, index, block) == _alike(graph, notes, index - 1, graph.blocks[index - 1])
        ):
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _alike(graph: Graph, notes: dict[str, list[str]], index: int, block: Block) -> list[tuple[str, ...]]:
    """What a block's nodes say, whichever block it is."""
    nodes = _block_nodes(graph, notes, index, block)
    return [tuple(_anonymous(line, index) for line in (node.title, *node.lines)) for node in nodes]


def _anonymous(line: str, index: int) -> str:
    return line.replace(f"h.{index}.", "h.*.")


def _block_cluster(graph: Graph, notes: dict[str, list[str]], first: int, last: int) -> Cluster:
    attention, mlp = graph.blocks[first].attention, graph.blocks[first].mlp
    sizes = f"{attention.heads} heads of {attention.head_dim}, n_inner {mlp.inner}"
    nodes = tuple(_block_nodes(graph, notes, first, graph.blocks[first]))
    if first == last:
        return Cluster(f"block {first}: {sizes}", nodes)
    nodes = tuple(replace(node, lines=tuple(_anonymous(line, first) for line in node.lines)) for node in nodes)
    return Cluster(f"blocks {first} to {last}, x {last - first + 1}: {sizes}", nodes)


def _block_nodes(graph: Graph, notes: dict[str, list[str]], index: int, block: Block) -> Iterator[Node]:
    prefix, attention, ops = f"h.{index}", block.attention, block_ops(block)
    heads = f"{attention.heads} heads of {attention.dims}, causal, scale {attention.scale:.6g}"
    if attention.kv_heads < attention.heads:
        heads += f", {attention.kv_heads} of keys and values"
    if attention.rotary is not None:
        heads += ", rotary"

    def norm(name: str) -> Node:
        op = ops[name]
        assert isinstance(op, Norm)
        return _node(notes, f"{prefix}.{name}", f"{_NORMS[op.kind]} {name}", *_tensor_lines(op))

    def linear(name: str) -> Node:
        op = ops[name]
        assert isinstance(op, Linear)
        title = f"Linear {name} -> [T, {op.weight.shape[0]}]"
        return _node(notes, f"{prefix}.{name}", title, *_tensor_lines(op))

    yield norm("ln_1")
    yield from map(linear, ("query", "key", "value"))
    yield _node(notes, f"{prefix}.attention", f"Attention -> [T, {attention.width}]", heads)
    yield linear("attn_out")
    yield Node(f"{prefix}.add_1", f"Add -> [T, {graph.width}]")
    yield norm("ln_2")
    if block.mlp.gate is not None:
        yield linear("mlp_gate")
    yield linear("mlp_in")
    gated = "" if block.mlp.gate is None else " of the gate, times mlp_in"
    yield Node(f"{prefix}.activation", f"Activation {block.mlp.activation}{gated}")
    yield linear("mlp_out")
    yield Node(f"{prefix}.add_2", f"Add -> [T, {graph.width}]")


def _block_edges(prefix: str, hidden: str, gated: bool) -> Iterator[tuple[str, str]]:
    def own(*names: str) -> tuple[str, ...]:
        return tuple(f"{prefix}.{name}" for name in names)

    norm, query, key, value, attention, out, add = own(
        "ln_1", "query", "key", "value", "attention", "attn_out", "add_1"
    )
    yield hidden, norm
    for linear in (query, key, value):
        yield norm, linear
        yield linear, attention
    yield from [(attention, out), (out, add), (hidden, add)]
    chain = (add, *own("ln_2", "mlp_in", "activation", "mlp_out", "add_2"))
    yield from pairwise(chain)
    yield add, chain[-1]
    if gated:
        norm_2, gate, activation = own("ln_2", "mlp_gate", "activation")
        yield from [(norm_2, gate), (gate, activation)]


def _node(notes: dict[str, list[str]], name: str, title: str, *lines: str) -> Node:
    own = notes.get(name, [])
    return Node(name, title, (*lines, *own), "changed" if own else "op")


def _tensor_lines(op: Tensor | Norm | Linear) -> Iterator[str]:
    """The shape and the sources of each array, and what is not there."""
    tensors = _tensors(op)
    for part in ("table",) if isinstance(op, Tensor) else ("weight", "bias"):
        tensor = tensors.get(part)
        yield f"no {part}" if tensor is None else f"{part} {list(tensor.shape)} of {_names(tensor.sources)}"


# ONNX


def onnx_picture(file: Path, title: str) -> Picture:
    """The picture of an ONNX file: constants are lines of the ops that read them, and their values are left out."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    constants = {each.name: f"{each.name} {list(each.dims)}" for each in graph.initializer}
    constants |= {node.output[0]: "constant" for node in graph.node if node.op_type == "Constant"}
    ops = [node for node in graph.node if node.op_type != "Constant"]
    makers = {each.name: each.name for each in graph.input}
    makers |= {output: f"op {index}" for index, node in enumerate(ops) for output in node.output}
    inside: dict[str, list[Node]] = {}
    edges: dict[tuple[str, str], None] = {}
    for index, node in enumerate(ops):
        name = f"op {index}"
        lines = [constants[each] for each in node.input if each in constants and constants[each] != "constant"]
        inside.setdefault(_scope(node), []).append(Node(name, node.op_type, tuple(lines)))
        edges |= dict.fromkeys((makers[each], name) for each in node.input if each in makers)
    ends = [Node(each.name, f"{each.name} {_dimensions(each)}", kind="end") for each in graph.input]
    for each in graph.output:
        ends.append(Node(f"output {each.name}", f"{each.name} {_dimensions(each)}", kind="end"))
        edges[makers[each.name], f"output {each.name}"] = None
    clusters = [Cluster("", tuple(ends)), *(Cluster(label, tuple(nodes)) for label, nodes in inside.items())]
    return Picture(title, tuple(clusters), tuple(edges))


def _scope(node: Any) -> str:
    """The block that a node belongs to, by its name or what the dynamo exporter notes beside it."""
    for text in (node.name, *(each.value for each in node.metadata_props if "scope" in each.key)):
        found = _BLOCK.search(text)
        if found:
            return f"block {found[1]}"
    return ""


def _dimensions(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    return "[" + ", ".join(each.dim_param or str(each.dim_value) for each in dims) + "]"

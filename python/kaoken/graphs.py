"""Pictures of graphs: Kaoken's own before or after its rewrites, and ONNX files, as Graphviz DOT and as SVG.

Nothing here reads weights (but the head, where a tied checkpoint stores one all the same): an op knows its shapes.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from kaoken.arguments import file_path
from kaoken.cache import install
from kaoken.codegen.graph import Attention, Block, Graph, Head, Linear, Mlp, Norm, Stack, Tensor, verify
from kaoken.codegen.rewrites import PIPELINE
from kaoken.errors import InputError, KaokenError

FORMATS = ("dot", "svg")

_COLORS = {"op": "#f4f4f4", "changed": "#fff0c2", "end": "#dcebfa"}
_BLOCK = re.compile(r"blocks?[./_](\d+)")

_NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}

_SEES = {"past": "causal", "all": "both ways", "source": "of the source"}

_MOVED = "moved here from behind the sublayer before"

Op = Tensor | Norm | Linear | float
Edge = tuple[str, str]  # names of nodes


@dataclass(frozen=True)
class Node:
    """One box; `name` is unique in its picture. "changed" ops are those that a rewrite has changed."""

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
    edges: tuple[Edge, ...]


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
    rewrites; `all_blocks` draws blocks that are alike one by one. `onnx` puts the exports of torch's two exporters
    beside it: OUT.torchscript.onnx and OUT.dynamo.onnx, each with its picture, checked with onnxruntime.

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
    return source.path, source.name


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
    """The picture of a checkpoint's graph, in which each rewritten op says which rewrites did what to it."""
    from kaoken.codegen.checkpoint import open_checkpoint
    from kaoken.codegen.families import read_graph

    graph = read_graph(open_checkpoint(directory))
    graph, notes = (graph, {}) if before else run_with_notes(graph)
    return graph_picture(
        graph, notes, f"{name}: Kaoken's graph {'before' if before else 'after'} its rewrites", all_blocks
    )


def run_with_notes(graph: Graph) -> tuple[Graph, dict[str, list[str]]]:
    """The graph after the rewrites, and by the name of each op that they changed, "rewrite: what it did"."""
    notes: dict[str, list[str]] = {}
    verify(graph)
    for rewrite in PIPELINE:
        rewritten = rewrite(graph)
        verify(rewritten)
        behind = {id(each.after) for stack in graph.stacks for each in stack.sublayers if each.after is not None}
        for (name, old), (_, new) in zip(_slots(graph), _slots(rewritten), strict=True):
            changes = [_MOVED] if old is None and id(new) in behind else list(_changes(old, new))
            if changes:
                notes.setdefault(name, []).append(f"{rewrite.__name__}: {'; '.join(changes)}")
        graph = rewritten
    return graph, notes


def _slots(graph: Graph) -> Iterator[tuple[str, Op | None]]:
    """What a rewrite may change, by the name of its node; None where something can be and is not."""
    for view in _views(graph):
        embeddings = view.stack.embeddings
        yield view.name("tokens"), embeddings.tokens
        yield view.name("positions"), embeddings.positions
        yield view.name("types"), embeddings.types
        yield view.name("ln_e"), embeddings.norm
        yield view.name("projection"), embeddings.projection
        for index, block in enumerate(view.stack.blocks):
            yield from ((view.name(f"h.{index}.{name}"), op) for name, op in _block_slots(block))
        yield view.name("ln_f"), view.stack.norm
    if graph.head is not None:
        for index, layer in enumerate(graph.head.layers):
            yield f"layer_{index}", layer.linear
            yield f"ln_layer_{index}", layer.norm
        yield "head", graph.head.output


def _block_slots(block: Block) -> Iterator[tuple[str, Op | None]]:
    for number, sublayer in enumerate(block.sublayers, 1):
        body = sublayer.body
        yield f"ln_{number}", sublayer.before
        yield from ((_part_name(body, name), linear) for name, linear in body.linears.items())
        if isinstance(body, Attention):
            yield "query_norm", body.query_norm
            yield "key_norm", body.key_norm
            yield _part_name(body, "attention"), body.scale
        yield f"branch_ln_{number}", sublayer.branch
        yield f"post_ln_{number}", sublayer.after


def _part_name(body: Attention | Mlp, part: str) -> str:
    """The name in its block of what a body calls `part`."""
    if isinstance(body, Mlp):
        return {"gate": "mlp_gate", "up": "mlp_in", "down": "mlp_out"}.get(part, part)
    if body.sees == "source":
        return f"cross_{part}"
    return "attn_out" if part == "out" else part


def block_ops(block: Block) -> dict[str, Norm | Linear]:
    """A block's ops that have tensors, in order."""
    return {name: op for name, op in _block_slots(block) if isinstance(op, Norm | Linear)}


def _changes(old: Op | None, new: Op | None) -> Iterator[str]:
    if old is None or new is None:
        if new is not None:
            yield "new"
        return
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


@dataclass(frozen=True)
class _View:
    """A stack to draw."""

    stack: Stack
    owner: str = ""  # encoder or decoder, where there are both
    length: str = "T"  # of its sequences

    def name(self, name: str) -> str:
        """Of a node, unique in the picture."""
        return f"{self.owner}.{name}" if self.owner else name

    def namer(self, index: int) -> Callable[[str], str]:
        """What names the nodes of a block."""
        return lambda name: self.name(f"h.{index}.{name}")


def _views(graph: Graph) -> list[_View]:
    if graph.encoder is None or graph.decoder is None:
        return [_View(graph.stack)]
    return [_View(graph.encoder, "encoder", "S"), _View(graph.decoder, "decoder")]


def graph_picture(graph: Graph, notes: dict[str, list[str]], title: str, all_blocks: bool = False) -> Picture:
    """The picture of a graph; T is the number of positions of a pass, S that of a source."""
    clusters: list[Cluster] = []
    edges: list[Edge] = []
    for view in _views(graph):
        start, hidden = _draw_start(graph, view, notes, edges)
        clusters.append(Cluster("", tuple(start)))
        for first, last in _runs(view, notes, all_blocks):
            clusters.append(_block_cluster(view, notes, first, last))
            hidden = _connect_block(view, first, hidden, edges)
        clusters.append(Cluster("", tuple(_draw_end(graph, view, notes, hidden, edges))))
    return Picture(title, tuple(clusters), tuple(edges))


def _draw_start(graph: Graph, view: _View, notes: dict[str, list[str]], edges: list[Edge]) -> tuple[list[Node], str]:
    """The embeddings, and the name of what the first block reads."""
    embeddings, name = view.stack.embeddings, view.name
    tied = graph.tied and embeddings.tokens is graph.stack.embeddings.tokens
    tokens = [*_tensor_lines(embeddings.tokens), *(("the head's own matrix",) if tied else ())]
    nodes = [
        Node(name("ids"), f"ids [{view.length}]", kind="end"),
        _node(notes, name("tokens"), "Gather tokens", *tokens),
    ]
    edges.append((name("ids"), name("tokens")))
    added = [name("tokens")]
    if embeddings.positions is not None:
        added.append(name("positions"))
        nodes.append(_node(notes, added[-1], "Slice positions", *_tensor_lines(embeddings.positions)))
    if embeddings.types is not None:
        added.append(name("types"))
        nodes.append(Node(name("type_ids"), f"token types [{view.length}]", kind="end"))
        nodes.append(_node(notes, added[-1], "Gather types", *_tensor_lines(embeddings.types)))
        edges.append((name("type_ids"), name("types")))
    hidden = added[0]
    if len(added) > 1:
        hidden = name("embedded")
        nodes.append(Node(hidden, f"Add -> [{view.length}, {embeddings.width}]"))
        edges += [(each, hidden) for each in added]
    if embeddings.norm is not None:
        nodes.append(_norm_node(notes, name("ln_e"), embeddings.norm))
        edges.append((hidden, name("ln_e")))
        hidden = name("ln_e")
    if embeddings.projection is not None:
        title = f"Linear projection -> [{view.length}, {view.stack.width}]"
        nodes.append(_node(notes, name("projection"), title, *_tensor_lines(embeddings.projection)))
        edges.append((hidden, name("projection")))
        hidden = name("projection")
    for each, bias in _distances(view).values():
        nodes.append(Node(name(each), f"Bias by distance {each}", tuple(_tensor_lines(bias))))
    return nodes, hidden


def _draw_head(head: Head, view: _View, notes: dict[str, list[str]], chain: list[str]) -> Iterator[Node]:
    rows = "1" if head.pooling else view.length

    def linear(name: str, op: Linear) -> Node:
        chain.append(name)
        return _node(notes, name, f"Linear {name} -> [{rows}, {op.weight.shape[0]}]", *_tensor_lines(op))

    if head.pooling:
        chain.append("pool")
        yield Node("pool", f"Pool {', '.join(head.pooling)} -> [1, {len(head.pooling) * view.stack.width}]")
    for index, layer in enumerate(head.layers):
        yield linear(f"layer_{index}", layer.linear)
        if layer.activation is not None:
            chain.append(f"activation_{index}")
            yield Node(chain[-1], f"Activation {layer.activation}")
        if layer.norm is not None:
            chain.append(f"ln_layer_{index}")
            yield _norm_node(notes, chain[-1], layer.norm)
    if head.output is not None:
        yield linear("head", head.output)
    if head.normalize:
        chain.append("normalize")
        yield Node("normalize", "Normalize")
    what = "vectors" if head.output is None else "logits"
    chain.append(what)
    yield Node(what, f"{what} [{rows}, {head.width_of(view.stack.width)}]", kind="end")


def _distances(view: _View) -> dict[int, tuple[str, Tensor]]:
    """The name of each table of biases by distance and the table, which blocks may share, by the table's id."""
    found: dict[int, tuple[str, Tensor]] = {}
    for sublayer in view.stack.sublayers:
        bias = sublayer.body.distance_bias if isinstance(sublayer.body, Attention) else None
        if bias is not None:
            found.setdefault(id(bias), (f"distances_{len(found)}", bias))
    return found


def _draw_end(graph: Graph, view: _View, notes: dict[str, list[str]], hidden: str, edges: list[Edge]) -> Iterator[Node]:
    """What is behind the last block: a decoder's logits, an encoder's outputs."""
    norm, name = view.stack.norm, view.name
    chain = [hidden]
    if norm is not None:
        chain.append(name("ln_f"))
        yield _norm_node(notes, name("ln_f"), norm)
    if graph.head is not None and view.stack is graph.stack:
        yield from _draw_head(graph.head, view, notes, chain)
    else:
        chain.append(name("vectors"))
        yield Node(name("vectors"), f"vectors [{view.length}, {view.stack.width}]", kind="end")
    edges += pairwise(chain)


def _runs(view: _View, notes: dict[str, list[str]], all_blocks: bool) -> list[tuple[int, int]]:
    """[first, last] of each run of blocks that would look alike."""
    runs: list[tuple[int, int]] = []
    for index in range(len(view.stack.blocks)):
        if not all_blocks and index and _alike(view, notes, index) == _alike(view, notes, index - 1):
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _alike(view: _View, notes: dict[str, list[str]], index: int) -> list[tuple[str, ...]]:
    """What a block's nodes say, whichever block it is."""
    nodes = _block_nodes(view, notes, index)
    return [tuple(_anonymous(line, index) for line in (node.title, *node.lines)) for node in nodes]


def _anonymous(line: str, index: int) -> str:
    return line.replace(f"h.{index}.", "h.*.")


def _block_cluster(view: _View, notes: dict[str, list[str]], first: int, last: int) -> Cluster:
    attention, mlp = view.stack.blocks[first].attention, view.stack.blocks[first].mlp
    sizes = f"{attention.heads} heads of {attention.head_dim}, n_inner {mlp.inner}"
    nodes, owner = tuple(_block_nodes(view, notes, first)), f"{view.owner} " if view.owner else ""
    if first == last:
        return Cluster(f"{owner}block {first}: {sizes}", nodes)
    nodes = tuple(replace(node, lines=tuple(_anonymous(line, first) for line in node.lines)) for node in nodes)
    return Cluster(f"{owner}blocks {first} to {last}, x {last - first + 1}: {sizes}", nodes)


def _block_nodes(view: _View, notes: dict[str, list[str]], index: int) -> Iterator[Node]:
    name = view.namer(index)
    for number, sublayer in enumerate(view.stack.blocks[index].sublayers, 1):
        body = sublayer.body
        if sublayer.before is not None:
            kept = ("goes on as the stream",) if sublayer.replaces else ()
            yield _norm_node(notes, name(f"ln_{number}"), sublayer.before, *kept)
        for own, linear in body.linears.items():
            if own in ("out", "down"):
                yield _inner_node(view, notes, name, body)
            own = _part_name(body, own)
            length = "S" if own in ("cross_key", "cross_value") else view.length
            title = f"Linear {own} -> [{length}, {linear.weight.shape[0]}]"
            yield _node(notes, name(own), title, *_tensor_lines(linear))
            norm = _norm_behind(body, own)
            if norm is not None:
                whole = isinstance(body, Attention) and body.whole_norms
                yield _norm_node(notes, name(f"{own}_norm"), norm, "of all heads" if whole else "of each head")
        if sublayer.branch is not None:
            yield _norm_node(notes, name(f"branch_ln_{number}"), sublayer.branch)
        yield Node(name(f"add_{number}"), f"Add -> [{view.length}, {view.stack.width}]")
        if sublayer.after is not None:
            yield _norm_node(notes, name(f"post_ln_{number}"), sublayer.after)


def _norm_behind(body: Attention | Mlp, name: str) -> Norm | None:
    """The norm of what the linear of this name gives."""
    norms = {"query": body.query_norm, "key": body.key_norm} if isinstance(body, Attention) else {}
    return norms.get(name)


def _inner_node(view: _View, notes: dict[str, list[str]], name: Callable[[str], str], body: Attention | Mlp) -> Node:
    """What is between the linears of a body."""
    if isinstance(body, Mlp):
        gated = "" if body.gate is None else " of the gate, times mlp_in"
        return Node(name("activation"), f"Activation {body.activation}{gated}")
    heads = f"{body.heads} heads of {body.dims}, {_SEES[body.sees]}, scale {body.scale:.6g}"
    if body.kv_heads < body.heads:
        heads += f", {body.kv_heads} of keys and values"
    if body.rotary is not None:
        heads += ", rotary"
    if body.window is not None:
        heads += f", a window of {body.window}"
    if body.distance_bias is not None:
        heads += f", {_distances(view)[id(body.distance_bias)][0]}"
    if body.relative is not None:
        tables = {"keys": body.relative.keys, "queries": body.relative.queries}
        named = " and ".join(name for name, table in tables.items() if table is not None)
        heads += f", {named} of {body.relative.count} distances"
    return _node(notes, name(_part_name(body, "attention")), f"Attention -> [{view.length}, {body.width}]", heads)


def _connect_block(view: _View, index: int, hidden: str, edges: list[Edge]) -> str:
    """Adds the edges of a block that reads `hidden`; returns what the next one reads."""
    name, block, start = view.namer(index), view.stack.blocks[index], hidden
    for number, sublayer in enumerate(block.sublayers, 1):
        body, entry = sublayer.body, start if block.parallel else hidden
        read = entry
        if sublayer.before is not None:
            read = name(f"ln_{number}")
            edges.append((entry, read))
        stream, add = read if sublayer.replaces else hidden, name(f"add_{number}")
        edges += _attention_edges(view, name, body, read) if isinstance(body, Attention) else _mlp_edges(name, read)
        out = name(_part_name(body, list(body.linears)[-1]))
        if sublayer.branch is not None:
            edges.append((out, name(f"branch_ln_{number}")))
            out = name(f"branch_ln_{number}")
        edges += [(out, add), (stream, add)]
        if isinstance(body, Mlp) and body.gate is not None:
            edges += [(read, name("mlp_gate")), (name("mlp_gate"), name("activation"))]
        hidden = add
        if sublayer.after is not None:
            hidden = name(f"post_ln_{number}")
            edges.append((add, hidden))
    return hidden


def _mlp_edges(name: Callable[[str], str], read: str) -> Iterator[Edge]:
    return pairwise((read, name("mlp_in"), name("activation"), name("mlp_out")))


def _attention_edges(view: _View, name: Callable[[str], str], body: Attention, read: str) -> Iterator[Edge]:
    """A source is the encoder's outputs, which keys and values alone read."""
    query, key, value, attention, out = (
        name(_part_name(body, each)) for each in ("query", "key", "value", "attention", "out")
    )
    for linear in (query, key, value):
        yield "encoder.vectors" if body.sees == "source" and linear != query else read, linear
        if _norm_behind(body, linear.rpartition(".")[2]) is None:
            yield linear, attention
        else:
            yield from pairwise((linear, f"{linear}_norm", attention))
    if body.distance_bias is not None:
        yield view.name(_distances(view)[id(body.distance_bias)][0]), attention
    yield attention, out


def _norm_node(notes: dict[str, list[str]], name: str, norm: Norm, *lines: str) -> Node:
    return _node(notes, name, f"{_NORMS[norm.kind]} {name.rpartition('.')[2]}", *_tensor_lines(norm), *lines)


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

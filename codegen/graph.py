"""What a model computes, in a short closed vocabulary, with its tensors; and what the rewrites change.

A model is an encoder, a decoder, or both, and a head behind the last of them, which an encoder may lack. Each is a
stack of blocks, a block is a list of sublayers, and a sublayer adds what its body makes of the residual stream to it.
Names of tensors and fields are known to the reader of a checkpoint alone.

Tensors are lazy: an op knows the shape of its weights and how to compute them, and nothing is read until emission asks,
a piece of a matrix at a time. That keeps codegen's memory small, and lets the plan be made from headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .layout import PANEL, round_up

Array = NDArray[np.float64]

PIECE_BYTES = 8 << 20  # of a matrix in float64 that codegen works on at a time
PARTS = 3  # of a matrix, with some 20 bits of its values each


@dataclass(frozen=True)
class Tensor:
    """A float64 array to be: its shape, the checkpoint tensors it comes from, and how to compute rows [start, stop)."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    rows: Callable[[int, int], Array]

    def load(self) -> Array:
        """The whole array."""
        return self.rows(0, self.shape[0])

    def map(self, function: Callable[[Array], Array], *others: Tensor) -> Tensor:
        """The array after `function`, which works on any rows by themselves; `others` only add to the sources."""
        return Tensor(self.shape, merge_sources(self, *others), lambda start, stop: function(self.rows(start, stop)))


def constant(count: int, value: float) -> Tensor:
    """[count], each `value`."""
    return Tensor((count,), (), lambda start, stop: np.full(stop - start, value))


def merge_sources(*tensors: Tensor) -> tuple[str, ...]:
    """The sources of all, each once, in order."""
    return tuple(dict.fromkeys(source for tensor in tensors for source in tensor.sources))


def stack(*tensors: Tensor) -> Tensor:
    """The rows of all, one tensor behind another."""
    ends = np.cumsum([tensor.shape[0] for tensor in tensors]).tolist()

    def rows(start: int, stop: int) -> Array:
        parts = []
        for tensor, end in zip(tensors, ends, strict=True):
            begin = end - tensor.shape[0]
            if start < end and begin < stop:
                parts.append(tensor.rows(max(start, begin) - begin, min(stop, end) - begin))
        return np.concatenate(parts)

    return Tensor((ends[-1], *tensors[0].shape[1:]), merge_sources(*tensors), rows)


def part(tensor: Tensor, begin: int, end: int) -> Tensor:
    """The rows [begin, end)."""
    shape = (end - begin, *tensor.shape[1:])
    return Tensor(shape, tensor.sources, lambda start, stop: tensor.rows(begin + start, begin + stop))


def gather(tensor: Tensor, chosen: NDArray[np.int64]) -> Tensor:
    """The chosen rows in their order; those that are asked for together should lie close together."""

    def rows(start: int, stop: int) -> Array:
        wanted = chosen[start:stop]
        first = int(wanted.min())
        return tensor.rows(first, int(wanted.max()) + 1)[wanted - first]

    return Tensor((len(chosen), *tensor.shape[1:]), tensor.sources, rows)


def pieces(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in runs of whole panels whose float64 rows of `width` stay within PIECE_BYTES, if a panel does."""
    step = max(1, PIECE_BYTES // (8 * width * PANEL)) * PANEL
    return ((first, min(stop, first + step)) for first in range(start, stop, step))


def matvec(matrix: Tensor, vector: Array, start: int, stop: int) -> Array:
    """Rows [start, stop) of matrix @ vector, a piece of the matrix at a time.

    Every row is summed in ascending order: a BLAS's bits would depend on its threads and the processor.
    """
    total = np.zeros(stop - start)
    for first, last in pieces(start, stop, matrix.shape[1]):
        rows = matrix.rows(first, last)
        for column, factor in enumerate(vector):
            total[first - start : last - start] += rows[:, column] * factor
    return total


def transpose(matrix: Tensor) -> Tensor:
    """[rows, columns] -> [columns, rows], of a matrix that memory holds whole."""
    return Tensor(matrix.shape[::-1], matrix.sources, lambda start, stop: matrix.load()[:, start:stop].T)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, of which memory holds the right one whole.

    A BLAS sums in an order of its own, so it gets parts of the matrices whose sums are exact in any order (Ozaki et
    al., Numerical Algorithms 59, 2012). What is left out is below the rounding of float64.
    """

    def rows(start: int, stop: int) -> Array:
        firsts, seconds = _exact_parts(left.rows(start, stop)), _exact_parts(right.load().T)
        pairs = sorted(np.ndindex(PARTS, PARTS), key=sum)
        return sum((firsts[i] @ seconds[j].T for i, j in pairs if i + j < PARTS), np.zeros(()))

    return Tensor((left.shape[0], right.shape[1]), merge_sources(left, right), rows)


def _exact_parts(matrix: Array) -> list[Array]:
    """Parts that add up to the matrix, each of whole numbers of so few bits, times a power of two for each row, that
    float64 holds any sum of products with another such row."""
    bits = (53 - matrix.shape[1].bit_length()) // 2
    parts = []
    for _ in range(PARTS):
        exponents = np.frexp(np.abs(matrix).max(axis=1, keepdims=True))[1]
        units = np.ldexp(1.0, exponents - bits)
        parts.append(np.rint(matrix / units) * units)
        matrix = matrix - parts[-1]
    return parts


@dataclass(frozen=True)
class Norm:
    """(x - mean) / sqrt(variance + epsilon), then * weight + bias unless they are None; "rms" takes the mean for 0."""

    kind: str  # "layer" or "rms"
    epsilon: float
    weight: Tensor | None  # [width]
    bias: Tensor | None  # [width]

    @property
    def bare(self) -> bool:
        """Whether nothing follows the normalization."""
        return self.weight is None and self.bias is None


@dataclass(frozen=True)
class Linear:
    """x weight^T + bias."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None  # [outputs]

    @property
    def name(self) -> str:
        """Of the matrix, as the checkpoint names it ("h.0.attn.c_attn")."""
        return self.weight.sources[0].removesuffix(".weight")

    def map(self, change: Callable[[Tensor], Tensor]) -> Linear:
        """With the weight and the bias changed."""
        return Linear(change(self.weight), self.bias and change(self.bias))

    def scaled(self, factor: float) -> Linear:
        """What gives `factor` times as much."""
        return self if factor == 1.0 else self.map(lambda tensor: tensor.map(lambda rows: rows * factor))


@dataclass(frozen=True)
class Rotary:
    """Turns dimensions i and i + half of queries and keys by position * frequencies[i] (RoFormer, arXiv:2104.09864)."""

    frequencies: tuple[float, ...]  # of each pair of a head's dimensions, in radians a position


@dataclass(frozen=True)
class Relative:
    """Keys and queries that stand for distances, as disentangled attention has them (DeBERTa, arXiv:2006.03654).

    The distance of a key from a query has a bucket b, and query . keys[b] + queries[b] . key is added to query . key,
    or as much of that as there is.
    """

    buckets: Tensor  # [2 * limit], at key position - query position + limit: each the one before it or that + 1
    keys: Tensor | None  # [heads, number of buckets, dims], as are the queries
    queries: Tensor | None

    @property
    def tables(self) -> list[Tensor]:
        """Those that there are."""
        return [table for table in (self.keys, self.queries) if table is not None]

    @property
    def count(self) -> int:
        """Of buckets."""
        return self.tables[0].shape[1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Relative:
        """With each table changed."""
        return replace(self, keys=self.keys and change(self.keys), queries=self.queries and change(self.queries))


@dataclass(frozen=True)
class Attention:
    """out(softmax(scale * (query . key + relative) + distance_bias) value).

    Heads of queries and keys go through norms, where there are any, before they are turned: each head by itself or,
    with `whole_norms`, all heads of a position together (OLMo 2, arXiv:2501.00656).

    A position sees itself and those before it ("past"), its whole sequence ("all"), or the encoder's outputs
    ("source"), of which keys and values are then made. Consecutive heads share a key and value head where there are
    fewer of those.

    With a window of `w` positions it sees no more of the past than the last w, itself among them (Mistral,
    arXiv:2310.06825), and of its whole sequence those at a distance of at most w // 2 (Longformer, arXiv:2004.05150).
    """

    heads: int
    kv_heads: int
    head_dim: int  # of the checkpoint; the linears may have more, which are zero
    query: Linear  # [heads * dims, width]
    key: Linear  # [kv_heads * dims, width], as is the value; under "source" the encoder's width
    value: Linear
    out: Linear  # [width, heads * dims]
    scale: float
    rotary: Rotary | None = None
    sees: str = "past"  # or "all" or "source"
    distance_bias: Tensor | None = None  # [heads, 2 * limit], at key position - query position + limit; may be shared
    window: int | None = None
    relative: Relative | None = None
    query_norm: Norm | None = None  # "rms", [norm_widths[0]]
    key_norm: Norm | None = None  # [norm_widths[1]]
    whole_norms: bool = False

    @property
    def bias_of_keys(self) -> bool:
        """Whether scores depend on the keys' bias: otherwise it adds the same to all scores of a row."""
        by_distance = self.relative is not None and self.relative.queries is not None
        return self.rotary is not None or self.key_norm is not None or by_distance

    @property
    def reach(self) -> int | None:
        """The largest distance at which a position sees another; None: any."""
        if self.window is None:
            return None
        return self.window - 1 if self.sees == "past" else self.window // 2

    @property
    def keeps_window(self) -> bool:
        """Whether a cache may forget keys and values: later positions see no more of them than a window."""
        return self.window is not None and self.sees == "past"

    @property
    def width(self) -> int:
        """Of all queries together."""
        return self.query.weight.shape[0]

    @property
    def dims(self) -> int:
        """Of a head, as the linears have it."""
        return self.width // self.heads

    @property
    def norm_widths(self) -> tuple[int, int]:
        """Of the norm of queries and of that of keys."""
        return (self.width, self.kv_heads * self.dims) if self.whole_norms else (self.dims, self.dims)

    @property
    def group_panels(self) -> int:
        """Panels of all queries that share a key."""
        return self.width // self.kv_heads // PANEL

    @property
    def padded_dims(self) -> int:
        """Of a head in whole panels; under rotary each half of it."""
        return round_up(self.head_dim) if self.rotary is None else 2 * round_up(self.head_dim // 2)

    @property
    def linears(self) -> dict[str, Linear]:
        return {"query": self.query, "key": self.key, "value": self.value, "out": self.out}


@dataclass(frozen=True)
class Mlp:
    """down(activation(up(x))) or, with a gate, down(activation(gate(x)) * up(x))."""

    up: Linear  # [inner, width]
    down: Linear  # [width, inner]
    activation: str  # gelu_tanh, gelu_erf, relu, silu or tanh
    gate: Linear | None = None  # [inner, width]

    @property
    def inner(self) -> int:
        return self.up.weight.shape[0]

    @property
    def linears(self) -> dict[str, Linear]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}


@dataclass(frozen=True)
class Sublayer:
    """x = after(x + branch(body(before(x)))); a norm that is None changes nothing.

    `before` is a pre-norm, `after` a post-norm, and `branch` a norm of what is added. With `replaces` the stream takes
    what `before` gives, as it does where that was the post-norm of the sublayer in front: x = before(x), then
    x + branch(body(x)).
    """

    body: Attention | Mlp
    before: Norm | None = None
    after: Norm | None = None
    replaces: bool = False
    branch: Norm | None = None


@dataclass(frozen=True)
class Block:
    """Sublayers one after another: attention, in the decoder of an encoder-decoder attention to the source, an MLP.

    With `parallel` each reads the stream in front of the block, and what they add is added together (GPT-J; Wang and
    Komatsuzaki, 2021).
    """

    sublayers: tuple[Sublayer, ...]
    parallel: bool = False

    @property
    def attention(self) -> Attention:
        """To the sequence itself."""
        (found,) = (each for each in self._attentions() if each.sees != "source")
        return found

    @property
    def cross(self) -> Attention | None:
        """To the source."""
        return next((each for each in self._attentions() if each.sees == "source"), None)

    def _attentions(self) -> list[Attention]:
        return [each.body for each in self.sublayers if isinstance(each.body, Attention)]

    @property
    def mlp(self) -> Mlp:
        (found,) = (each.body for each in self.sublayers if isinstance(each.body, Mlp))
        return found


@dataclass(frozen=True)
class Embeddings:
    """projection(norm(tokens[id] + positions[position] + types[type])), or as much of that as there is."""

    tokens: Tensor  # [vocabulary, width]; the head's own weight where they are tied
    positions: Tensor | None  # [limit, width]
    types: Tensor | None = None  # [token types, width]; a token's type is 0 where nothing says another
    norm: Norm | None = None
    projection: Linear | None = None  # [the residual stream's width, width]

    @property
    def width(self) -> int:
        """Of the tables."""
        return self.tokens.shape[1]


@dataclass(frozen=True)
class Stack:
    """Embeddings, blocks, and a norm behind them where there is one."""

    embeddings: Embeddings
    blocks: tuple[Block, ...]
    norm: Norm | None
    limit: int  # positions that a sequence may have

    @property
    def width(self) -> int:
        """Of the residual stream."""
        projection = self.embeddings.projection
        return self.embeddings.width if projection is None else projection.weight.shape[0]

    @property
    def sublayers(self) -> list[Sublayer]:
        """Of all blocks, in order."""
        return [each for block in self.blocks for each in block.sublayers]

    @property
    def side_by_side(self) -> list[Sublayer]:
        """Those of blocks that are parallel."""
        return [each for block in self.blocks if block.parallel for each in block.sublayers]

    def map(self, rewrite: Callable[[Sublayer], Sublayer]) -> Stack:
        """The stack with each sublayer rewritten; those that are one stay one."""
        rewritten = {key: rewrite(each) for key, each in {id(each): each for each in self.sublayers}.items()}
        blocks = (
            replace(block, sublayers=tuple(rewritten[id(each)] for each in block.sublayers)) for block in self.blocks
        )
        return replace(self, blocks=tuple(blocks))

    def map_bodies(self, rewrite: Callable[[Attention | Mlp], Attention | Mlp]) -> Stack:
        """The stack with the body of each sublayer rewritten; those that are one stay one."""
        bodies = {id(each.body): each.body for each in self.sublayers}
        rewritten = {key: rewrite(body) for key, body in bodies.items()}
        return self.map(lambda sublayer: replace(sublayer, body=rewritten[id(sublayer.body)]))


@dataclass(frozen=True)
class Layer:
    """Of a head: norm(activation(linear(x))), or as much of that as there is."""

    linear: Linear
    activation: str | None = None  # as of an Mlp
    norm: Norm | None = None


# What a head can make of the positions of a text. The formulas are those of sentence-transformers' Pooling.
POOLINGS = ("first", "max", "mean", "mean_sqrt_len", "weighted_mean", "last")


@dataclass(frozen=True)
class Head:
    """What stands behind the last norm: output(layers(x)), x being each position or what a text's are pooled to."""

    output: Linear | None = None  # [outputs, width]
    layers: tuple[Layer, ...] = ()
    pooling: tuple[str, ...] = ()  # some of POOLINGS, whose results follow each other; none: each position by itself
    normalize: bool = False  # what comes out, to length 1

    def width_of(self, stream: int) -> int:
        """Of what comes out, where the stack is `stream` wide."""
        if self.output is not None:
            return self.output.weight.shape[0]
        return self.layers[-1].linear.weight.shape[0] if self.layers else max(1, len(self.pooling)) * stream


@dataclass(frozen=True)
class Task:
    """What the outputs are for. No arithmetic depends on it."""

    name: str  # as the hub calls it: "text-classification", "fill-mask" ...; "": what models of the kind are for
    labels: tuple[str, ...] = ()  # of each output
    function: str = ""  # what makes probabilities of a classifier's logits: "softmax", "sigmoid" or "none"
    score: str = ""  # the same for the score of a reranker


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that end a text, those that begin and pad one, and what a decoder starts from; within the vocabulary."""

    eos: tuple[int, ...]
    bos: int | None
    pad: int | None
    start: int | None = None  # of the decoder of an encoder-decoder


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An encoder, a decoder, or both: then the decoder attends to the encoder's outputs. A decoder has a head."""

    encoder: Stack | None = None
    decoder: Stack | None = None
    head: Head | None = None  # of a decoder its logits alone
    task: Task = Task("")
    special: SpecialTokens
    family: str = ""  # the model_type by which read_graph() found its module; nothing depends on it

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Those that there are, the encoder first."""
        return tuple(stack for stack in (self.encoder, self.decoder) if stack is not None)

    @property
    def stack(self) -> Stack:
        """The one that outputs come from."""
        return self.stacks[-1]

    @property
    def kind(self) -> str:
        """ "encoder", "decoder" or "encoder-decoder"."""
        return "-".join(name for name in ("encoder", "decoder") if getattr(self, name) is not None)

    @property
    def tied(self) -> bool:
        """Whether the matrix of logits is the token table too."""
        output = None if self.head is None else self.head.output
        return output is not None and output.weight is self.stack.embeddings.tokens

    @property
    def width(self) -> int:
        """Of the residual stream that outputs come from."""
        return self.stack.width

    @property
    def vocabulary(self) -> int:
        """Rows of the token table."""
        return self.stack.embeddings.tokens.shape[0]

    @property
    def output_width(self) -> int:
        """Of what the head gives or, where there is none, of the residual stream."""
        return self.width if self.head is None else self.head.width_of(self.width)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Of the stack that outputs come from."""
        return self.stack.blocks

    def map(self, rewrite: Callable[[Sublayer], Sublayer]) -> Graph:
        """The graph with each sublayer of each stack rewritten."""
        return self.map_stacks(lambda stack: stack.map(rewrite))

    def map_bodies(self, rewrite: Callable[[Attention | Mlp], Attention | Mlp]) -> Graph:
        """The graph with the body of each sublayer of each stack rewritten."""
        return self.map_stacks(lambda stack: stack.map_bodies(rewrite))

    def map_stacks(self, rewrite: Callable[[Stack], Stack]) -> Graph:
        """The graph with each stack rewritten."""
        encoder = None if self.encoder is None else rewrite(self.encoder)
        return replace(self, encoder=encoder, decoder=None if self.decoder is None else rewrite(self.decoder))


def verify(graph: Graph) -> None:
    """Checks that all shapes fit each other; run on the graph before and after each rewrite."""
    if not graph.stacks or (graph.decoder is not None and (graph.head is None or graph.head.output is None)):
        raise AssertionError("a graph has an encoder, or a decoder with a head that gives logits, or both")
    for stack in graph.stacks:
        source = None if graph.encoder is None or stack is graph.encoder else graph.encoder.width
        _verify_stack(stack, source)
    if graph.head is not None:
        _verify_head(graph.head, graph.width)


def _verify_head(head: Head, width: int) -> None:
    if not set(head.pooling) <= set(POOLINGS):
        raise AssertionError(f"a head pools by {head.pooling}, of which the graph knows {POOLINGS}")
    width *= max(1, len(head.pooling))
    for layer in head.layers:
        outputs = layer.linear.weight.shape[0]
        _expect_linear(layer.linear, outputs, width)
        _expect_norm(layer.norm, outputs)
        width = outputs
    if head.output is not None:
        _expect_linear(head.output, head.output.weight.shape[0], width)


def _verify_stack(stack: Stack, source: int | None) -> None:
    """`source` is the width of the encoder that the stack attends to."""
    width, embeddings = stack.width, stack.embeddings
    if embeddings.positions is not None:
        _expect(embeddings.positions, (stack.limit, embeddings.width))
    if embeddings.types is not None:
        _expect(embeddings.types, (embeddings.types.shape[0], embeddings.width))
    if embeddings.projection is not None:
        _expect_linear(embeddings.projection, width, embeddings.width)
    _expect_norm(embeddings.norm, embeddings.width)
    if any(each.after is not None or each.replaces for each in stack.side_by_side):
        raise AssertionError("sublayers side by side change a stream that the others read")
    norms = [stack.norm]
    for sublayer in stack.sublayers:
        norms += [sublayer.before, sublayer.after, sublayer.branch]
        if sublayer.replaces and sublayer.before is None:
            raise AssertionError("a sublayer replaces the stream by what its norm gives, but has none before it")
        if isinstance(sublayer.body, Attention):
            _verify_attention(sublayer.body, width, source, stack.limit)
        else:
            body = sublayer.body
            shapes = {"gate": (body.inner, width), "up": (body.inner, width), "down": (width, body.inner)}
            for name, linear in body.linears.items():
                _expect_linear(linear, *shapes[name])
    for norm in norms:
        _expect_norm(norm, width)


def _verify_attention(body: Attention, width: int, source: int | None, limit: int) -> None:
    if body.sees not in ("past", "all", "source"):
        raise AssertionError(f"attention sees {body.sees!r}, which is nothing that the graph knows")
    if body.window is not None and body.window < 1:
        raise AssertionError(f"attention has a window of {body.window} positions, in which it does not see itself")
    inputs = width
    if body.sees == "source":
        if source is None or {body.rotary, body.distance_bias, body.window, body.relative} != {None}:
            raise AssertionError("attention to a source needs an encoder, and knows no distances from it")
        inputs = source
    shared = body.kv_heads * body.dims
    shapes = {"query": (body.width, width), "key": (shared, inputs), "value": (shared, inputs)}
    shapes["out"] = (width, body.width)
    for name, linear in body.linears.items():
        _expect_linear(linear, *shapes[name])
    for norm, over in zip((body.query_norm, body.key_norm), body.norm_widths, strict=True):
        _expect_norm(norm, over)
        if norm is not None and (norm.kind, norm.bias) != ("rms", None):
            raise AssertionError("attention has a norm of heads that is no RMSNorm, or has a bias")
    if body.distance_bias is not None:
        _expect(body.distance_bias, (body.heads, 2 * limit))
    if body.relative is not None:
        _verify_relative(body, body.relative, limit)


def _verify_relative(body: Attention, relative: Relative, limit: int) -> None:
    if body.rotary is not None:
        raise AssertionError("attention turns its heads, which keys and queries of distances do not know")
    if not relative.tables:
        raise AssertionError("attention has buckets of distances, and neither keys nor queries for them")
    for table in relative.tables:
        _expect(table, (body.heads, relative.count, body.dims))
    _expect(relative.buckets, (2 * limit,))


def _expect_norm(norm: Norm | None, width: int) -> None:
    for vector in () if norm is None else (norm.weight, norm.bias):
        if vector is not None:
            _expect(vector, (width,))


def _expect_linear(linear: Linear, outputs: int, inputs: int) -> None:
    _expect(linear.weight, (outputs, inputs))
    if linear.bias is not None:
        _expect(linear.bias, (outputs,))


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise AssertionError(f"{' + '.join(tensor.sources)}: shape {tensor.shape} where the graph needs {shape}")


def check_ready(graph: Graph) -> None:
    """Asserts what the kernels rely on, behind the last rewrite: whatever one has left would be left out silently."""
    for stack in graph.stacks:
        name = "" if len(graph.stacks) == 1 else "encoder " if stack is graph.encoder else "decoder "
        sees = ["all"] if stack is graph.encoder else ["past"] if graph.encoder is None else ["past", "source"]
        if graph.kind == "encoder" and stack.blocks[0].attention.sees == "past":  # a decoder that makes no logits
            sees = ["past"]
        for index, block in enumerate(stack.blocks):
            _check_block(block, sees, f"{name}block {index}")
        where = f"the {name}stack" if name else "the model"
        _require(stack.norm is not None, where, "a norm behind the last block")
        _check_embeddings(stack.embeddings, where)
        if stack is graph.encoder:
            _require(_complete(stack.norm), where, "a weight and a bias of an encoder's final norm")
        elif stack.norm is not None:
            gained = stack.norm.bias is None or stack.norm.weight is not None
            _require(gained, where, "a weight of the final norm where it has a bias")
    head = graph.head
    if head is not None:
        where = "the head"
        _require(graph.decoder is None or head == Head(head.output), where, "no more than logits behind a decoder")
        for layer in head.layers:
            _require(layer.linear.bias is not None, where, "a bias of its layers")
            _require(_complete(layer.norm), where, "a weight and a bias of its norms")


def _check_embeddings(embeddings: Embeddings, where: str) -> None:
    norm, projection = embeddings.norm, embeddings.projection
    if projection is None:
        _require(_complete(norm), where, "a weight and a bias of the embeddings' norm")
    else:
        _require(norm is None or norm.bare, where, "no weight and no bias of a norm that is projected")
        _require(projection.bias is not None, where, "a bias of the embeddings' projection")


def _check_block(block: Block, sees: list[str], where: str) -> None:
    """`sees` is what its attentions have to see, in order; the MLP stands behind them."""
    bodies = [each.body.sees if isinstance(each.body, Attention) else "" for each in block.sublayers]
    _require(bodies == [*sees, ""], where, f"attention that sees {' and '.join(sees)}, and an MLP behind it")
    _require(not block.parallel or len(bodies) == 2, where, "no attention to a source beside other sublayers")
    for sublayer in block.sublayers:
        body, before = sublayer.body, sublayer.before
        _require(sublayer.after is None, where, "no norms behind sublayers")
        _require(_complete(sublayer.branch), where, "a weight and a bias of norms of branches")
        alone = len(sees) == 1 and not block.parallel
        _require(sublayer.branch is None or alone, where, "no norms of branches side by side, or beside a source")
        if sublayer.replaces:
            _require(_complete(before), where, "a weight and a bias of norms whose results are kept")
        else:
            _require(before is None or before.bias is None, where, "norms without a bias")
        if isinstance(body, Attention):
            _check_attention(body, where)
            _require(not (body.whole_norms and block.parallel), where, "no norms of all heads side by side with an MLP")
        biases = [linear.bias for name, linear in body.linears.items() if name not in ("key", "value")]
        _require(None not in biases, where, "a bias of all linears but keys and values")


def _check_attention(attention: Attention, where: str) -> None:
    _require(attention.scale == 1, where, "scores that are not scaled")
    _require(attention.value.bias is None, where, "values without a bias")
    has_bias = attention.key.bias is not None
    _require(has_bias == attention.bias_of_keys, where, "a bias of keys just where scores depend on it")
    _require(attention.heads % attention.kv_heads == 0, where, "as many queries of each key")
    _require(attention.dims == attention.padded_dims, where, "heads of whole panels")
    norms = [norm for norm in (attention.query_norm, attention.key_norm) if norm is not None]
    if norms:
        weights = [norm.weight for norm in norms]
        _require(len(norms) == 2 and None not in weights, where, "norms of queries and of keys, with their weights")
        _require(norms[0].epsilon == norms[1].epsilon, where, "one epsilon of the norms of queries and of keys")
        _require(attention.sees != "source", where, "no norms of heads that see a source")
    if attention.relative is not None:
        _require(not norms, where, "no norms of heads that keys and queries of distances meet")
        simple = (attention.sees, attention.window, attention.distance_bias) == ("all", None, None)
        _require(simple, where, "keys and queries of distances to see all, and no bias beside them")


def _complete(norm: Norm | None) -> bool:
    """Whether a norm has all the vectors that its kind can have, or is not there."""
    return norm is None or (norm.weight is not None and (norm.bias is not None or norm.kind == "rms"))


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise AssertionError(f"{where}: the kernels need {what}")

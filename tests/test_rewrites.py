"""The rewrites on graphs of every form: what is computed stays, and what they cannot take is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.errors import UnsupportedModelError
from kaoken.codegen.evaluate import attention, evaluate
from kaoken.codegen.graph import (
    Attention,
    Block,
    Embeddings,
    Graph,
    Head,
    Layer,
    Linear,
    Mlp,
    Norm,
    Relative,
    Rotary,
    SpecialTokens,
    Stack,
    Sublayer,
    Tensor,
    check_ready,
    verify,
)

WIDTH, SOURCE, VOCABULARY, LIMIT = 12, 20, 31, 70
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 6

IDS = np.random.default_rng(1).integers(0, VOCABULARY, 67).tolist()
DECODER_IDS = np.random.default_rng(2).integers(0, VOCABULARY, 66).tolist()
TYPES = np.random.default_rng(3).integers(0, 2, 67).tolist()


class Maker:
    """Random tensors, norms and sublayers; `biases` says whether linears have any."""

    def __init__(self, biases: bool = True) -> None:
        self.random = np.random.default_rng(7)
        self.biases = biases

    def tensor(self, *shape: int, scale: float = 1.0, base: float = 0.0) -> Tensor:
        values = base + scale * self.random.uniform(-1, 1, shape)
        return Tensor(shape, (f"tensor of {shape}",), lambda start, stop: values[start:stop])

    def norm(self, width: int = WIDTH, kind: str = "layer") -> Norm:
        bias = self.tensor(width, scale=0.3) if kind == "layer" else None
        return Norm(kind, 1e-5, self.tensor(width, scale=0.4, base=1.0), bias)

    def linear(self, outputs: int, inputs: int) -> Linear:
        bias = self.tensor(outputs, scale=0.4) if self.biases else None
        return Linear(self.tensor(outputs, inputs, scale=math.sqrt(3 / inputs)), bias)

    def attention(
        self, sees: str, width: int = WIDTH, source: int | None = None, rotary: Rotary | None = None
    ) -> Attention:
        key, value = (self.linear(KV_HEADS * HEAD_DIM, source or width) for _ in range(2))
        bias = self.tensor(HEADS, 2 * LIMIT) if sees != "source" else None
        all_heads = HEADS * HEAD_DIM
        query, out = self.linear(all_heads, width), self.linear(width, all_heads)
        return Attention(HEADS, KV_HEADS, HEAD_DIM, query, key, value, out, 0.4, rotary, sees, bias)

    def mlp(self, width: int = WIDTH, gated: bool = False) -> Mlp:
        gate = self.linear(9, width) if gated else None
        return Mlp(self.linear(9, width), self.linear(width, 9), "gelu_tanh", gate)

    def stack(self, *blocks: Block, width: int = WIDTH, norm: Norm | None = None, embedded: bool = False) -> Stack:
        embeddings = Embeddings(self.tensor(VOCABULARY, width), self.tensor(LIMIT, width))
        if embedded:
            embeddings = replace(embeddings, types=self.tensor(2, width), norm=self.norm(width))
        return Stack(embeddings, blocks, norm, LIMIT)


SPECIAL = SpecialTokens((), None, None)


def decoder(biases: bool = True, tied: bool = False, rotary: Rotary | None = None) -> Graph:
    """With pre-norms."""
    make = Maker(biases)
    sublayers = [
        (Sublayer(make.attention("past", rotary=rotary), make.norm()), Sublayer(make.mlp(gated=True), make.norm()))
        for _ in range(2)
    ]
    stack = make.stack(*map(Block, sublayers), norm=make.norm())
    head = Linear(stack.embeddings.tokens, None) if tied else make.linear(VOCABULARY, WIDTH)
    return Graph(decoder=stack, head=Head(head), special=SPECIAL)


def encoder(biases: bool = True) -> Graph:
    """With post-norms."""
    make = Maker(biases)
    sublayers = [
        (Sublayer(make.attention("all"), after=make.norm()), Sublayer(make.mlp(), after=make.norm())) for _ in range(2)
    ]
    return Graph(encoder=make.stack(*map(Block, sublayers), embedded=True), special=SPECIAL)


def projected_encoder(biases: bool = True) -> Graph:
    """With tables narrower than the stream."""
    graph, make = encoder(biases), Maker(biases)
    assert graph.encoder is not None
    embeddings = make.stack(width=5, embedded=True).embeddings
    projected = replace(embeddings, projection=make.linear(WIDTH, 5))
    return replace(graph, encoder=replace(graph.encoder, embeddings=projected))


def post_norm_decoder() -> Graph:
    make = Maker()
    sublayers = [
        (Sublayer(make.attention("past"), after=make.norm()), Sublayer(make.mlp(), after=make.norm(kind="rms")))
        for _ in range(2)
    ]
    stack = make.stack(*map(Block, sublayers))
    return Graph(decoder=stack, head=Head(make.linear(VOCABULARY, WIDTH)), special=SPECIAL)


def encoder_decoder(biases: bool = True, post: bool = False) -> Graph:
    """With pre- or post-norms, and an encoder that is wider than its decoder."""
    make = Maker(biases)

    def sublayer(body: Attention | Mlp, width: int = WIDTH) -> Sublayer:
        return Sublayer(body, after=make.norm(width)) if post else Sublayer(body, before=make.norm(width))

    encoding = [(sublayer(make.attention("all", SOURCE), SOURCE), sublayer(make.mlp(SOURCE), SOURCE)) for _ in range(2)]
    decoding = [
        tuple(map(sublayer, (make.attention("past"), make.attention("source", WIDTH, SOURCE), make.mlp(gated=True))))
        for _ in range(3)
    ]
    norms = (None, None) if post else (make.norm(SOURCE), make.norm())
    return Graph(
        encoder=make.stack(*map(Block, encoding), width=SOURCE, norm=norms[0], embedded=True),
        decoder=make.stack(*map(Block, decoding), norm=norms[1]),
        head=Head(make.linear(VOCABULARY, WIDTH)),
        special=SPECIAL,
    )


def windowed(graph: Graph, *windows: int) -> Graph:
    """With a window in the attention to itself of each block of its last stack, in turns."""
    blocks = []
    for block, window in zip(graph.blocks, cycle(windows), strict=False):
        first, *others = block.sublayers
        assert isinstance(first.body, Attention)
        blocks.append(Block((replace(first, body=replace(first.body, window=window)), *others)))
    return graph.map_stacks(lambda stack: replace(stack, blocks=tuple(blocks)) if stack is graph.stack else stack)


def relative_to(graph: Graph, keys: bool = True, queries: bool = True) -> Graph:
    """With keys and queries of distances in place of a bias, in each attention of its last stack."""
    make = Maker()
    table, buckets = (HEADS, 9, HEAD_DIM), np.clip(np.arange(-LIMIT, LIMIT) + 4, 0, 8).astype(float)
    relative = Relative(
        Tensor((2 * LIMIT,), (), lambda start, stop: buckets[start:stop]),
        make.tensor(*table) if keys else None,
        make.tensor(*table) if queries else None,
    )
    return attentions(graph, distance_bias=None, relative=relative)


def replacing(graph: Graph) -> Graph:
    """With a norm in front of the first block that the stream takes."""
    first = graph.stack.sublayers[0]
    norm = Maker().norm()
    return graph.map(lambda each: replace(each, before=norm, replaces=True) if each is first else each)


def side_by_side(graph: Graph) -> Graph:
    """With attention and MLP of each block reading the same stream."""
    return graph.map_stacks(
        lambda stack: replace(stack, blocks=tuple(replace(block, parallel=True) for block in stack.blocks))
    )


def with_normed_branches(graph: Graph, weights: bool = True) -> Graph:
    """With a norm of what each sublayer adds."""
    make, kinds = Maker(), cycle(("rms", "layer"))

    def change(sublayer: Sublayer) -> Sublayer:
        norm = make.norm(kind=next(kinds))
        return replace(sublayer, branch=norm if weights else replace(norm, weight=None, bias=None))

    return graph.map(change)


def with_normed_heads(graph: Graph, weights: bool = True, whole: bool = False) -> Graph:
    """With norms of queries and keys in each attention to the past, of each head or of all together."""
    make = Maker()

    def change(body: Attention | Mlp) -> Attention | Mlp:
        if not isinstance(body, Attention) or body.sees != "past":
            return body
        body = replace(body, whole_norms=whole)
        norms = [replace(make.norm(width, "rms"), epsilon=0.1) for width in body.norm_widths]
        if not weights:
            norms = [replace(each, weight=None) for each in norms]
        return replace(body, query_norm=norms[0], key_norm=norms[1])

    return graph.map_bodies(change)


GRAPHS: dict[str, Callable[[], Graph]] = {
    "decoder": decoder,
    "tied decoder": lambda: decoder(tied=True),
    "rotary decoder": lambda: decoder(rotary=Rotary((1.0, 0.3, 0.01))),
    "decoder without biases": lambda: decoder(biases=False),
    "decoder with post-norms": post_norm_decoder,
    "encoder": encoder,
    "encoder of the past": lambda: attentions(encoder(), sees="past"),
    "encoder without biases": lambda: encoder(biases=False),
    "encoder with a projection": projected_encoder,
    "encoder with a projection without biases": lambda: projected_encoder(biases=False),
    "decoder with windows": lambda: windowed(decoder(rotary=Rotary((1.0, 0.3, 0.01))), 1, 40),
    "encoder with windows": lambda: windowed(encoder(), 9, 1),
    "encoder-decoder with windows": lambda: windowed(encoder_decoder(), 5, 30),
    "encoder relative to positions": lambda: relative_to(encoder()),
    "encoder relative to positions without biases": lambda: relative_to(encoder(biases=False)),
    "encoder with keys of distances": lambda: relative_to(encoder(), queries=False),
    "encoder with queries of distances": lambda: relative_to(encoder(), keys=False),
    "encoder with a norm behind a projection": lambda: replacing(projected_encoder()),
    "decoder with normed heads": lambda: with_normed_heads(decoder()),
    "rotary decoder with normed heads": lambda: with_normed_heads(decoder(rotary=Rotary((1.0, 0.3, 0.01)))),
    "decoder with plainly normed heads": lambda: with_normed_heads(decoder(biases=False), weights=False),
    "decoder with norms of all heads": lambda: with_normed_heads(decoder(), whole=True),
    "rotary decoder with norms of all heads": lambda: with_normed_heads(
        decoder(rotary=Rotary((1.0, 0.3, 0.01))), whole=True
    ),
    "decoder with plain norms of all heads": lambda: with_normed_heads(
        decoder(biases=False), weights=False, whole=True
    ),
    "encoder-decoder with normed heads": lambda: with_normed_heads(encoder_decoder()),
    "decoder of sublayers side by side": lambda: side_by_side(decoder(rotary=Rotary((1.0, 0.3, 0.01)))),
    "decoder of sublayers side by side without biases": lambda: side_by_side(decoder(biases=False, tied=True)),
    "decoder with normed branches": lambda: with_normed_branches(with_normed_heads(decoder())),
    "decoder with plainly normed branches": lambda: with_normed_branches(decoder(biases=False), weights=False),
    "decoder with normed branches and post-norms": lambda: with_normed_branches(post_norm_decoder()),
    "encoder with normed branches": lambda: with_normed_branches(encoder()),
    "encoder-decoder": encoder_decoder,
    "encoder-decoder without biases": lambda: encoder_decoder(biases=False),
    "encoder-decoder with post-norms": lambda: encoder_decoder(post=True),
}


def outputs(graph: Graph) -> np.ndarray:
    if graph.kind == "encoder-decoder":
        return evaluate(graph, IDS, DECODER_IDS, TYPES)
    return evaluate(graph, IDS, types=TYPES)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_rewrite_keeps_what_the_graph_computes(name: str) -> None:
    graph = GRAPHS[name]()
    verify(graph)
    expected = outputs(graph)
    for rewrite in rewrites.PIPELINE:
        graph = rewrite(graph)
        verify(graph)
        np.testing.assert_allclose(outputs(graph), expected, rtol=0, atol=1e-11, err_msg=rewrite.__name__)
    check_ready(graph)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("rewrite", rewrites.PIPELINE, ids=lambda each: each.__name__)
def test_a_rewrite_alone_keeps_what_the_graph_computes(name: str, rewrite: Callable[[Graph], Graph]) -> None:
    """Whatever the order: each holds by itself."""
    graph = GRAPHS[name]()
    np.testing.assert_allclose(outputs(rewrite(graph)), outputs(graph), rtol=0, atol=1e-11)


def test_what_a_graph_says_of_itself() -> None:
    single, both, vectors = decoder(tied=True), encoder_decoder(), encoder()
    assert [each.kind for each in (single, both, vectors)] == ["decoder", "encoder-decoder", "encoder"]
    assert single.tied
    assert not both.tied
    assert not vectors.tied
    assert both.stacks == (both.encoder, both.decoder)
    assert both.stack is both.decoder
    assert vectors.stack is vectors.encoder
    assert (both.width, both.vocabulary, len(both.blocks)) == (WIDTH, VOCABULARY, 3)
    block = both.blocks[0]
    assert block.attention.sees == "past"
    assert block.cross is not None
    assert block.cross.sees == "source"
    assert single.blocks[0].cross is None


def test_keys_keep_a_bias_that_scores_depend_on() -> None:
    for graph, kept in (
        (encoder(), False),
        (relative_to(encoder(), queries=False), False),
        (relative_to(encoder()), True),
        (decoder(), False),
        (with_normed_heads(decoder()), True),
    ):
        assert all((block.attention.key.bias is not None) == kept for block in rewrites.run(graph).blocks)


def test_what_a_window_shows() -> None:
    """The last positions of the past, and as many on either side of all: those of a row far from both ends."""
    rows, middle = np.arange(67), 33
    for graph, window, seen in (
        (decoder(), 4, range(30, 34)),
        (encoder(), 4, range(31, 36)),
        (encoder(), 5, range(31, 36)),
    ):
        first = windowed(graph, window).blocks[0].attention
        x = np.random.default_rng(5).uniform(-1, 1, (67, WIDTH))
        whole = attention(first, x, None, LIMIT)[middle]
        for row in rows:
            changed = x.copy()
            changed[row] += 1
            assert (attention(first, changed, None, LIMIT)[middle] != whole).any() == (row in seen)


def test_post_norms_move_to_the_next_sublayer() -> None:
    before = encoder()
    after = rewrites.move_post_norms(before)
    assert before.encoder is not None
    assert after.encoder is not None
    moved, given = after.encoder.sublayers, before.encoder.sublayers
    assert [each.replaces for each in moved] == [False, True, True, True]
    assert moved[0].before is None
    assert [each.before for each in moved[1:]] == [each.after for each in given[:-1]]
    assert after.encoder.norm is given[-1].after


def test_norms_on_both_sides_are_refused() -> None:
    graph = encoder()
    sandwich = graph.map(lambda each: replace(each, before=each.after))
    with pytest.raises(UnsupportedModelError, match="norms on both sides"):
        rewrites.run(sandwich)
    assert graph.encoder is not None
    ended = replace(graph, encoder=replace(graph.encoder, norm=Maker().norm()))
    with pytest.raises(UnsupportedModelError, match="norms on both sides"):
        rewrites.run(ended)


def test_a_norm_in_front_of_sublayers_side_by_side_is_refused() -> None:
    graph = post_norm_decoder()
    first, second = graph.blocks
    beside = replace(second, sublayers=tuple(replace(each, after=None) for each in second.sublayers), parallel=True)
    mixed = graph.map_stacks(lambda stack: replace(stack, blocks=(first, beside)))
    with pytest.raises(UnsupportedModelError, match="read the same stream"):
        rewrites.run(mixed)


def test_what_the_stream_takes_is_not_folded() -> None:
    graph = rewrites.run(encoder_decoder(post=True))
    for stack in graph.stacks:
        for sublayer in stack.sublayers[1:]:
            assert sublayer.before is not None
            assert not sublayer.before.bare
    assert graph.decoder is not None
    assert graph.decoder.norm is not None
    assert graph.decoder.norm.bare  # the head reads it alone


def test_a_source_is_not_normalized_by_the_decoder() -> None:
    graph = encoder_decoder()
    folded = rewrites.fold_norm(graph)
    for given, found in zip(graph.blocks, folded.blocks, strict=True):
        assert given.cross is not None
        assert found.cross is not None
        assert found.cross.key is given.cross.key
        assert found.cross.value is given.cross.value
        assert found.cross.query is not given.cross.query
    assert graph.encoder is not None
    assert folded.encoder is not None
    assert folded.encoder.norm is graph.encoder.norm


def test_norms_that_are_kept_get_what_they_lack() -> None:
    graph = encoder().map_stacks(
        lambda stack: replace(stack, embeddings=replace(stack.embeddings, norm=Norm("layer", 1e-5, None, None)))
    )
    graph = graph.map(lambda each: replace(each, after=Norm("layer", 1e-5, None, None)))
    ready = rewrites.run(graph)
    np.testing.assert_allclose(outputs(ready), outputs(graph), rtol=0, atol=1e-11)
    assert ready.encoder is not None
    norms = [ready.encoder.embeddings.norm, ready.encoder.norm, *(each.before for each in ready.encoder.sublayers[1:])]
    assert all(each is not None and each.weight is not None and each.bias is not None for each in norms)


def attentions(graph: Graph, **changes: object) -> Graph:
    """With these fields of each attention."""
    return graph.map(
        lambda each: replace(each, body=replace(each.body, **changes)) if isinstance(each.body, Attention) else each
    )


UNSOUND: dict[str, tuple[Callable[[], Graph], str]] = {
    "nothing": (lambda: Graph(special=SPECIAL), "a decoder with a head"),
    "a decoder without a head": (lambda: replace(decoder(), head=None), "a decoder with a head"),
    "a decoder without logits": (lambda: replace(decoder(), head=Head()), "a decoder with a head"),
    "a head of another width": (lambda: replace(decoder(), head=Head(Maker().linear(30, WIDTH + 1))), "shape"),
    "a layer of another width": (
        lambda: replace(encoder(), head=Head(layers=(Layer(Maker().linear(30, WIDTH + 1)),))),
        "shape",
    ),
    "a head behind two poolings": (
        lambda: replace(encoder(), head=Head(Maker().linear(30, WIDTH), pooling=("first", "mean"))),
        "shape",
    ),
    "a pooling that nothing knows": (lambda: replace(encoder(), head=Head(pooling=("median",))), "median"),
    "a source without an encoder": (lambda: replace(encoder_decoder(), encoder=None), "needs an encoder"),
    "an encoder that sees a source": (lambda: attentions(encoder(), sees="source"), "needs an encoder"),
    "rotary under a source": (lambda: attentions(encoder_decoder(), rotary=Rotary((1.0,))), "needs an encoder"),
    "a window on a source": (lambda: attentions(encoder_decoder(), window=4, distance_bias=None), "needs an encoder"),
    "a window of nothing": (lambda: windowed(decoder(), 0), "a window of 0 positions"),
    "turned heads that know distances": (
        lambda: attentions(relative_to(encoder()), rotary=Rotary((1.0,))),
        "turns its heads",
    ),
    "a source at a distance": (lambda: relative_to(encoder_decoder()), "needs an encoder"),
    "buckets of nothing": (lambda: relative_to(encoder(), False, False), "neither keys nor queries"),
    "buckets of other distances": (
        lambda: attentions(
            relative_to(encoder()),
            relative=Relative(Maker().tensor(LIMIT), Maker().tensor(HEADS, 9, HEAD_DIM), None),
        ),
        "shape",
    ),
    "distances of other heads": (
        lambda: attentions(
            relative_to(encoder()),
            relative=Relative(Maker().tensor(2 * LIMIT), None, Maker().tensor(KV_HEADS, 9, HEAD_DIM)),
        ),
        "shape",
    ),
    "norms of heads of another width": (
        lambda: attentions(decoder(), query_norm=Maker().norm(HEADS * HEAD_DIM, "rms")),
        "shape",
    ),
    "norms of all heads of another width": (
        lambda: attentions(with_normed_heads(decoder()), whole_norms=True),
        "shape",
    ),
    "norms of heads with biases": (lambda: attentions(decoder(), key_norm=Maker().norm(HEAD_DIM)), "no RMSNorm"),
    "a norm behind one of two side by side": (lambda: side_by_side(encoder()), "change a stream that the others read"),
    "what nothing sees": (lambda: attentions(decoder(), sees="future"), "'future'"),
    "a bias of other distances": (lambda: attentions(decoder(), distance_bias=Maker().tensor(HEADS, LIMIT)), "shape"),
    "a bias of other heads": (lambda: attentions(decoder(), distance_bias=Maker().tensor(3, 2 * LIMIT)), "shape"),
    "a source of another width": (
        lambda: replace(encoder_decoder(), encoder=replace(encoder().stack, norm=Maker().norm())),
        "shape",
    ),
    "nothing to replace by": (
        lambda: decoder().map(lambda each: Sublayer(each.body, replaces=True)),
        "none before it",
    ),
    "a norm of another width": (lambda: decoder().map(lambda each: replace(each, after=Maker().norm(3))), "shape"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_graphs_are_found(case: str) -> None:
    make, message = UNSOUND[case]
    with pytest.raises(AssertionError, match=message):
        verify(make())


def only_encoder(**changes: object) -> Graph:
    graph = rewrites.run(encoder())
    assert graph.encoder is not None
    return replace(graph, encoder=replace(graph.encoder, **changes))


UNREADY: dict[str, tuple[Callable[[], Graph], str]] = {
    "an encoder of the past in front of a decoder": (
        lambda: replace(
            rewrites.run(encoder_decoder()), encoder=attentions(rewrites.run(encoder_decoder()), sees="past").encoder
        ),
        "encoder block 0: the kernels need attention that sees all",
    ),
    "an encoder whose last block sees all": (
        lambda: only_encoder(
            blocks=(
                *attentions(rewrites.run(encoder()), sees="past").stack.blocks[:-1],
                rewrites.run(encoder()).stack.blocks[-1],
            )
        ),
        "attention that sees past",
    ),
    "a decoder of everything": (lambda: attentions(rewrites.run(decoder()), sees="all"), "attention that sees past"),
    "a decoder that leaves its encoder out": (
        lambda: replace(rewrites.run(decoder()), encoder=rewrites.run(encoder()).encoder),
        "decoder block 0: the kernels need attention that sees past and source",
    ),
    "no last norm": (lambda: only_encoder(norm=None), "a norm behind the last block"),
    "a last norm without a bias": (lambda: only_encoder(norm=Norm("layer", 1e-5, None, None)), "encoder's final norm"),
    "distances in a window": (lambda: windowed(rewrites.run(relative_to(encoder())), 4), "to see all"),
    "distances and a bias": (
        lambda: attentions(rewrites.run(relative_to(encoder())), distance_bias=Maker().tensor(HEADS, 2 * LIMIT)),
        "no bias beside them",
    ),
    "a source beside other sublayers": (
        lambda: side_by_side(rewrites.run(encoder_decoder())),
        "no attention to a source beside",
    ),
    "normed branches side by side": (
        lambda: with_normed_branches(side_by_side(rewrites.run(decoder()))),
        "no norms of branches side by side",
    ),
    "norms of all heads side by side": (
        lambda: side_by_side(rewrites.run(with_normed_heads(decoder(), whole=True))),
        "no norms of all heads side by side",
    ),
    "normed branches beside a source": (
        lambda: replace(
            rewrites.run(encoder_decoder()), decoder=with_normed_branches(rewrites.run(encoder_decoder())).decoder
        ),
        "beside a source",
    ),
    "a norm of a branch without a weight": (
        lambda: with_normed_branches(rewrites.run(decoder()), weights=False),
        "norms of branches",
    ),
    "normed heads and distances": (
        lambda: attentions(
            rewrites.run(relative_to(encoder())), query_norm=Maker().norm(16, "rms"), key_norm=Maker().norm(16, "rms")
        ),
        "no norms of heads",
    ),
    "normed queries alone": (
        lambda: attentions(
            rewrites.run(with_normed_heads(decoder())), key_norm=Maker().norm(16, "rms"), query_norm=None
        ),
        "norms of queries and of keys",
    ),
    "norms of heads with two epsilons": (
        lambda: attentions(rewrites.run(with_normed_heads(decoder())), key_norm=Maker().norm(16, "rms")),
        "one epsilon",
    ),
    "keys without the bias that distances need": (
        lambda: rewrites.run(relative_to(encoder())).map_bodies(
            lambda body: replace(body, key=replace(body.key, bias=None)) if isinstance(body, Attention) else body
        ),
        "a bias of keys just where",
    ),
    "a post-norm": (
        lambda: rewrites.run(decoder()).map(lambda each: replace(each, after=Maker().norm())),
        "no norms behind",
    ),
    "a kept norm without a weight": (
        lambda: rewrites.run(encoder()).map(
            lambda each: replace(each, before=each.before and replace(each.before, weight=None))
        ),
        "norms whose results are kept",
    ),
}


@pytest.mark.parametrize("case", UNREADY)
def test_what_kernels_cannot_run_is_found(case: str) -> None:
    make, message = UNREADY[case]
    graph = make()
    verify(graph)
    with pytest.raises(AssertionError, match=message):
        check_ready(graph)

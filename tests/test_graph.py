"""`kaoken graph`: what the rewrites did, as DOT and SVG, and the exporters' ONNX files beside it."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import decoders
from checkpoints import write_checkpoint
from configurations import blocks
from conftest import Checkpoints
from kaoken.errors import InputError, KaokenError
from kaoken.graphs import Cluster, Node, Picture, dot, render, write_graph
from oracles import bert, t5

SVG = "{http://www.w3.org/2000/svg}"


def labels(text: str) -> dict[str, list[str]]:
    """The lines of each node of a DOT text, by its name."""
    return {name: label.split(r"\n") for name, label in re.findall(r'"([^"]+)" \[label="([^"]*)"', text)}


def edges(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r'"([^"]+)" -> "([^"]+)"', text))


def drawn(directory: Path, **options: bool) -> str:
    text = write_graph(directory, **options)
    assert isinstance(text, str)
    return text


def test_before_the_passes_each_op_is_the_checkpoints(checkpoints: Checkpoints) -> None:
    nodes = labels(drawn(checkpoints("plain"), before=True, all_blocks=True))
    assert nodes["h.1.ln_1"] == ["LayerNorm ln_1", "weight [32] of h.1.ln_1.weight", "bias [32] of h.1.ln_1.bias"]
    for part in ("query", "key", "value"):
        title, *arrays = nodes[f"h.1.{part}"]
        assert title == f"Linear {part} -> [T, 32]"
        assert arrays == ["weight [32, 32] of h.1.attn.c_attn.weight", "bias [32] of h.1.attn.c_attn.bias"]
    assert nodes["h.0.attention"] == ["Attention -> [T, 32]", "2 heads of 16, causal, scale 0.25"]
    assert not any("fold_" in line for lines in nodes.values() for line in lines)


def test_after_the_passes_each_op_says_what_they_did(checkpoints: Checkpoints) -> None:
    nodes = labels(drawn(checkpoints("plain"), all_blocks=True))
    assert nodes["h.1.ln_1"][1:] == ["no weight", "no bias", "fold_norm: weight gone; bias gone"]
    assert "weight [32, 32] of h.1.attn.c_attn.weight, h.1.ln_1.weight" in nodes["h.1.query"]
    assert "fold_attention_scale: weight scaled; bias scaled" in nodes["h.1.query"]
    assert "fold_attention_scale: scale 0.25 is now 1" in nodes["h.1.attention"]
    for part, rewrite in (("key", "drop_key_bias"), ("value", "move_value_bias")):
        assert {"no bias", f"{rewrite}: bias gone"} <= set(nodes[f"h.1.{part}"])
    moved = next(line for line in nodes["h.1.attn_out"] if line.startswith("move_value_bias: bias takes in"))
    assert "h.1.attn.c_attn.bias" in moved
    assert nodes["ln_f"][1:] == ["weight [32] of ln_f.weight", "bias [32] of ln_f.bias"]  # the head is tied
    assert "pad_heads" not in "".join(line for lines in nodes.values() for line in lines)


def test_an_untied_head_takes_in_the_last_norm(checkpoints: Checkpoints) -> None:
    nodes = labels(drawn(checkpoints("untied")))
    assert nodes["ln_f"][1:3] == ["no weight", "no bias"]
    assert "bias [67] of lm_head.weight, ln_f.bias" in nodes["head"]


def test_padded_heads_say_so(checkpoints: Checkpoints) -> None:
    nodes = labels(drawn(checkpoints("heads_of_12")))
    assert nodes["h.0.key"][0] == "Linear key -> [T, 80]"
    assert "pad_heads: weight was [60, 60]" in nodes["h.0.key"]
    assert "5 heads of 16, causal, scale 1" in nodes["h.0.attention"]


def test_blocks_of_differing_sizes(checkpoints: Checkpoints) -> None:
    text = drawn(checkpoints("pruned"))
    for label in ("block 0: 1 heads of 16, n_inner 5", "block 1: 2 heads of 16, n_inner 80"):
        assert f'label="{label}"' in text


def test_blocks_that_are_alike_are_drawn_once(tmp_path: Path) -> None:
    sizes = [(2, 16, 40), (2, 16, 40), (2, 16, 40), (1, 16, 40)]
    directory = write_checkpoint(tmp_path / "model", blocks(*sizes))
    text = drawn(directory)
    assert re.findall(r'label="(blocks? [^"]*)"', text) == [
        "blocks 0 to 2, x 3: 2 heads of 16, n_inner 40",
        "block 3: 1 heads of 16, n_inner 40",
    ]
    assert '"h.0.add_2" -> "h.3.ln_1"' in text
    assert '"h.1.' not in text
    assert len(re.findall(r"subgraph", drawn(directory, all_blocks=True))) == 4


def test_a_scale_of_each_layers_own_keeps_blocks_apart(checkpoints: Checkpoints) -> None:
    assert len(re.findall(r"subgraph", drawn(checkpoints("inverse_layer_scale")))) == 4


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT's checkpoint."""
    return bert.write(tmp_path_factory.mktemp("graphs") / "bert", bert.TINY)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5's checkpoint, with an encoder of one block and a decoder of three."""
    return t5.write(tmp_path_factory.mktemp("graphs") / "t5", t5.config_of("deep_decoder"))


@pytest.fixture(scope="module")
def normed_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen 3's checkpoint, whose heads of 20 are padded to 32."""
    return decoders.write(tmp_path_factory.mktemp("graphs") / "qwen3", decoders.config_of("qwen3"))


def test_an_encoder_ends_in_vectors_and_has_token_types(encoder: Path) -> None:
    text = drawn(encoder, before=True)
    nodes = labels(text)
    assert nodes["types"] == ["Gather types", "table [2, 48] of embeddings.token_type_embeddings.weight"]
    assert nodes["ln_e"][0] == "LayerNorm ln_e"
    assert nodes["h.0.attention"] == ["Attention -> [T, 48]", "3 heads of 16, both ways, scale 0.25"]
    assert nodes["vectors"] == ["vectors [T, 48]"]
    assert not {"head", "logits", "ln_f"} & nodes.keys()
    embedded = {(each, "embedded") for each in ("tokens", "positions", "types")}
    assert embedded | {("type_ids", "types"), ("embedded", "ln_e"), ("ln_e", "h.0.query")} <= edges(text)


def test_norms_behind_sublayers_are_drawn_there(encoder: Path) -> None:
    text = drawn(encoder, before=True)
    weight, bias = (f"{each} [48] of encoder.layer.1.output.LayerNorm.{each}" for each in ("weight", "bias"))
    assert labels(text)["h.1.post_ln_2"] == ["LayerNorm post_ln_2", weight, bias]
    assert not {"h.0.ln_1", "h.0.ln_2"} & labels(text).keys()
    found = edges(text)
    assert {("ln_e", "h.0.add_1"), ("h.0.add_1", "h.0.post_ln_1"), ("h.0.post_ln_1", "h.0.mlp_in")} <= found
    assert {("h.0.post_ln_1", "h.0.add_2"), ("h.0.post_ln_2", "h.1.key"), ("h.1.post_ln_2", "vectors")} <= found


def test_norms_that_have_moved_say_so(encoder: Path) -> None:
    text = drawn(encoder)
    nodes, found = labels(text), edges(text)
    moved = "move_post_norms: moved here from behind the sublayer before"
    for name, layer, replaces in (
        ("h.0.ln_2", "0.attention.output", True),
        ("h.1.ln_1", "0.output", True),
        ("ln_f", "1.output", False),
    ):
        arrays = [f"{each} [48] of encoder.layer.{layer}.LayerNorm.{each}" for each in ("weight", "bias")]
        assert nodes[name][1:] == [*arrays, *(["goes on as the stream"] if replaces else []), moved]
    assert not any("post_ln" in name for name in nodes)
    assert "drop_key_bias: bias gone" in nodes["h.1.key"]
    assert {("h.0.ln_2", "h.0.add_2"), ("h.0.add_2", "h.1.ln_1"), ("h.1.ln_1", "h.1.add_1")} <= found
    assert ("h.0.add_1", "h.0.add_2") not in found


def test_both_stacks_are_drawn(seq2seq: Path) -> None:
    text = drawn(seq2seq, all_blocks=True)
    nodes, found = labels(text), edges(text)
    assert re.findall(r'label="(\w+ block [^"]*)"', text) == [
        "encoder block 0: 5 heads of 7, n_inner 7",
        *(f"decoder block {index}: 5 heads of 7, n_inner 7" for index in range(3)),
    ]
    for owner in ("encoder", "decoder"):
        assert nodes[f"{owner}.tokens"][2] == "the head's own matrix"
        table = "relative_attention_bias.weight"
        assert nodes[f"{owner}.distances_0"][1] == f"table [5, 300] of {owner}.block.0.layer.0.SelfAttention.{table}"
        assert (f"{owner}.distances_0", f"{owner}.h.0.attention") in found
    assert ("decoder.distances_0", "decoder.h.2.attention") in found
    assert nodes["encoder.h.0.attention"][1] == "5 heads of 16, both ways, scale 1, distances_0"
    assert nodes["decoder.h.2.attention"][1] == "5 heads of 16, causal, scale 1, distances_0"
    assert nodes["logits"] == ["logits [T, 61]"]


def test_keys_and_values_of_a_source_read_the_encoder(seq2seq: Path) -> None:
    text = drawn(seq2seq)
    nodes, found = labels(text), edges(text)
    assert nodes["decoder.h.0.cross_attention"] == ["Attention -> [T, 80]", "5 heads of 16, of the source, scale 1"]
    assert nodes["decoder.h.0.cross_key"][0] == "Linear cross_key -> [S, 80]"
    assert nodes["decoder.h.0.cross_query"][0] == "Linear cross_query -> [T, 80]"
    assert {("encoder.ln_f", "encoder.vectors"), ("decoder.h.0.ln_2", "decoder.h.0.cross_query")} <= found
    readers = {name.rpartition(".")[2] for each, name in found if each == "encoder.vectors"}
    assert readers == {"cross_key", "cross_value"}
    chain = ("add_1", "ln_2", "cross_query", "cross_attention", "cross_out", "add_2", "ln_3", "mlp_in")
    assert {(f"decoder.h.0.{one}", f"decoder.h.0.{other}") for one, other in pairwise(chain)} <= found
    assert ("decoder.h.0.add_1", "decoder.h.0.add_2") in found


def test_norms_of_heads_stand_behind_their_linears(normed_heads: Path) -> None:
    text = drawn(normed_heads)
    nodes, found = labels(text), edges(text)
    arrays = ["weight [32] of layers.0.self_attn.q_norm.weight", "no bias"]
    changes = ["fold_attention_scale: weight scaled", "pad_heads: weight was [20]"]
    assert nodes["h.0.query_norm"] == ["RMSNorm query_norm", *arrays, "of each head", *changes]
    for name in ("query", "key"):
        assert {(f"h.0.{name}", f"h.0.{name}_norm"), (f"h.0.{name}_norm", "h.0.attention")} <= found
        assert (f"h.0.{name}", "h.0.attention") not in found
    assert ("h.0.value", "h.0.attention") in found


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX's checkpoint."""
    return decoders.write(tmp_path_factory.mktemp("graphs") / "neox", decoders.config_of("gpt_neox"))


def test_sublayers_side_by_side_read_the_same_stream(side_by_side: Path) -> None:
    found = edges(drawn(side_by_side))
    assert {("tokens", "h.0.ln_1"), ("tokens", "h.0.ln_2"), ("tokens", "h.0.add_1")} <= found
    assert {("h.0.add_1", "h.0.add_2"), ("h.0.add_2", "h.1.ln_1"), ("h.0.add_2", "h.1.ln_2")} <= found
    assert ("h.0.add_1", "h.0.ln_2") not in found


@pytest.fixture(scope="module")
def normed_branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3's checkpoint."""
    return decoders.write(tmp_path_factory.mktemp("graphs") / "gemma", decoders.config_of("gemma3_text"))


def test_norms_of_branches_stand_before_what_is_added(normed_branches: Path) -> None:
    found = edges(drawn(normed_branches))
    assert {("h.0.attn_out", "h.0.branch_ln_1"), ("h.0.branch_ln_1", "h.0.add_1"), ("h.0.add_1", "h.0.ln_2")} <= found
    assert ("h.0.attn_out", "h.0.add_1") not in found


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "seq2seq", "normed_heads", "side_by_side", "normed_branches"])
def test_every_node_is_connected(kind: str, before: bool, request: pytest.FixtureRequest) -> None:
    """Each has an edge, and each but the inputs is made of something."""
    text = drawn(request.getfixturevalue(kind), before=before)
    nodes, found = labels(text), edges(text)
    assert {name for edge in found for name in edge} == set(nodes)
    made = {target for _, target in found}
    sources = {name.rpartition(".")[2] for name in set(nodes) - made}
    assert sources <= {"ids", "type_ids", "positions", "distances_0"}


def test_the_text_is_the_same_each_time_and_reads_no_weights(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", dtype="BF16")
    first = drawn(directory)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1000] + b"\xff" * 1000)  # NaN, which any read refuses
    assert drawn(directory) == first


NASTY = 'a "b" \\n \\G <i> &lt; \x1b \udcff'


def test_names_are_escaped() -> None:
    picture = Picture(NASTY, (Cluster(NASTY, (Node(NASTY, NASTY, (NASTY,)),)),), ((NASTY, NASTY),))
    text = dot(picture)
    assert r'"a \"b\" \\n \\G <i> &amp;lt; ? ?"' in text
    text.encode()


def test_svg_shows_names_as_they_are() -> None:
    root = ElementTree.fromstring(render(Picture(NASTY, (Cluster(NASTY, (Node("x", NASTY),)),), ()), "svg"))
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    assert texts == ['a "b" \\n \\G <i> &lt; ? ?'] * 3


def test_svg_has_every_node(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "graph.svg"
    assert write_graph(checkpoints("plain"), out) == [out]
    root = ElementTree.fromstring(out.read_bytes())
    titles = {node.findtext(f"{SVG}title") for node in root.iter(f"{SVG}g") if node.get("class") == "node"}
    assert titles == set(labels(drawn(checkpoints("plain"))))


def test_without_graphviz_dot_still_works(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaoken.graphs.find_spec", lambda name: None)
    out = tmp_path / "graph.svg"
    out.write_text("mine")
    with pytest.raises(KaokenError, match=r'pip install "kaoken\[graph\]"`, or write a .dot file'):
        write_graph(checkpoints("plain"), out)
    assert (out.read_text(), os.listdir(tmp_path)) == ("mine", ["graph.svg"])
    dots = tmp_path / "graph.dot"
    write_graph(checkpoints("plain"), dots)
    assert dots.read_text() == drawn(checkpoints("plain"))


def test_onnx_without_torch_says_what_to_install(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaoken.graphs.find_spec", lambda name: None)
    with pytest.raises(KaokenError, match=r'torch, onnx, onnxruntime, onnxscript: `pip install "kaoken\[onnx\]"`'):
        write_graph(checkpoints("plain"), "graph.dot", onnx=True)


def test_outputs_that_cannot_be(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for out, message in (
        (tmp_path / "no" / "graph.dot", "does not exist: make it first"),
        (tmp_path / "graph.png", "the format is 'png', but pictures are dot or svg"),
        (tmp_path / "graph", "the format is ''"),
    ):
        with pytest.raises(InputError, match=message):
            write_graph(checkpoints("plain"), out)
    with pytest.raises(InputError, match="an SVG needs a file"):
        write_graph(checkpoints("plain"), format="svg")
    with pytest.raises(InputError, match="--onnx needs a file"):
        write_graph(checkpoints("plain"), onnx=True)
    with pytest.raises(InputError, match="is a directory"):
        write_graph(checkpoints("plain"), tmp_path, format="dot")
    assert os.listdir(tmp_path) == []
    with pytest.raises(KaokenError, match=r"/proc/graph\.dot cannot be written"):
        write_graph(checkpoints("plain"), "/proc/graph.dot")


def require_exporters() -> None:
    if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
        for name in ("torch", "onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)


@pytest.fixture(scope="module")
def exported(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what --onnx writes of blocks of differing sizes, one of them with padded heads."""
    require_exporters()
    out = tmp_path_factory.mktemp("exported") / "graph.dot"
    written = write_graph(checkpoints("irregular"), out, onnx=True)
    names = ["graph.dot"] + [f"graph.{each}.{end}" for each in ("torchscript", "dynamo") for end in ("onnx", "dot")]
    assert [Path(path).name for path in written] == names
    return out.parent


@pytest.mark.ci
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_exports_compute_the_oracles_logits(exporter: str, exported: Path, checkpoints: Checkpoints) -> None:
    """Of other batches and lengths than they were traced with."""
    import numpy as np
    import onnxruntime

    from configurations import CONFIGURATIONS
    from oracle import open_oracle

    session = onnxruntime.InferenceSession(exported / f"graph.{exporter}.onnx", providers=["CPUExecutionProvider"])
    oracle = open_oracle(checkpoints("irregular"))
    for batch, count in ((1, 1), (3, 80)):
        ids = CONFIGURATIONS["irregular"].ids(batch)[:, :count]
        (logits,) = session.run(["logits"], {"ids": ids})
        assert np.abs(logits - oracle.logits(ids)).max() < 1e-4


@pytest.mark.ci
def test_pictures_of_exports_have_their_ops(exported: Path) -> None:
    import onnx

    for exporter in ("torchscript", "dynamo"):
        graph = onnx.load(exported / f"graph.{exporter}.onnx").graph
        text = (exported / f"graph.{exporter}.dot").read_text()
        titles = sorted(lines[0] for name, lines in labels(text).items() if name.startswith("op "))
        assert titles == sorted(node.op_type for node in graph.node if node.op_type != "Constant")
        assert {f'label="block {index}"' for index in range(4)} <= set(re.findall(r'label="block \d"', text))


@pytest.mark.ci
@pytest.mark.parametrize(("kind", "family"), [("encoder", "bert"), ("seq2seq", "t5")])
def test_exports_of_other_families_are_refused(
    kind: str, family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    require_exporters()
    with pytest.raises(InputError, match=f"is of the family {family}, .* GPT-2 alone: leave out --onnx"):
        write_graph(request.getfixturevalue(kind), tmp_path / "graph.dot", onnx=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("export", RuntimeError("no such op\nmore"), r"torchscript.onnx could not be made \(no such op\): try other"),
        ("difference", 0.5, "onnxruntime differs from torch by 0.5 on torchscript.onnx"),
    ],
)
def test_a_failed_export_leaves_nothing(
    name: str,
    answer: float | Exception,
    message: str,
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_exporters()

    def answered(*_: object, **__: object) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(f"kaoken.onnx_export.{name}", answered)
    with pytest.raises(KaokenError, match=message):
        write_graph(checkpoints("plain"), tmp_path / "graph.dot", onnx=True)
    assert os.listdir(tmp_path) == []

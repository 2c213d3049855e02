"""T5s: the graph's and the oracle's logits, the buckets of distances, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import passes
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.families import read_graph
from kaoken.codegen.families.distance import buckets
from kaoken.codegen.graph import Graph
from safetensors.numpy import load_file, save_file

from conftest import RecordError
from evaluator import evaluate, run_stack
from oracles.t5 import CONFIGURATIONS, T5, TINY, bucket, config_of, write
from reference import LIMIT, relative_error

COUNT, DECODER_COUNT = 140, 133  # positions: more than two attention tiles each


def inputs_of(config: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids of the encoder and of the decoder, which start as they should."""
    random = np.random.Generator(np.random.PCG64(5))
    ids, more = (random.integers(0, config["vocab_size"], count).tolist() for count in (COUNT, DECODER_COUNT - 1))
    return ids, [config["decoder_start_token_id"], *more]


def graph_in(directory: Path) -> Graph:
    return read_graph(open_checkpoint(directory))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("t5s")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


names = pytest.mark.parametrize("name", CONFIGURATIONS)


@names
def test_the_graph_computes_what_the_oracle_does(name: str, directories: dict[str, Path]) -> None:
    """Before and after the passes."""
    ids, decoder_ids = inputs_of(config_of(name))
    oracle, graph = T5(directories[name]), graph_in(directories[name])
    expected = oracle.logits(ids, decoder_ids)
    for each in (graph, passes.run(graph)):
        assert each.encoder is not None
        np.testing.assert_allclose(run_stack(each.encoder, ids, None, None), oracle.encode(ids), rtol=0, atol=1e-11)
        np.testing.assert_allclose(evaluate(each, ids, decoder_ids), expected, rtol=0, atol=1e-11)


@pytest.mark.ci
@names
def test_the_oracle_equals_transformers(name: str, directories: dict[str, Path], record_error: RecordError) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, decoder_ids = inputs_of(config_of(name))
    oracle = T5(directories[name])
    with torch.no_grad():
        model = transformers.T5ForConditionalGeneration.from_pretrained(directories[name]).eval()
        outputs = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([decoder_ids]))
    errors = [
        relative_error(oracle.encode(ids), outputs.encoder_last_hidden_state[0]),
        relative_error(oracle.logits(ids, decoder_ids), outputs.logits[0]),
    ]
    record_error("vectors and logits of transformers' T5s against the float64 oracle", max(errors))
    assert max(errors) < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", ["plain", "gated", "one_head"])
def test_greedy_tokens_are_those_of_transformers(name: str, directories: dict[str, Path]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, _ = inputs_of(config_of(name))
    model = transformers.T5ForConditionalGeneration.from_pretrained(directories[name]).eval()
    tokens = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    start = config_of(name)["decoder_start_token_id"]
    assert [start, *T5(directories[name]).generate(ids, 40)] == tokens[0].tolist()


@pytest.mark.ci
@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_what_transformers_saves_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    """Every field and every tensor; transformers 5 calls all T5s tied, and says apart whether outputs are scaled."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = {name: value for name, value in {**TINY, **fields}.items() if name not in ("model_type", "architectures")}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config)).eval()
    model.save_pretrained(tmp_path)
    ids, decoder_ids = inputs_of(TINY)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([decoder_ids])).logits[0]
    graph = graph_in(tmp_path)
    assert graph.special.start == 0
    assert relative_error(expected, evaluate(passes.run(graph), ids, decoder_ids)) < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_copies_that_differ_are_used_as_transformers_does(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tensors = load_file(write(tmp_path, TINY) / "model.safetensors")
    save_file(tensors | {name: tensors["shared.weight"][::-1].copy()}, tmp_path / "model.safetensors", {"format": "pt"})
    ids, decoder_ids = inputs_of(TINY)
    with torch.no_grad():
        model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
        expected = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([decoder_ids])).logits[0]
    assert relative_error(expected, evaluate(passes.run(graph_in(tmp_path)), ids, decoder_ids)) < LIMIT


SORTINGS = [(32, 128), (4, 3), (5, 9), (8, 20), (9, 37), (32, 256), (64, 128), (33, 129), (6, 64)]  # count, furthest


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "furthest"), SORTINGS)
def test_every_distance_is_in_its_bucket(count: int, furthest: int, both_ways: bool) -> None:
    distances = np.arange(-600, 601)
    found = buckets(distances, count, furthest, both_ways).tolist()
    assert found == [bucket(distance, count, furthest, both_ways) for distance in distances.tolist()]


@pytest.mark.ci
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "furthest"), SORTINGS)
def test_every_distance_is_in_the_bucket_of_transformers(count: int, furthest: int, both_ways: bool) -> None:
    torch, t5 = pytest.importorskip("torch"), pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-20000, 20001)
    expected = t5.T5Attention._relative_position_bucket(torch.from_numpy(distances), both_ways, count, furthest)
    np.testing.assert_array_equal(buckets(distances, count, furthest, both_ways), expected.numpy())


def test_what_the_graph_says_of_itself(directories: dict[str, Path]) -> None:
    graph = graph_in(directories["deep_decoder"])
    assert (graph.kind, graph.width, graph.vocabulary, graph.tied) == ("encoder-decoder", 48, 61, True)
    assert [len(stack.blocks) for stack in graph.stacks] == [1, 3]
    assert (graph.stack.limit, graph.special.eos, graph.special.pad, graph.special.start) == (150, (1,), 0, 0)
    assert graph_in(directories["one_head"]).special.start == 5
    for stack in passes.run(graph).stacks:
        (bias,) = {id(block.attention.distance_bias) for block in stack.blocks}  # one object: packed once
        assert bias != id(None)
        assert {block.attention.scale for block in stack.blocks} == {1.0}
    assert not graph_in(directories["gated"]).tied


def test_logits_of_tied_models_are_scaled_by_the_last_norm(directories: dict[str, Path]) -> None:
    for name, factor in (("gated_tied", 52**-0.5), ("gated", 1.0)):
        graph = graph_in(directories[name])
        stored = T5(directories[name]).tensors
        for stack, scale in (("encoder", 1.0), ("decoder", factor)):
            norm = getattr(graph, stack).norm
            np.testing.assert_array_equal(norm.weight.load(), stored[f"{stack}.final_layer_norm.weight"] * scale)


COPIES = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    "stored", [COPIES, [*COPIES, "shared.weight"], COPIES[:1], COPIES[1:2], COPIES[2:], COPIES[:2]]
)
def test_one_table_under_any_names(stored: list[str], tmp_path: Path) -> None:
    tensors = load_file(write(tmp_path, TINY) / "model.safetensors")
    table = tensors.pop("shared.weight")
    save_file(tensors | {name: table.copy() for name in stored}, tmp_path / "model.safetensors")
    graph = graph_in(tmp_path)
    assert graph.tied
    assert graph.encoder is not None
    assert graph.decoder is not None
    assert graph.encoder.embeddings.tokens is graph.decoder.embeddings.tokens
    np.testing.assert_array_equal(graph.encoder.embeddings.tokens.load(), table.astype(np.float64))


def test_a_cross_bias_that_nothing_reads_is_left_out(tmp_path: Path) -> None:
    """The first checkpoints have one."""
    tensors = load_file(write(tmp_path, TINY) / "model.safetensors")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file(tensors | {name: np.ones((32, 3), np.float32)}, tmp_path / "model.safetensors")
    assert graph_in(tmp_path).kind == "encoder-decoder"


def test_the_start_token_stands_where_special_tokens_do(tmp_path: Path) -> None:
    write(tmp_path, TINY)
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7, "eos_token_id": 3}))
    special = graph_in(tmp_path).special
    assert (special.start, special.eos, special.pad) == (7, (3,), None)


REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "a decoder alone": (UnsupportedModelError, {"is_decoder": True}, "is_decoder is True"),
    "no decoder": (CheckpointError, {"is_encoder_decoder": False}, "is_encoder_decoder is False; expected true"),
    "an activation": (
        UnsupportedModelError,
        {"feed_forward_proj": "gated-relu2"},
        "feed_forward_proj is 'gated-relu2'",
    ),
    "no activation": (UnsupportedModelError, {"feed_forward_proj": None}, "feed_forward_proj is None"),
    "another activation": (UnsupportedModelError, {"dense_act_fn": "relu2"}, "dense_act_fn is 'relu2'"),
    "a gate that is not there": (
        UnsupportedModelError,
        {"is_gated_act": True},
        "DenseReluDense.wi.weight' is no tensor",
    ),
    "a gate's tensors": (UnsupportedModelError, {"feed_forward_proj": "gated-gelu"}, "wi.weight' is no tensor"),
    "few buckets": (CheckpointError, {"relative_attention_num_buckets": 3}, "num_buckets is 3; expected at least 4"),
    "other buckets": (
        CheckpointError,
        {"relative_attention_num_buckets": 16},
        r"has shape \[32, 3\]; expected \[16, 3\]",
    ),
    "near": (CheckpointError, {"relative_attention_max_distance": 16}, "more than half the buckets, 16"),
    "no heads": (CheckpointError, {"num_heads": 0}, "num_heads is 0"),
    "two names": (CheckpointError, {"hidden_size": 47}, "hidden_size is 47, but d_model"),
    "a block too many": (CheckpointError, {"num_decoder_layers": 3}, "lacks the tensor 'decoder.block.2"),
    "a block too few": (UnsupportedModelError, {"num_decoder_layers": 1}, "'decoder.block.1.*is no tensor of a T5"),
    "no head": (CheckpointError, {"tie_word_embeddings": False}, "lacks the tensor 'lm_head.weight'"),
    "a start": (CheckpointError, {"decoder_start_token_id": "a"}, "decoder_start_token_id is 'a'"),
    "tied stacks": (UnsupportedModelError, {"tie_encoder_decoder": True}, "tie_encoder_decoder"),
    "an unknown field": (UnsupportedModelError, {"num_experts": 4}, "'num_experts'"),
    "an architecture": (UnsupportedModelError, {"architectures": ["T5EncoderModel"]}, "architectures names"),
    "quantized": (UnsupportedModelError, {"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    kind, fields, message = REFUSED[case]
    write(tmp_path, TINY)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **fields}), encoding="utf-8")
    with pytest.raises(kind, match=message):
        graph_in(tmp_path)

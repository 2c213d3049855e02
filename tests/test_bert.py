"""BERTs: the graph's and the oracle's vectors, and what is refused by name."""

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
from safetensors.numpy import load_file, save_file

from conftest import RecordError
from evaluator import evaluate
from oracles.bert import CONFIGURATIONS, TINY, Bert, config_of, write
from reference import LIMIT, relative_error

COUNT = 140  # positions: more than two attention tiles


def inputs_of(config: dict[str, Any], count: int = COUNT) -> tuple[list[int], list[int]]:
    """Ids and token types."""
    random = np.random.Generator(np.random.PCG64(5))
    ids = random.integers(0, config["vocab_size"], count).tolist()
    return ids, random.integers(0, config["type_vocab_size"], count).tolist()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("berts")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


names = pytest.mark.parametrize("name", CONFIGURATIONS)


@names
def test_the_graph_computes_what_the_oracle_does(name: str, directories: dict[str, Path]) -> None:
    """Before and after the passes."""
    ids, types = inputs_of(config_of(name))
    expected = Bert(directories[name]).hidden_states(ids, types)
    graph = read_graph(open_checkpoint(directories[name]))
    for each in (graph, passes.run(graph)):
        np.testing.assert_allclose(evaluate(each, ids, types=types), expected, rtol=0, atol=1e-11)


def test_a_token_has_type_0_where_none_is_given(directories: dict[str, Path]) -> None:
    ids, types = inputs_of(TINY)
    oracle, graph = Bert(directories["plain"]), read_graph(open_checkpoint(directories["plain"]))
    expected = oracle.hidden_states(ids, [0] * len(ids))
    np.testing.assert_array_equal(oracle.hidden_states(ids), expected)
    np.testing.assert_allclose(evaluate(graph, ids), expected, rtol=0, atol=1e-11)
    assert np.abs(oracle.hidden_states(ids, types) - expected).max() > 0.1


@pytest.mark.ci
@names
def test_the_oracle_equals_transformers(name: str, directories: dict[str, Path], record_error: RecordError) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, types = inputs_of(config_of(name))
    with torch.no_grad():
        model = transformers.BertModel.from_pretrained(directories[name]).eval()
        outputs = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
    error = relative_error(Bert(directories[name]).hidden_states(ids, types), outputs.last_hidden_state[0])
    record_error("vectors of transformers' BERTs against the float64 oracle", error)
    assert error < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_what_transformers_saves_is_read(architecture: str, tmp_path: Path) -> None:
    """Every field and every tensor, and the encoder of each is the same."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields = {name: value for name, value in TINY.items() if name not in ("model_type", "architectures")}
    model = getattr(transformers, architecture)(transformers.BertConfig(**fields)).eval()
    model.save_pretrained(tmp_path)
    ids, types = inputs_of(TINY)
    with torch.no_grad():
        encoder = getattr(model, "bert", model)
        expected = encoder(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).last_hidden_state[0]
    graph = passes.run(read_graph(open_checkpoint(tmp_path)))
    assert relative_error(expected, evaluate(graph, ids, types=types)) < LIMIT


def test_what_the_graph_says_of_itself(directories: dict[str, Path]) -> None:
    graph = read_graph(open_checkpoint(directories["four_types"]))
    assert (graph.kind, graph.width, graph.vocabulary, graph.tied, graph.head) == ("encoder", 52, 61, False, None)
    assert (graph.stack.limit, graph.special.eos, graph.special.bos, graph.special.pad) == (150, (), None, 0)
    assert graph.stack.embeddings.types is not None
    assert graph.stack.embeddings.types.shape == (4, 52)
    ready = passes.run(graph)
    assert [each.replaces for each in ready.stack.sublayers] == [False, True, True, True]


REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "relative positions": (
        UnsupportedModelError,
        {"position_embedding_type": "relative_key"},
        "position_embedding_type is 'relative_key'; expected one of absolute",
    ),
    "a decoder": (UnsupportedModelError, {"is_decoder": True}, "is_decoder is True"),
    "cross attention": (UnsupportedModelError, {"add_cross_attention": True}, "add_cross_attention"),
    "pruned heads": (UnsupportedModelError, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "heads": (CheckpointError, {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor.* 48"),
    "no types": (CheckpointError, {"type_vocab_size": 0}, "type_vocab_size is 0"),
    "other types": (CheckpointError, {"type_vocab_size": 3}, r"token_type_embeddings.weight' has shape \[2, 48\]"),
    "no positions": (CheckpointError, {"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    "an epsilon": (CheckpointError, {"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
    "another activation": (UnsupportedModelError, {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
    "no activation": (UnsupportedModelError, {"hidden_act": ["gelu"]}, "hidden_act is"),
    "an unknown field": (UnsupportedModelError, {"embedding_size": 4}, "'embedding_size'"),
    "a block too many": (CheckpointError, {"num_hidden_layers": 3}, "lacks the tensor 'encoder.layer.2"),
    "a block too few": (UnsupportedModelError, {"num_hidden_layers": 1}, "'encoder.layer.1.*is no tensor of a BERT"),
    "a head": (UnsupportedModelError, {"architectures": ["BertForSequenceClassification"]}, "architectures names"),
    "quantized": (UnsupportedModelError, {"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    kind, fields, message = REFUSED[case]
    write(tmp_path, TINY)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **fields}), encoding="utf-8")
    with pytest.raises(kind, match=message):
        read_graph(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.layer.0.crossattention.self.query.weight", "is no tensor of a BERT"),
        ("embeddings.LayerNorm.gamma", "is no tensor of a BERT"),  # beside a weight: which of the two is meant?
    ],
)
def test_tensors_that_are_left_over(name: str, message: str, tmp_path: Path) -> None:
    tensors = load_file(write(tmp_path, TINY) / "model.safetensors")
    save_file(tensors | {name: np.ones(48, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=message):
        read_graph(open_checkpoint(tmp_path))

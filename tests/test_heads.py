"""Heads of encoders: those of BERT against its oracle, poolings against the evaluator, and the bits of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph
from kaoken.codegen.graph import Graph, Head, Layer, Linear, Tensor
from numpy.typing import NDArray

import kaoken
from bits import require_same_bits
from conftest import RecordError, bake_wanted, some_only_in_ci
from kaoken import _core
from oracles.bert import TINY, Bert, write
from reference import LIMIT, relative_error

LENGTHS = (1, 2, 63, 64, 65, 140, 150)
THREE = {"id2label": {"0": "no", "1": "perhaps", "2": "yes"}}

# Fields that differ from TINY. The "pooled" ones are of a family that is made up below.
HEADS: dict[str, dict[str, Any]] = {
    "classifier": {"architectures": ["BertForSequenceClassification"], **THREE},
    "reranker": {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "hidden_size": 35,
        "num_attention_heads": 5,
    },
    "tagger": {"architectures": ["BertForTokenClassification"], **THREE, "hidden_size": 35, "num_attention_heads": 5},
    "answers": {"architectures": ["BertForQuestionAnswering"]},
    "masked": {"architectures": ["BertForMaskedLM"], "vocab_size": 131},
    "masked_untied": {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False, "vocab_size": 77},
    "pooled_mean": {"pooling": ["mean"], "normalize": True},
    "pooled_last": {"pooling": ["last"], "hidden_size": 35, "num_attention_heads": 5},
    "pooled_all": {
        "pooling": ["first", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"],
        "hidden_size": 35,
        "num_attention_heads": 5,
    },
    "pooled_dense": {"pooling": ["max", "mean"], "dense": 20, "normalize": True},
}
ONLY_IN_CI = {"reranker", "answers", "masked_untied", "pooled_last", "bfloat16", "int4"}

# With the largest difference from the float64 oracle, of max(1, largest value): about twice what was seen.
TYPES = {"bfloat16": 0.02, "int8": 0.05, "int4": 0.4}
TYPED = "classifier"

FAMILY = """
from dataclasses import replace

import numpy as np

from ..graph import Head, Layer, Linear, Tensor
from . import bert

TITLE, ALIASES, OFF, HARMLESS, PREFIX, IGNORED = "made up", {}, bert.OFF, bert.HARMLESS, bert.PREFIX, bert.IGNORED
ARCHITECTURES = ("BertModel",)


def read(fields, tokens, weights):
    graph = bert.read(fields, tokens, weights)
    pooling, dense = tuple(fields.get("pooling")), fields.get("dense")
    inputs = len(pooling) * graph.width

    def rows(start, stop):
        return np.cos(np.arange(start * inputs, stop * inputs)).reshape(-1, inputs)

    layers = () if dense is None else (Layer(Linear(Tensor((dense, inputs), ("made.up",), rows), None), "tanh"),)
    return replace(graph, head=Head(None, layers, pooling, fields.boolean("normalize", False)))
"""


def config_of(name: str) -> dict[str, Any]:
    made_up = {"model_type": "pooled"} if name.startswith("pooled") else {}
    return {**TINY, **made_up, **HEADS[name]}


@pytest.fixture(scope="module", autouse=True)
def _family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The made-up family, for the graphs that are read here and for those that builds read."""
    import kaoken.codegen.families as package

    directory = tmp_path_factory.mktemp("families")
    (directory / "pooled.py").write_text(FAMILY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAOKEN_FAMILIES", str(directory))
        patch.setattr(package, "__path__", [*package.__path__, str(directory)])
        yield


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("heads")
    return {name: write(root / name, config_of(name)) for name in HEADS}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest,
    _family: None,
    directories: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """By head or type: those of the selected tests, baked together."""
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, TYPED)


berts = [name for name in HEADS if not name.startswith("pooled")]
baked = pytest.mark.parametrize("name", some_only_in_ci(HEADS, ONLY_IN_CI))
of_positions = pytest.mark.parametrize("name", some_only_in_ci(["tagger", "answers", "masked"], ONLY_IN_CI))


def texts_of(config: dict[str, Any], lengths: tuple[int, ...] = LENGTHS) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and token types."""
    random = np.random.Generator(np.random.PCG64(3))
    return tuple(
        [random.integers(0, config[size], length).tolist() for length in lengths]
        for size in ("vocab_size", "type_vocab_size")
    )


@pytest.mark.parametrize("name", berts)
def test_the_graph_computes_what_the_oracle_does(name: str, directories: dict[str, Path]) -> None:
    ids, types = texts_of(config_of(name), (70,))
    expected = np.atleast_2d(Bert(directories[name]).logits(ids[0], types[0]))
    graph = read_graph(open_checkpoint(directories[name]))
    for each in (graph, rewrites.run(graph)):
        np.testing.assert_allclose(evaluate(each, ids[0], types=types[0]), expected, rtol=0, atol=1e-11)


@pytest.mark.ci
@pytest.mark.parametrize("name", berts)
def test_the_oracle_equals_transformers(name: str, directories: dict[str, Path], record_error: RecordError) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, types = texts_of(config_of(name), (70,))
    with torch.no_grad():
        model = getattr(transformers, config_of(name)["architectures"][0]).from_pretrained(directories[name]).eval()
        outputs = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(types))
    if name == "answers":
        expected = torch.stack([outputs.start_logits[0], outputs.end_logits[0]], -1)
    else:
        expected = outputs.logits[0]
    error = relative_error(Bert(directories[name]).logits(ids[0], types[0]), expected)
    record_error("logits of transformers' BERTs against the float64 oracle", error)
    assert error < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", berts)
def test_what_transformers_saves_is_read(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields = {key: value for key, value in config_of(name).items() if key not in ("model_type", "architectures")}
    fields |= (
        {"id2label": {int(key): label for key, label in fields.get("id2label", {}).items()}}
        if "id2label" in fields
        else {}
    )
    model = getattr(transformers, config_of(name)["architectures"][0])(transformers.BertConfig(**fields)).eval()
    model.save_pretrained(tmp_path)
    ids, types = texts_of(config_of(name), (70,))
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(types))
    expected = outputs.start_logits.T if name == "answers" else np.atleast_2d(outputs.logits[0])
    found = evaluate(rewrites.run(read_graph(open_checkpoint(tmp_path))), ids[0], types=types[0])
    assert relative_error(expected, found[:, :1] if name == "answers" else found) < LIMIT


@baked
def test_outputs_equal_the_evaluator(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    model, graph = kaoken.load(libraries[name]), read_graph(open_checkpoint(directories[name]))
    ids, types = texts_of(config_of(name))
    found = model.logits(ids, types)
    error = max(
        relative_error(evaluate(graph, *text, types=kinds), np.atleast_2d(outputs))
        for *text, kinds, outputs in zip(ids, types, found, strict=True)
    )
    record_error("outputs of heads against the float64 evaluator", error)
    assert error < LIMIT
    assert model.config.output_width == found[0].shape[-1]
    assert isinstance(found, np.ndarray) == model.config.pools


@pytest.mark.parametrize("name", some_only_in_ci(TYPES, ONLY_IN_CI))
def test_outputs_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    model, oracle = kaoken.load(libraries[name]), Bert(directories[TYPED])
    ids, types = texts_of(config_of(TYPED))
    expected = np.stack([oracle.logits(*text) for text in zip(ids, types, strict=True)])
    error = relative_error(expected, model.logits(ids, types))
    record_error(f"logits of a BERT in {name} against the float64 oracle", error)
    assert error < TYPES[name]


@baked
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """In any order, in passes that end because of their rows and of their texts, and beside hidden states."""
    config = config_of(name)
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    ids, types = texts_of(config, (*LENGTHS, *range(1, 8), *[1] * 70, 100, 100, 100))
    expected = [alone.logits(*text)[0] for text in zip(ids, types, strict=True)]
    states = [alone.hidden_states(*text)[0] for text in zip(ids, types, strict=True)]
    random = np.random.Generator(np.random.PCG64(threads))
    for order in (np.arange(len(ids)), random.permutation(len(ids))):
        batch = [ids[each] for each in order], [types[each] for each in order]
        for found, wanted in ((model.logits(*batch), expected), (model.hidden_states(*batch), states)):
            for each, outputs in zip(order, found, strict=True):
                require_same_bits(outputs, wanted[each])


@of_positions
@pytest.mark.parametrize("hidden_states", [False, True])
def test_positions_that_are_asked_for(name: str, hidden_states: bool, libraries: dict[str, Path]) -> None:
    """Any of a text, none of another, with the bits of all."""
    ids, types = texts_of(config_of(name))
    model = kaoken.load(libraries[name])
    asked = [[0], [], [0, 1, 2, 40, 62], [63], list(range(65)), [5, 6, 7, 99, 139], [149]]
    every = model.hidden_states(ids, types) if hidden_states else model.logits(ids, types)
    expected = np.concatenate([outputs[positions] for outputs, positions in zip(every, asked, strict=True)])
    session = _core.Library(libraries[name]).session(1, 2)
    found = session.encode(
        np.array(LENGTHS),
        np.concatenate(ids),
        np.concatenate(types),
        hidden_states,
        np.array([len(each) for each in asked]),
        np.concatenate(asked).astype(np.int64),
    )
    require_same_bits(found, expected)
    nothing = session.encode(np.array([3]), np.array([1, 2, 3]), None, hidden_states, np.array([0]), np.array([], int))
    assert nothing is not None
    assert nothing.shape[0] == 0


@pytest.mark.parametrize("name", ["tagger"])
def test_positions_that_are_refused(name: str, libraries: dict[str, Path]) -> None:
    session = _core.Library(libraries[name]).session(1, 1)

    def encode(counts: list[int] | None, positions: list[int] | None) -> Any:
        arrays = [None if each is None else np.array(each, np.int64) for each in (counts, positions)]
        return session.encode(np.array([2, 3]), np.arange(5), None, False, *arrays)

    cases: list[tuple[list[int] | None, list[int] | None, str]] = [
        ([1, 0], [2], "positions of text 0 are not ascending and within its 2 tokens"),
        ([1, 0], [-1], "positions of text 0"),
        ([0, 2], [1, 1], "positions of text 1"),
        ([0, 2], [2, 1], "positions of text 1"),
        ([0, 4], [0, 1, 2, 3], "positions of text 1"),
        ([1, 1], [0], "the lengths must add up"),
        ([1], [0], "a count for each text"),
        ([1, 1], None, "a count for each text, and positions"),
    ]
    for counts, positions, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            encode(counts, positions)
    assert encode([0, 3], [0, 1, 2]).shape == (3, 3)


@pytest.mark.parametrize("name", ["classifier"])
def test_positions_that_a_head_pools(name: str, libraries: dict[str, Path]) -> None:
    """Of each text one at least, without a gap; of hidden states they may be any."""
    session = _core.Library(libraries[name]).session(1, 1)

    def encode(counts: list[int], positions: list[int], hidden_states: bool = False) -> Any:
        asked = (np.array(counts, np.int64), np.array(positions, np.int64))
        return session.encode(np.array([3, 1]), np.arange(4), None, hidden_states, *asked)

    for counts, positions in (([0, 1], [0]), ([2, 1], [0, 2, 0])):
        with pytest.raises(
            kaoken.InputError, match="text 0 that become one vector must be one at least, without a gap"
        ):
            encode(counts, positions)
    assert encode([2, 0], [0, 2], True).shape == (2, 48)
    assert encode([3, 1], [0, 1, 2, 0]).tobytes() == session.encode(np.array([3, 1]), np.arange(4)).tobytes()


@pytest.mark.parametrize("name", ["classifier", "tagger", "masked", "pooled_mean"])
def test_what_a_model_says_of_its_head(name: str, libraries: dict[str, Path]) -> None:
    config = kaoken.load(libraries[name]).config
    said = {
        "classifier": ("text-classification", ("no", "perhaps", "yes"), "softmax", "none", True, 3),
        "tagger": ("token-classification", ("no", "perhaps", "yes"), "softmax", "none", False, 3),
        "masked": ("fill-mask", (), "", "", False, 131),
        "pooled_mean": ("feature-extraction", (), "", "", True, 48),
    }[name]
    found = (config.task, config.labels, config.function, config.score_function, config.pools, config.output_width)
    assert found == said
    assert config.has_head


def graph_of(directory: Path, **fields: Any) -> Graph:
    return read_graph(open_checkpoint(write(directory, {**config_of("classifier"), **fields})))


LABELS: dict[str, tuple[dict[str, Any], tuple[str, ...], str, str]] = {
    "three": ({}, ("no", "perhaps", "yes"), "softmax", "none"),
    "several": ({"problem_type": "multi_label_classification"}, ("no", "perhaps", "yes"), "sigmoid", "none"),
    "a number": ({"problem_type": "regression", "id2label": {"0": "x"}}, ("x",), "none", "sigmoid"),
    "one": ({"id2label": {"0": "x"}}, ("x",), "sigmoid", "sigmoid"),
    "an old reranker": (
        {"id2label": {"0": "x"}, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        ("x",),
        "sigmoid",
        "none",
    ),
    "a reranker": (
        {
            "id2label": {"0": "x"},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"},
        },
        ("x",),
        "sigmoid",
        "sigmoid",
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(case: str, tmp_path: Path) -> None:
    fields, labels, function, score = LABELS[case]
    task = graph_of(tmp_path, **fields).task
    assert (task.labels, task.function, task.score) == (labels, function, score)


def test_labels_without_names(tmp_path: Path) -> None:
    config = {key: value for key, value in config_of("classifier").items() if key != "id2label"}
    assert read_graph(open_checkpoint(write(tmp_path, config))).task.labels == ("LABEL_0", "LABEL_1")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "labels of a list": ({"id2label": ["a", "b"]}, "id2label is .*expected an object with a name"),
    "labels with a gap": ({"id2label": {"0": "a", "2": "b"}}, "id2label is"),
    "labels that are no text": ({"id2label": {"0": 1}}, "id2label is"),
    "another number of labels": ({**THREE, "num_labels": 2}, "num_labels is 2; expected 3"),
    "an unknown problem": ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
    "an unknown function": (
        {"sbert_ce_default_activation_function": "os.system"},
        "the activation function of scores is 'os.system'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_refused(case: str, tmp_path: Path) -> None:
    fields, message = REFUSED[case]
    directory = write(tmp_path, config_of("classifier"))
    (directory / "config.json").write_text(json.dumps({**config_of("classifier"), **fields}), encoding="utf-8")
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        read_graph(open_checkpoint(directory))


def test_a_head_is_never_dropped(tmp_path: Path) -> None:
    """Nor made up: the config has to name the head that the tensors are."""
    directory = write(tmp_path, config_of("classifier"))
    config = config_of("classifier")
    cases = {
        "BertModel": "'classifier.bias' is no tensor of a BERT",
        "BertForTokenClassification": None,
        "BertForQuestionAnswering": "'classifier.bias' is no tensor of a BERT",
        "BertForMaskedLM": "'classifier.bias' is no tensor of a BERT",
        "BertForNextSentencePrediction": "architectures names 'BertForNextSentencePrediction'",
    }
    for architecture, message in cases.items():
        text = json.dumps({**config, "architectures": [architecture]})
        (directory / "config.json").write_text(text, encoding="utf-8")
        if message is None:  # whose tensors are the same, but for the pooler
            assert read_graph(open_checkpoint(directory)).head.layers == ()
            continue
        with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
            read_graph(open_checkpoint(directory))
    two = json.dumps({**config, "id2label": {"0": "a", "1": "b"}})
    (directory / "config.json").write_text(two, encoding="utf-8")
    with pytest.raises(CheckpointError, match="shape"):
        read_graph(open_checkpoint(directory))


def test_rewrites_keep_what_a_head_computes(directories: dict[str, Path]) -> None:
    """Biases and norms that it lacks are filled."""

    def made(*shape: int) -> Tensor:
        values = np.random.Generator(np.random.PCG64(shape)).uniform(-1, 1, shape)
        return Tensor(shape, ("made.up",), lambda start, stop: values[start:stop])

    graph = read_graph(open_checkpoint(directories["classifier"]))
    norm = replace(graph.encoder.embeddings.norm, weight=None, bias=None)
    layers = (Layer(Linear(made(9, 96), None), "relu"), Layer(Linear(made(7, 9), None), None, replace(norm)))
    graph = replace(graph, head=Head(Linear(made(5, 7), None), layers, ("mean", "first")))
    ids = list(range(20))
    expected: NDArray[np.float64] = evaluate(graph, ids)
    np.testing.assert_allclose(evaluate(rewrites.run(graph), ids), expected, rtol=0, atol=1e-11)

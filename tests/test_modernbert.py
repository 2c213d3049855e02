"""ModernBERTs: vectors and logits of baked ones against their graphs and transformers, their bits, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import check_config, read_graph
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import kaoken
from bits import require_same_bits
from checkpoints import uniform
from conftest import RecordError, bake_wanted, some_only_in_ci
from hostile import require_numbers, require_refused, require_sound
from reference import LIMIT, relative_error

LENGTHS = (1, 2, 9, 63, 64, 65, 300, 600)
LIMITED = 600  # positions: more rows than a pass of several texts has

BASE: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": LIMITED,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
LABELS = {"id2label": {"0": "no", "1": "perhaps", "2": "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}}

# Fields that differ from BASE. The first is named as those of checkpoints on the hub are.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "masked": {
        "architectures": ["ModernBertForMaskedLM"],
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "local_attention": 128,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "hidden_size": 96,
        "num_attention_heads": 4,
        "intermediate_size": 130,
    },
    "plain": {"architectures": ["ModernBertModel"], "local_attention": 21, "num_hidden_layers": 3},
    "tagger": {
        "architectures": ["ModernBertForTokenClassification"],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
            "sliding_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
        "local_attention": 150,
        "hidden_size": 40,
        "num_attention_heads": 2,
        "intermediate_size": 33,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "classifier_activation": "silu",
        **LABELS,
    },
    "classifier": {
        "architectures": ["ModernBertForSequenceClassification"],
        "classifier_pooling": "mean",
        "hidden_activation": "gelu_new",
        "local_attention": 1,
        "global_attn_every_n_layers": 2,
        "num_hidden_layers": 2,
        "hidden_size": 20,
        "num_attention_heads": 1,
        "intermediate_size": 7,
        "norm_eps": 1e-4,
        **LABELS,
    },
    "first": {"architectures": ["ModernBertForSequenceClassification"], "num_hidden_layers": 2, "local_attention": 64},
    "answers": {"architectures": ["ModernBertForQuestionAnswering"], "local_attention": 10, "attention_bias": True},
    "untied": {
        "architectures": ["ModernBertForMaskedLM"],
        "tie_word_embeddings": False,
        "decoder_bias": False,
        "local_attention": 40,
    },
}

# With the largest difference from float64 on such random weights, of max(1, largest value): about twice what was seen.
TYPES = {"bfloat16": 0.017, "int8": 0.05, "int4": 0.3}
TYPED = "masked"
QUICK = ("masked", "tagger")

names = pytest.mark.parametrize("name", CONFIGURATIONS)
baked = pytest.mark.parametrize("name", some_only_in_ci(CONFIGURATIONS, {*CONFIGURATIONS} - {*QUICK}))
typed = pytest.mark.parametrize("name", some_only_in_ci(TYPES, {"bfloat16", "int4"}))

Model = kaoken.BakedEncoder


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    return {**BASE, **CONFIGURATIONS[name]}


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = check_config(config, directory / "config.json")
    prefix = {name: "" if name.startswith(("head.", "decoder.", "classifier.")) else "model." for name in shapes}
    plain = config["architectures"] == ["ModernBertModel"]
    tensors = {name if plain else prefix[name] + name: make_tensor(name, shape) for name, shape in shapes.items()}
    tensors = {name: values for name, values in tensors.items() if not tied(name, config)}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def tied(name: str, config: Mapping[str, Any]) -> bool:
    return name == "decoder.weight" and bool(config.get("tie_word_embeddings", True))


def make_tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    values = uniform(name, shape, seed=0)
    if name.endswith("norm.weight"):
        values = 1.0 + 0.4 * values
    elif name.endswith(".bias"):
        values = 0.4 * values
    elif "embeddings." not in name:
        values = values * math.sqrt(2.0 / shape[1])
    return values.astype(np.float32)


def texts_of(config: Mapping[str, Any]) -> list[list[int]]:
    """The ids of texts of all lengths, without a pad token."""
    random = np.random.Generator(np.random.PCG64(9))
    return [random.integers(3, config["vocab_size"], length).tolist() for length in LENGTHS]


def outputs_of(model: Model, texts: list[list[int]]) -> list[NDArray[np.float32]]:
    """Of each text the logits or, without a head, the vectors."""
    return list(model.logits(texts) if model.config.has_head else model.hidden_states(texts))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("modernberts")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By configuration or type: those of the selected tests, baked together."""
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, TYPED)


def require_close(library: Path, directory: Path, limit: float) -> float:
    """Texts of all lengths in one call against the graph before its rewrites; returns the largest error."""
    graph = read_graph(open_checkpoint(directory))
    texts = texts_of(BASE)
    found = outputs_of(kaoken.load(library), texts)
    expected = [evaluate(graph, text).reshape(each.shape) for text, each in zip(texts, found, strict=True)]
    error = max(relative_error(*each) for each in zip(expected, found, strict=True))
    assert error < limit
    return error


@names
def test_rewrites_change_nothing(name: str, directories: dict[str, Path]) -> None:
    graph, text = read_graph(open_checkpoint(directories[name])), texts_of(BASE)[-1]
    np.testing.assert_allclose(evaluate(rewrites.run(graph), text), evaluate(graph, text), rtol=0, atol=1e-11)


@baked
def test_outputs(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(libraries[name], directories[name], LIMIT)
    record_error("outputs of ModernBERTs against their graphs in float64", error)


@typed
def test_outputs_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(libraries[name], directories[TYPED], TYPES[name])
    record_error(f"outputs of ModernBERTs in {name} against their graphs in float64", error)


@pytest.mark.parametrize("name", [*QUICK, "int8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    texts = texts_of(BASE)
    texts = [*texts, *texts[::-1], *texts[:3] * 30]
    expected = [outputs_of(alone, [text])[0] for text in texts[: len(LENGTHS)]]
    for found, text in zip(outputs_of(model, texts), texts, strict=True):
        require_same_bits(found, expected[LENGTHS.index(len(text))])


@pytest.mark.ci
@names
def test_outputs_equal_transformers(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """Of padded texts, whose padding is left out here and masked there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, config, texts = kaoken.load(libraries[name]), config_of(name), texts_of(BASE)
    architecture = getattr(transformers, config["architectures"][0])
    theirs, loading = architecture.from_pretrained(
        directories[name], output_loading_info=True, attn_implementation="eager"
    )
    assert not loading["unexpected_keys"]
    assert not loading["missing_keys"]
    padded = np.array([text + [0] * (LIMITED - len(text)) for text in texts])
    mask = np.array([[1] * len(text) + [0] * (LIMITED - len(text)) for text in texts])
    with torch.no_grad():
        outputs = theirs.eval()(torch.from_numpy(padded), torch.from_numpy(mask))
    if name == "plain":
        expected = outputs.last_hidden_state.numpy()
    elif name == "answers":
        expected = np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], axis=-1)
    else:
        expected = outputs.logits.numpy()
    errors = [
        relative_error(row if found.ndim == 1 else row[: len(found)], found)
        for row, found in zip(expected, outputs_of(model, texts), strict=True)
    ]
    record_error("outputs of ModernBERTs against transformers", max(errors))
    assert max(errors) < LIMIT


@pytest.mark.ci
@names
def test_what_transformers_saves_is_read(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    """Every field and every tensor; what was read from the older fields is read from the new ones."""
    transformers = pytest.importorskip("transformers")
    architecture = getattr(transformers, config_of(name)["architectures"][0])
    architecture.from_pretrained(directories[name]).save_pretrained(tmp_path)
    text = texts_of(BASE)[-1]
    expected, found = (evaluate(read_graph(open_checkpoint(each)), text) for each in (directories[name], tmp_path))
    np.testing.assert_array_equal(found, expected)


def test_what_the_graph_says_of_itself(directories: dict[str, Path]) -> None:
    graphs = {name: read_graph(open_checkpoint(directories[name])) for name in CONFIGURATIONS}
    windows = {name: [block.attention.window for block in graph.blocks] for name, graph in graphs.items()}
    assert windows["masked"] == [None, 128, 128, None]
    assert windows["tagger"] == [150, None, 150]
    assert windows["classifier"] == [None, 1]
    assert graphs["masked"].blocks[1].attention.reach == 64
    assert graphs["masked"].blocks[0].sublayers[0].before is None
    special = graphs["masked"].special
    assert (special.bos, special.eos, special.pad, graphs["masked"].stack.limit) == (1, (2,), 0, LIMITED)
    assert graphs["masked"].tied
    assert not graphs["untied"].tied


def test_the_frequencies_of_local_blocks_are_those_of_global_ones_where_they_are_null(tmp_path: Path) -> None:
    graph = read_graph(open_checkpoint(write(tmp_path, {**config_of("masked"), "local_rope_theta": None})))
    assert len({block.attention.rotary for block in graph.blocks}) == 1


PLAIN = config_of("plain")
REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "an odd head": (CheckpointError, {"num_attention_heads": 16}, "num_attention_heads is 16; expected a divisor of"),
    "no window": (CheckpointError, {"local_attention": 0}, "local_attention is 0"),
    "a window that is none": (CheckpointError, {"local_attention": -1}, "local_attention is -1"),
    "a huge window": (CheckpointError, {"local_attention": 1 << 40}, "local_attention is 1099511627776"),
    "a theta": (CheckpointError, {"global_rope_theta": 0.0}, "global_rope_theta is 0.0"),
    "a local theta": (CheckpointError, {"local_rope_theta": "much"}, "local_rope_theta is 'much'"),
    "a kind of block": (CheckpointError, {"layer_types": ["full_attention"] * 2 + ["x"]}, "layer_types is"),
    "kinds of other blocks": (CheckpointError, {"layer_types": ["full_attention"]}, "expected a list of 3"),
    "no kinds": (CheckpointError, {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
    "flat frequencies": (UnsupportedModelError, {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters is not by"),
    "other frequencies": (
        UnsupportedModelError,
        {"rope_parameters": {"full_attention": {"rope_type": "longrope", "factor": 2.0}}},
        "full_attention: rope_parameters is of type 'longrope'",
    ),
    "stretched": (UnsupportedModelError, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
    "another activation": (UnsupportedModelError, {"hidden_activation": "relu6"}, "hidden_activation is 'relu6'"),
    "biases": (CheckpointError, {"attention_bias": True}, "lacks the tensor 'layers.0.attn.Wqkv.bias'"),
    "norms' biases": (CheckpointError, {"norm_bias": True}, "lacks the tensor 'embeddings.norm.bias'"),
    "a block too many": (CheckpointError, {"num_hidden_layers": 4}, "lacks the tensor 'layers.3"),
    "a block too few": (UnsupportedModelError, {"num_hidden_layers": 2}, "'layers.2.*is no tensor of a ModernBERT"),
    "many blocks": (CheckpointError, {"num_hidden_layers": 1000}, "lacks the tensor 'layers.3"),
    "huge positions": (CheckpointError, {"max_position_embeddings": 1 << 40}, "max_position_embeddings is 1099511627"),
    "an unknown field": (UnsupportedModelError, {"head_dim": 4}, "'head_dim'"),
    "a head": (UnsupportedModelError, {"architectures": ["ModernBertForMultipleChoice"]}, "architectures names"),
    "a head that is not there": (
        CheckpointError,
        {"architectures": ["ModernBertForTokenClassification"]},
        "lacks the tensor 'head.dense.weight'",
    ),
    "another pooling": (
        UnsupportedModelError,
        {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "max"},
        "classifier_pooling is 'max'; expected one of cls, mean",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    require_refused(write(tmp_path, PLAIN), PLAIN, *REFUSED[case])


@pytest.mark.parametrize("name", ["layers.1.attn.Wqkv.weight", "layers.0.mlp.Wi.weight", "final_norm.weight"])
def test_hostile_tensors(name: str, tmp_path: Path) -> None:
    require_sound(write(tmp_path, PLAIN), name)


@pytest.mark.ci
def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    require_numbers(write(tmp_path, PLAIN), "layers.1.mlp.Wi.weight")


def test_tensors_that_are_left_over(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN) / "model.safetensors"
    save_file(load_file(file) | {"layers.0.attn_norm.weight": np.ones(48, np.float32)}, file)
    with pytest.raises(UnsupportedModelError, match=r"layers.0.attn_norm.weight' is no tensor of a ModernBERT"):
        read_graph(open_checkpoint(tmp_path))

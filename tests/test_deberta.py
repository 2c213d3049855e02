"""DeBERTas: vectors and logits of baked ones against their graphs and transformers, their bits, what is refused."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import make_types
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import check_config, deberta_v2, read_graph
from kaoken.codegen.graph import Graph
from kaoken.codegen.isa import resolve, table
from kaoken.codegen.packing import pack
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import kaoken
from bits import require_same_bits
from checkpoints import uniform
from conftest import RecordError, bake_wanted, some_only_in_ci
from hostile import require_numbers, require_refused, require_sound
from kaoken import _core
from native_kernels import processor_features
from reference import LIMIT, relative_error

LENGTHS = (1, 2, 9, 63, 64, 65, 140, 200)
POSITIONS = 200

BASE: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}

# What version 3 changed, as its configs name it.
THIRD: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
LABELS = {"id2label": {"0": "no", "1": "perhaps", "2": "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}}

# Fields that differ from BASE. The first is that of a reranker on the hub.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "reranker": {
        **THIRD,
        "architectures": ["DebertaV2ForSequenceClassification"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_size": 96,
        "num_attention_heads": 4,
        "intermediate_size": 130,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "legacy": True,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 96,
    },
    "plain": {**THIRD, "architectures": ["DebertaV2Model"]},
    "tagger": {  # with projections of their own, and a table without buckets that ends before the text does
        "architectures": ["DebertaV2ForTokenClassification"],
        "relative_attention": True,
        "max_relative_positions": 70,
        "pos_att_type": ["c2p", "p2c"],
        "type_vocab_size": 2,
        "hidden_size": 40,
        "num_attention_heads": 2,
        "intermediate_size": 33,
        "hidden_act": "gelu_new",
        **LABELS,
    },
    "masked": {  # with tables of tokens narrower than the stream, and buckets by the logarithm that no distance has
        **THIRD,
        "architectures": ["DebertaV2ForMaskedLM"],
        "embedding_size": 20,
        "position_biased_input": True,
        "pos_att_type": ["p2c"],
        "position_buckets": 101,
        "max_relative_positions": 60,
        "num_hidden_layers": 1,
        "type_vocab_size": 3,
    },
    "trained": {  # with the head of their training
        **THIRD,
        "architectures": ["DebertaV2ForMaskedLM"],
        "legacy": False,
        "pos_att_type": ["c2p"],
        "hidden_size": 20,
        "num_attention_heads": 1,
        "intermediate_size": 7,
        "hidden_act": "relu",
        "position_buckets": 2,
    },
    "absolute": {
        "architectures": ["DebertaV2ForQuestionAnswering"],
        "pos_att_type": "c2p|p2c",  # which scales scores all the same
        "norm_rel_ebd": "layer_norm",
        "layer_norm_eps": 1e-5,
    },
    "idle": {  # with a table that no term reads
        **THIRD,
        "architectures": ["DebertaV2ForSequenceClassification"],
        "pos_att_type": None,
        "pooler_hidden_act": "tanh",
        **LABELS,
    },
}

# With the largest difference from float64 on such random weights, of max(1, largest value): about twice what was seen.
TYPES = {"bfloat16": 0.012, "int8": 0.033, "int4": 0.25}
TYPED = "plain"
QUICK = ("reranker", "tagger")

names = pytest.mark.parametrize("name", CONFIGURATIONS)
baked = pytest.mark.parametrize("name", some_only_in_ci(CONFIGURATIONS, {*CONFIGURATIONS} - {*QUICK}))
typed = pytest.mark.parametrize("name", some_only_in_ci(TYPES, {"bfloat16", "int4"}))

Model = kaoken.BakedEncoder
HEADS = ("pooler.", "classifier.", "cls.", "lm_predictions.", "qa_outputs.")


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    return {**BASE, **CONFIGURATIONS[name]}


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = check_config(config, directory / "config.json")
    headless = config["architectures"] == ["DebertaV2Model"]
    tensors = {
        name if headless or name.startswith(HEADS) else f"deberta.{name}": make_tensor(name, shape)
        for name, shape in shapes.items()
        if not name.startswith("cls.predictions.decoder.")  # which are tied
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def make_tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    values = uniform(name, shape, seed=0)
    if name.endswith("Norm.weight"):
        values = 1.0 + 0.4 * values
    elif name.endswith(".bias"):
        values = 0.4 * values
    elif "embeddings." not in name:
        values = values * math.sqrt((7.0 if "query_proj" in name or "key_proj" in name else 2.0) / shape[1])
    return values.astype(np.float32)


def texts_of(config: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int]] | None]:
    """The ids of texts of all lengths, without a pad token, and their token types."""
    random = np.random.Generator(np.random.PCG64(9))
    ids = [random.integers(3, config["vocab_size"], length).tolist() for length in LENGTHS]
    types = config.get("type_vocab_size", 0)
    return ids, [random.integers(0, types, length).tolist() for length in LENGTHS] if types else None


def outputs_of(model: Model, ids: list[list[int]], types: list[list[int]] | None) -> list[NDArray[np.float32]]:
    """Of each text the logits or, without a head, the vectors."""
    return list(model.logits(ids, types) if model.config.has_head else model.hidden_states(ids, types))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("debertas")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By configuration or type: those of the selected tests, baked together."""
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, TYPED)


def expected_of(graph: Graph, ids: list[list[int]], types: list[list[int]] | None) -> list[NDArray[np.float64]]:
    return [evaluate(graph, text, types=types and types[index]) for index, text in enumerate(ids)]


def require_close(name: str, library: Path, directory: Path, limit: float) -> float:
    """Texts of all lengths in one call against the graph before its rewrites; returns the largest error."""
    texts = texts_of(config_of(name))
    found = outputs_of(kaoken.load(library), *texts)
    expected = expected_of(read_graph(open_checkpoint(directory)), *texts)
    error = max(relative_error(each, np.atleast_2d(row)) for each, row in zip(expected, found, strict=True))
    assert error < limit
    return error


@names
def test_rewrites_change_nothing(name: str, directories: dict[str, Path]) -> None:
    graph = read_graph(open_checkpoint(directories[name]))
    ids, types = texts_of(config_of(name))
    expected, found = (evaluate(each, ids[-1], types=types and types[-1]) for each in (graph, rewrites.run(graph)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@baked
def test_outputs(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(name, libraries[name], directories[name], LIMIT)
    record_error("outputs of DeBERTas against their graphs in float64", error)


@typed
def test_outputs_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(TYPED, libraries[name], directories[TYPED], TYPES[name])
    record_error(f"outputs of DeBERTas in {name} against their graphs in float64", error)


@pytest.mark.parametrize("name", [*QUICK, "int8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    ids, types = texts_of(config_of(name if name in CONFIGURATIONS else TYPED))
    order = [*range(len(LENGTHS)), *range(len(LENGTHS))[::-1], *[0, 1, 2] * 30]
    expected = [outputs_of(alone, [text], types and [types[index]])[0] for index, text in enumerate(ids)]
    together = outputs_of(model, [ids[index] for index in order], types and [types[index] for index in order])
    for index, found in zip(order, together, strict=True):
        require_same_bits(found, expected[index])


def test_some_positions_have_the_bits_of_all(libraries: dict[str, Path]) -> None:
    """Of the last block, whose rows are then few and lie apart."""
    session = _core.Library(libraries["tagger"]).session(1, 2)
    ids = np.array(texts_of(config_of("tagger"))[0][-1])
    chosen = np.array([0, 5, 6, 7, 63, 64, 150, 199])
    every, some = (
        session.encode(np.array([len(ids)]), ids, None, False, *positions)
        for positions in ((None, None), (np.array([len(chosen)]), chosen))
    )
    assert every is not None
    assert some is not None
    require_same_bits(some, every[chosen])


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_isa_of_this_machine(dtype: str, directories: dict[str, Path], tmp_path: Path) -> None:
    library = _core.Library(kaoken.bake(directories[TYPED], dtype=dtype, isa="portable", out=tmp_path / "model.so"))
    graph, ids = read_graph(open_checkpoint(directories[TYPED])), np.array(texts_of(BASE)[0][-1])
    expected = evaluate(graph, ids.tolist())
    isas = resolve("portable", platform.machine(), make_types(dtype).used())
    for isa in (isa for isa in isas if set(table()[isa].cpu) <= processor_features()):
        session = library.session(1, 2, isa)
        found = session.encode(np.array([len(ids)]), ids, None, False, None, None)
        assert session.executed_isa == isa
        assert found is not None
        assert relative_error(expected, found) < (LIMIT if dtype == "float32" else TYPES[dtype])


@pytest.mark.ci
@names
def test_outputs_equal_transformers(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """Of padded texts, whose padding is left out here and masked there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = config_of(name)
    ids, types = texts_of(config)
    architecture = getattr(transformers, config["architectures"][0])
    theirs, loading = architecture.from_pretrained(directories[name], output_loading_info=True)
    assert not loading["unexpected_keys"]
    assert not loading["missing_keys"]
    rows = {"input_ids": ids, "attention_mask": [[1] * len(text) for text in ids]}
    rows |= {} if types is None else {"token_type_ids": types}
    given = {key: torch.tensor([row + [0] * (POSITIONS - len(row)) for row in values]) for key, values in rows.items()}
    with torch.no_grad():
        outputs = theirs.eval()(**given)
    if name == "plain":
        expected = outputs.last_hidden_state.numpy()
    elif name == "absolute":
        expected = np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], axis=-1)
    else:
        expected = outputs.logits.numpy()
    errors = [
        relative_error(row if found.ndim == 1 else row[: len(found)], found)
        for row, found in zip(expected, outputs_of(kaoken.load(libraries[name]), ids, types), strict=True)
    ]
    record_error("outputs of DeBERTas against transformers", max(errors))
    assert max(errors) < LIMIT


@pytest.mark.ci
@names
def test_what_transformers_saves_is_read(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    """Every field and every tensor."""
    transformers = pytest.importorskip("transformers")
    architecture = getattr(transformers, config_of(name)["architectures"][0])
    architecture.from_pretrained(directories[name]).save_pretrained(tmp_path)
    text = texts_of(BASE)[0][-1]
    expected, found = (evaluate(read_graph(open_checkpoint(each)), text) for each in (directories[name], tmp_path))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("span", "furthest"), [(256, 512), (256, 4096), (256, 200), (32, 200), (2, 300), (9, 40), (101, 60), (None, 70)]
)
def test_buckets_equal_those_of_transformers(span: int | None, furthest: int) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rows = torch.zeros(1, 5000, 1)
    theirs = transformers.models.deberta_v2.modeling_deberta_v2.build_relative_position(
        rows, rows, bucket_size=span or -1, max_position=furthest
    )[0, 0]
    count = span or furthest
    expected = 2 * count - 1 - np.clip(theirs.numpy() + count, 0, 2 * count - 1)
    np.testing.assert_array_equal(deberta_v2.buckets(np.arange(5000), span, furthest), expected)


def test_what_the_graph_says_of_itself(directories: dict[str, Path]) -> None:
    graphs = {name: read_graph(open_checkpoint(directories[name])) for name in CONFIGURATIONS}
    relatives = {name: graph.blocks[0].attention.relative for name, graph in graphs.items()}
    assert {name: relative and relative.count for name, relative in relatives.items()} == {
        "reranker": 63,  # of 64, as no key is so far in front that the first would be its
        "plain": 63,
        "tagger": 140,
        "masked": 121,  # of 202
        "trained": 3,
        "absolute": None,
        "idle": None,
    }
    assert (relatives["masked"].keys, relatives["trained"].queries) == (None, None)
    scales = {name: graph.blocks[0].attention.scale for name, graph in graphs.items()}
    assert scales["plain"] == scales["absolute"] == pytest.approx(1 / math.sqrt(16 * 3))
    assert scales["idle"] == pytest.approx(1 / math.sqrt(16))
    assert graphs["masked"].tied
    assert graphs["trained"].tied


def test_tables_have_the_type_of_the_cache(directories: dict[str, Path]) -> None:
    graph = rewrites.run(read_graph(open_checkpoint(directories["plain"])))
    for cache, names in (
        ("float32", ("relative_key_weight", "relative_queries")),
        ("int8", ("relative_key_weight", "relative_key_scale", "relative_key_sum", "relative_queries")),
    ):
        packed = pack(graph, make_types("float32", cache=cache), 1 << 20)
        assert packed.blocks[1].sublayers[0].relative == names


def test_the_heads_of_the_training_may_be_left(tmp_path: Path) -> None:
    """The first checkpoints name no architecture and have them."""
    config = {**config_of("plain"), "architectures": None}
    file = write(tmp_path, config_of("plain")) / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    left = {f"{name}_predictions.{part}": np.ones(3, np.float32) for name in ("lm", "mask") for part in ("a", "b.c")}
    save_file({f"deberta.{name}": values for name, values in load_file(file).items()} | left, file)
    assert read_graph(open_checkpoint(tmp_path)).head is None


PLAIN = config_of("plain")
REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "a convolution": (UnsupportedModelError, {"conv_kernel_size": 3, "conv_act": "gelu"}, "conv_kernel_size is 3"),
    "another term": (UnsupportedModelError, {"pos_att_type": "c2p|p2p"}, "pos_att_type names 'p2p'"),
    "terms that are no words": (CheckpointError, {"pos_att_type": [3]}, r"pos_att_type is \[3\]"),
    "terms that are no list": (CheckpointError, {"pos_att_type": 3}, "pos_att_type is 3"),
    "one bucket": (CheckpointError, {"position_buckets": 1}, "position_buckets is 1; expected from 2 to"),
    "many buckets": (CheckpointError, {"position_buckets": 398}, "position_buckets is 398; expected from 2 to 397"),
    "huge buckets": (CheckpointError, {"position_buckets": 1 << 40}, "position_buckets is 1099511627776"),
    "no number of buckets": (CheckpointError, {"position_buckets": 1.5}, "position_buckets is 1.5"),
    "other buckets": (CheckpointError, {"position_buckets": 30}, r"has shape \[64, 48\]; expected \[60, 48\]"),
    "no buckets": (CheckpointError, {"position_buckets": -1}, r"has shape \[64, 48\]; expected \[400, 48\]"),
    "a huge table": (
        CheckpointError,
        {"position_buckets": -1, "max_relative_positions": 1 << 20},
        r"has shape \[64, 48\]",
    ),
    "other projections": (
        CheckpointError,
        {"share_att_key": False},
        "lacks the tensor 'encoder.layer.0.attention.self.pos_key_proj.weight'",
    ),
    "no relative attention": (
        UnsupportedModelError,
        {"relative_attention": False},
        "'encoder.rel_embeddings.weight' is no tensor of a DeBERTa",
    ),
    "no norm of the table": (UnsupportedModelError, {"norm_rel_ebd": "none"}, "'encoder.LayerNorm.*is no tensor of"),
    "a norm that is no word": (CheckpointError, {"norm_rel_ebd": None}, "norm_rel_ebd is None"),
    "heads of another size": (CheckpointError, {"attention_head_size": 24}, "attention_head_size is 24; expected 16"),
    "a wide head": (
        CheckpointError,
        {"hidden_size": 1 << 16, "num_attention_heads": 1},
        "num_attention_heads is 1; expected more, as heads have 256 dimensions at most",
    ),
    "heads": (CheckpointError, {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor"),
    "types": (CheckpointError, {"type_vocab_size": 2}, "lacks the tensor 'embeddings.token_type_embeddings.weight'"),
    "no number of types": (CheckpointError, {"type_vocab_size": -1}, "type_vocab_size is -1"),
    "a projection": (CheckpointError, {"embedding_size": 20}, "lacks the tensor 'embeddings.embed_proj.weight'"),
    "positions": (CheckpointError, {"position_biased_input": True}, "lacks the tensor 'embeddings.position_embeddings"),
    "huge positions": (CheckpointError, {"max_position_embeddings": 1 << 40}, "is 1099511627"),
    "many positions": (
        CheckpointError,
        {"max_position_embeddings": 1 << 20, "position_biased_input": True},
        "lacks the tensor 'embeddings.position_embeddings",
    ),
    "a block too many": (CheckpointError, {"num_hidden_layers": 3}, "lacks the tensor 'encoder.layer.2"),
    "a block too few": (UnsupportedModelError, {"num_hidden_layers": 1}, "'encoder.layer.1.*is no tensor of a DeBERTa"),
    "many blocks": (CheckpointError, {"num_hidden_layers": 1000}, "lacks the tensor 'encoder.layer.2"),
    "an unknown field": (UnsupportedModelError, {"z_steps": 2}, "'z_steps'"),
    "another pooler": (
        CheckpointError,
        {"architectures": ["DebertaV2ForSequenceClassification"], "pooler_hidden_size": 20},
        "pooler_hidden_size is 20; expected 48",
    ),
    "a narrow head": (
        CheckpointError,
        {"architectures": ["DebertaV2ForMaskedLM"], "legacy": False, "embedding_size": 20},
        "embedding_size is 20; expected 48",
    ),
    "a head": (UnsupportedModelError, {"architectures": ["DebertaV2ForMultipleChoice"]}, "architectures names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    require_refused(write(tmp_path, PLAIN), PLAIN, *REFUSED[case])


@pytest.mark.parametrize("name", ["encoder.rel_embeddings.weight", "encoder.LayerNorm.bias"])
def test_hostile_tensors(name: str, tmp_path: Path) -> None:
    require_sound(write(tmp_path, PLAIN), name)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["encoder.rel_embeddings.weight", "encoder.layer.1.attention.self.key_proj.bias"])
def test_weights_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    require_numbers(write(tmp_path, PLAIN), name)

"""The families like BERT: vectors of baked ones against their graphs and against transformers, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import make_types
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import check_config, read_graph
from kaoken.codegen.packing import PackedModel, pack
from numpy.typing import NDArray
from safetensors.numpy import save_file

import kaoken
from bits import require_same_bits
from checkpoints import uniform
from conftest import RecordError, bake_wanted, some_only_in_ci
from hostile import require_numbers, require_refused, require_sound
from reference import LIMIT, relative_error

POSITIONS = 150
LENGTHS = (1, 2, 63, 64, 65, 140)  # and the longest that a model reads

# Sizes of each family, in the names that most of them have.
SIZES: dict[str, dict[str, Any]] = {
    "plain": {"vocab_size": 61, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 100},
    "odd": {
        "vocab_size": 67,
        "hidden_size": 35,
        "num_attention_heads": 5,
        "intermediate_size": 33,
        "num_hidden_layers": 3,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
    },
    "narrow": {
        "vocab_size": 41,
        "hidden_size": 23,
        "num_attention_heads": 1,
        "intermediate_size": 7,
        "num_hidden_layers": 1,
        "hidden_act": "tanh",
    },
    "wide": {
        "vocab_size": 131,
        "hidden_size": 90,
        "num_attention_heads": 9,
        "intermediate_size": 160,
        "hidden_act": "relu",
    },
}


@dataclass(frozen=True)
class Family:
    """A family: what its classes of transformers begin with, and fields of all and of some configurations."""

    prefix: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    of_sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # its own names of fields; "" where it has none


TWO_TYPES = {"odd": {"type_vocab_size": 2}}

FAMILIES: dict[str, Family] = {
    "roberta": Family("Roberta", {"type_vocab_size": 1}, TWO_TYPES),
    "xlm-roberta": Family("XLMRoberta", {"type_vocab_size": 1}, TWO_TYPES),
    "camembert": Family("Camembert", {"type_vocab_size": 1}, {**TWO_TYPES, "wide": {"pad_token_id": 7}}),
    "distilbert": Family(
        "DistilBert",
        of_sizes={"odd": {"sinusoidal_pos_embds": True}},
        names={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "layer_norm_eps": "",
        },
    ),
    "mpnet": Family("MPNet"),
    "electra": Family(
        "Electra",
        {"type_vocab_size": 2, "embedding_size": 20},
        {"odd": {"embedding_size": 35}, "narrow": {"embedding_size": 300}, "wide": {"embedding_size": 65}},
    ),
    "albert": Family(
        "Albert",
        {"type_vocab_size": 2, "embedding_size": 20, "num_hidden_layers": 4},
        {
            "odd": {"embedding_size": 35, "num_hidden_layers": 5, "num_hidden_groups": 2},
            "narrow": {"embedding_size": 70, "num_hidden_layers": 1},
            "wide": {"num_hidden_layers": 2, "num_hidden_groups": 3, "inner_group_num": 2},
        },
    ),
}

NAMES = [f"{family}-{sizes}" for family in FAMILIES for sizes in SIZES]

# What stands behind the name of a family's class, of models of the plain sizes.
HEADS = {
    "masked": "ForMaskedLM",
    "texts": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "answers": "ForQuestionAnswering",
    "replaced": "ForPreTraining",
}
WITH_HEADS = [
    *(f"{family}-{head}" for family in FAMILIES for head in HEADS if head != "replaced"),
    "electra-replaced",
    "albert-replaced",
]

# Each with the largest difference from float64 on such random weights, of max(1, largest value): about twice what was
# seen.
TYPES = {"bfloat16": 0.02, "int8": 0.06, "int4": 0.5}
TYPED = "electra-wide"

QUICK = {"roberta-odd", "distilbert-plain", "mpnet-odd", "electra-narrow", "albert-odd"}
names = pytest.mark.parametrize("name", NAMES)
baked = pytest.mark.parametrize("name", some_only_in_ci(NAMES, {*NAMES} - QUICK))
with_heads = pytest.mark.parametrize("name", some_only_in_ci(WITH_HEADS, {*WITH_HEADS} - {"albert-masked"}))
typed = pytest.mark.parametrize("name", some_only_in_ci(TYPES, {"bfloat16", "int4"}))


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    model_type, _, sizes = name.rpartition("-")
    family = FAMILIES[model_type]
    fields = {
        "num_hidden_layers": 2,
        "max_position_embeddings": POSITIONS,
        **SIZES["plain" if sizes in HEADS else sizes],
    }
    named = {family.names.get(key, key): value for key, value in fields.items() if family.names.get(key, key)}
    common = {"model_type": model_type, "architectures": [f"{family.prefix}{HEADS.get(sizes, 'Model')}"]}
    if sizes in ("texts", "tokens"):
        common["id2label"] = {"0": "no", "1": "perhaps", "2": "yes"}
    return {**common, **named, **family.fields, **family.of_sizes.get(sizes, {})}


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = check_config(config, directory / "config.json")
    save_file({name: make_tensor(name, shape) for name, shape in shapes.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


SCORES = re.compile(r"\.(query|key|q|k|q_lin|k_lin)\.")  # matrices that make scores


def make_tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    values = uniform(name, shape, seed=0)
    if name.lower().endswith("norm.weight"):
        values = 1.0 + 0.4 * values
    elif name.endswith(".bias"):
        values = 0.4 * values
    elif "embeddings." not in name and "relative" not in name:
        values = values * math.sqrt((9.0 if SCORES.search(name) else 3.0) / shape[1])
    return values.astype(np.float32)


def texts_of(config: Mapping[str, Any], longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of texts of all lengths, without a pad token, and their token types."""
    random = np.random.Generator(np.random.PCG64(9))
    lengths, types = (*LENGTHS, longest), config.get("type_vocab_size", 1)
    ids = [random.integers(8, config["vocab_size"], length).tolist() for length in lengths]
    return ids, [random.integers(0, types, length).tolist() for length in lengths]


def typed_model(name: str) -> bool:
    """Whether tokens have types."""
    return "type_vocab_size" in config_of(name)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: write(root / name, config_of(name)) for name in (*NAMES, *WITH_HEADS)}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By configuration or type: those of the selected tests, baked together."""
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, TYPED)


def require_close(name: str, library: Path, directory: Path, limit: float) -> float:
    """Texts of all lengths in one call against the graph before its rewrites; returns the largest error."""
    graph, model = read_graph(open_checkpoint(directory)), kaoken.load(library)
    ids, types = texts_of(config_of(name), graph.stack.limit)
    found = model.hidden_states(ids, types if typed_model(name) else None)
    expected = [evaluate(graph, *text) for text in zip(ids, [None] * len(ids), types, strict=True)]
    error = max(relative_error(*each) for each in zip(expected, found, strict=True))
    assert error < limit
    return error


@names
def test_rewrites_change_nothing(name: str, directories: dict[str, Path]) -> None:
    graph = read_graph(open_checkpoint(directories[name]))
    ids, types = (rows[-1] for rows in texts_of(config_of(name), graph.stack.limit))
    expected = evaluate(graph, ids, types=types)
    np.testing.assert_allclose(evaluate(rewrites.run(graph), ids, types=types), expected, rtol=0, atol=1e-11)
    assert relative_error(expected, np.roll(expected, 1, axis=0)) > 0.1


@baked
def test_vectors(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(name, libraries[name], directories[name], LIMIT)
    record_error("vectors of encoders against their graphs in float64", error)


@with_heads
def test_outputs_of_heads(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    graph, model = read_graph(open_checkpoint(directories[name])), kaoken.load(libraries[name])
    ids, types = texts_of(config_of(name), graph.stack.limit)
    found = model.logits(ids, types if typed_model(name) else None)
    error = max(
        relative_error(evaluate(graph, *text, types=kinds), np.atleast_2d(outputs))
        for *text, kinds, outputs in zip(ids, types, found, strict=True)
    )
    record_error("outputs of encoders' heads against their graphs in float64", error)
    assert error < LIMIT


@typed
def test_vectors_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = require_close(TYPED, libraries[name], directories[TYPED], TYPES[name])
    record_error(f"vectors of encoders in {name} against their graphs in float64", error)


@pytest.mark.parametrize("name", [*sorted(QUICK), "int8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    ids, types = texts_of(config_of(name if name in NAMES else TYPED), model.config.n_positions)
    given = types if model.config.type_vocab_size else None
    for index, vectors in enumerate(model.hidden_states(ids, given)):
        require_same_bits(vectors, alone.hidden_states(ids[index], given and given[index])[0])
        require_same_bits(vectors, model.hidden_states(ids[index], given and given[index])[0])


@pytest.mark.ci
@names
def test_vectors_equal_transformers(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """Of padded texts, whose padding is left out here and masked there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, config = kaoken.load(libraries[name]), config_of(name)
    theirs, loading = getattr(transformers, config["architectures"][0]).from_pretrained(
        directories[name], output_loading_info=True
    )
    assert not loading["unexpected_keys"]
    assert all("pooler" in key for key in loading["missing_keys"])
    ids, types = texts_of(config, model.config.n_positions)
    rows = {"input_ids": (ids, theirs.config.pad_token_id), "attention_mask": ([[1] * len(row) for row in ids], 0)}
    if typed_model(name):
        rows["token_type_ids"] = (types, 0)
    given = {
        key: np.array([row + [filler] * (model.config.n_positions - len(row)) for row in values])
        for key, (values, filler) in rows.items()
    }
    with torch.no_grad():
        tensors = {key: torch.from_numpy(array) for key, array in given.items()}
        expected = theirs.eval()(**tensors).last_hidden_state.numpy()
    found = model.hidden_states(given)
    error = max(relative_error(row[: len(each)], each) for row, each in zip(expected, found, strict=True))
    record_error("vectors of encoders against transformers", error)
    assert error < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", WITH_HEADS)
def test_heads_equal_those_of_transformers(name: str, directories: dict[str, Path], record_error: RecordError) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, loading = getattr(transformers, config_of(name)["architectures"][0]).from_pretrained(
        directories[name], output_loading_info=True
    )
    assert not loading["unexpected_keys"]
    assert all(key.startswith(("sop_classifier.", "albert.pooler.")) for key in loading["missing_keys"])
    graph = read_graph(open_checkpoint(directories[name]))
    ids = texts_of(config_of(name), graph.stack.limit)[0][-1]
    error = relative_error(outputs_of(theirs.eval(), torch.tensor([ids])), evaluate(rewrites.run(graph), ids))
    record_error("outputs of encoders' heads against transformers", error)
    assert error < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", [*(f"{family}-plain" for family in FAMILIES), *WITH_HEADS])
def test_what_transformers_saves_is_read(name: str, tmp_path: Path) -> None:
    """Every field and every tensor, with the weights that it begins with."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields, prefix = config_of(name), FAMILIES[name.rpartition("-")[0]].prefix
    (architecture,) = fields.pop("architectures")
    if "id2label" in fields:
        fields["id2label"] = {int(key): label for key, label in fields["id2label"].items()}
    model = getattr(transformers, architecture)(getattr(transformers, f"{prefix}Config")(**fields)).eval()
    model.save_pretrained(tmp_path)
    graph = read_graph(open_checkpoint(tmp_path))
    assert graph.family == fields["model_type"]
    ids = texts_of(fields, graph.stack.limit)[0][-1]
    assert relative_error(outputs_of(model, torch.tensor([ids])), evaluate(rewrites.run(graph), ids)) < LIMIT


def outputs_of(model: Any, ids: Any) -> NDArray[np.float32]:
    """Of a model of transformers, [positions, outputs], or [1, outputs] of one for the whole text."""
    import torch

    with torch.no_grad():
        outputs = model(ids)
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits[0], outputs.end_logits[0]], -1).numpy()
    for key in ("last_hidden_state", "prediction_logits", "logits"):
        if key in outputs:
            found = outputs[key][0].numpy()
            one_each = type(model).__name__ == "ElectraForPreTraining"
            return found[:, None] if one_each else np.atleast_2d(found)
    raise AssertionError(f"{type(model).__name__} gives {list(outputs)}")


def test_positions_begin_behind_the_pad_token(directories: dict[str, Path]) -> None:
    limits = {name: read_graph(open_checkpoint(directories[name])).stack.limit for name in NAMES}
    assert (limits["roberta-plain"], limits["camembert-wide"], limits["mpnet-odd"]) == (148, 142, 148)
    assert limits["distilbert-plain"] == limits["electra-odd"] == POSITIONS


def packed(config: Mapping[str, Any], directory: Path, **options: Any) -> PackedModel:
    graph = rewrites.run(read_graph(open_checkpoint(write(directory, config))))
    return pack(graph, make_types("int8"), 1 << 20, **options)


def test_layers_that_share_their_weights_have_them_once(tmp_path: Path) -> None:
    """All arrays, but that the first block has no norm in front."""
    config = config_of("albert-plain")
    one, two, many = (packed({**config, "num_hidden_layers": layers}, tmp_path / str(layers)) for layers in (1, 2, 12))
    assert many.nbytes == two.nbytes
    assert one.nbytes <= two.nbytes < 1.02 * one.nbytes
    assert len(many.matrices) == len(one.matrices)
    assert [len(block.unit.blobs) for block in many.blocks] == [1] + [0] * 11
    assert len({id(block.products["qkv"]) for block in many.blocks}) == 1


@pytest.mark.ci
@pytest.mark.parametrize("name", ["albert-plain"])
def test_exploded_is_packed_bit_for_bit(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], tmp_path: Path
) -> None:
    """Where layers share their code, too."""
    library = kaoken.bake(directories[name], kernels="exploded", out=tmp_path / "exploded.so")
    ids, types = texts_of(config_of(name), POSITIONS)
    expected = kaoken.load(libraries[name]).hidden_states(ids, types)
    for found, vectors in zip(kaoken.load(library).hidden_states(ids, types), expected, strict=True):
        require_same_bits(found, vectors)


REFUSED: dict[str, tuple[str, type[Exception], dict[str, Any], str]] = {
    "relative positions": (
        "roberta",
        UnsupportedModelError,
        {"position_embedding_type": "relative_key"},
        "position_embedding_type is 'relative_key'; expected one of absolute",
    ),
    "no pad token": ("xlm-roberta", CheckpointError, {"pad_token_id": None}, "pad_token_id is None; expected a token"),
    "a pad token outside": ("roberta", CheckpointError, {"pad_token_id": 61}, "pad_token_id is 61"),
    "no position": ("camembert", CheckpointError, {"max_position_embeddings": 2}, "max_position_embeddings is 2"),
    "a decoder": ("camembert", UnsupportedModelError, {"is_decoder": True}, "is_decoder is True"),
    "heads": ("roberta", CheckpointError, {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor"),
    "heads of a DistilBERT": ("distilbert", CheckpointError, {"n_heads": 5}, "n_heads is 5; expected a divisor of dim"),
    "two names": ("distilbert", CheckpointError, {"hidden_size": 47}, "hidden_size is 47, but dim"),
    "types": ("distilbert", UnsupportedModelError, {"type_vocab_size": 2}, "'type_vocab_size'"),
    "an epsilon": ("distilbert", UnsupportedModelError, {"layer_norm_eps": 1e-5}, "'layer_norm_eps'"),
    "other buckets": (
        "mpnet",
        CheckpointError,
        {"relative_attention_num_buckets": 16},
        "relative_attention_num_buckets is 16; expected 32",
    ),
    "another activation": ("mpnet", UnsupportedModelError, {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
    "another width": ("electra", CheckpointError, {"embedding_size": 21}, r"has shape \[150, 20\]"),
    "no projection": ("electra", UnsupportedModelError, {"embedding_size": 48}, "'embeddings_project.*is no tensor of"),
    "a huge width": ("electra", CheckpointError, {"embedding_size": 1 << 30}, "embedding_size is 1073741824"),
    "a head": ("mpnet", UnsupportedModelError, {"architectures": ["MPNetForMultipleChoice"]}, "architectures names"),
    "a block too many": ("mpnet", CheckpointError, {"num_hidden_layers": 3}, "lacks the tensor 'encoder.layer.2"),
    "a block too few": ("distilbert", UnsupportedModelError, {"n_layers": 1}, "'transformer.layer.1.*is no tensor of"),
    "many inner blocks": ("albert", CheckpointError, {"inner_group_num": 1000}, "from 1 to 256"),
    "another group": ("albert", CheckpointError, {"num_hidden_groups": 2}, "lacks the tensor 'encoder.albert_layer_gr"),
    "huge positions": ("mpnet", CheckpointError, {"max_position_embeddings": 1 << 40}, "is 1099511627"),
    "many positions": ("mpnet", CheckpointError, {"max_position_embeddings": 1 << 20}, r"has shape \[150, 48\]"),
    "many blocks": ("distilbert", CheckpointError, {"n_layers": 1000}, "lacks the tensor 'transformer.layer.2"),
    "another family": (
        "xlm-roberta",
        UnsupportedModelError,
        {"model_type": "xlm-robert"},
        "model_type is 'xlm-robert'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    model_type, kind, fields, message = REFUSED[case]
    config = config_of(f"{model_type}-plain")
    require_refused(write(tmp_path, config), config, kind, fields, message)


HOSTILE = {
    "roberta": "embeddings.position_embeddings.weight",
    "distilbert": "transformer.layer.1.attention.k_lin.bias",
    "mpnet": "encoder.relative_attention_bias.weight",
    "electra": "embeddings_project.weight",
    "albert": "encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
}


@pytest.mark.parametrize("model_type", HOSTILE)
def test_hostile_tensors(model_type: str, tmp_path: Path) -> None:
    require_sound(write(tmp_path, config_of(f"{model_type}-plain")), HOSTILE[model_type])


@pytest.mark.parametrize("model_type", ["mpnet", "electra"])
def test_weights_that_are_no_numbers(model_type: str, tmp_path: Path) -> None:
    require_numbers(write(tmp_path, config_of(f"{model_type}-plain")), HOSTILE[model_type])

"""Llamas: the oracle's logits, the promise of bits, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.families import read_graph
from numpy.typing import NDArray

import kaoken
from bits import random_splits, require_decode_equals_prefill, require_same_bits
from conftest import RecordError, bake_wanted
from kaoken import _core
from native_kernels import runnable
from oracles.llama import CONFIGURATIONS, TINY, YARN, Llama, config_of, write
from reference import LIMIT, relative_error

COUNT = 140  # positions: more than two attention tiles

# Each with the largest difference from the float64 oracle on such random weights, of max(1, largest logit): about twice
# what was seen.
TYPES = {"bfloat16": 0.008, "int8": 0.03, "int4": 0.2}


def ids_of(config: dict[str, Any], batch: int, count: int = COUNT) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(5)).integers(0, config["vocab_size"], (batch, count))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llamas")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, "smol")


names = pytest.mark.parametrize("name", CONFIGURATIONS)
every = pytest.mark.parametrize("name", [*CONFIGURATIONS, *TYPES])


@names
def test_logits_equal_the_oracle(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    ids = ids_of(config_of(name), batch=2)
    error = relative_error(Llama(directories[name]).logits(ids), kaoken.load(libraries[name]).logits(ids))
    record_error("logits of Llamas against the float64 oracle", error)
    assert error < LIMIT


@pytest.mark.parametrize("name", TYPES)
def test_logits_of_other_types(name: str, libraries: dict[str, Path], directories: dict[str, Path]) -> None:
    ids = ids_of(config_of("smol"), batch=1)
    expected = Llama(directories["smol"]).logits(ids)
    assert relative_error(expected, kaoken.load(libraries[name]).logits(ids)) < TYPES[name]


@every
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_on_nothing_else(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """Threads that share the heads evenly or not, batches, and how a prompt is split."""
    config = config_of(name if name in CONFIGURATIONS else "smol")
    ids = ids_of(config, batch=3)
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    assert model.session().threads == threads
    require_same_bits(model.logits(ids), alone.logits(ids))
    require_same_bits(model.logits(ids[1:2]), alone.logits(ids)[1:2])
    for splits in (range(1, ids.shape[1]), random_splits(ids.shape[1], threads)):
        require_decode_equals_prefill(model, ids, splits)


@pytest.mark.ci
@names
def test_the_oracle_equals_transformers(name: str, directories: dict[str, Path]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = ids_of(config_of(name), batch=2)
    with torch.no_grad():
        model = transformers.LlamaForCausalLM.from_pretrained(directories[name]).eval()
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert relative_error(Llama(directories[name]).logits(ids), expected) < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", ["grouped", "smol"])
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = write(tmp_path, {**config_of(name), "max_position_embeddings": 300})
    ids = ids_of(config_of(name), batch=1, count=8)
    model = transformers.LlamaForCausalLM.from_pretrained(directory).eval()
    expected = model.generate(torch.from_numpy(ids), max_new_tokens=200, do_sample=False, eos_token_id=None)
    found = kaoken.load(kaoken.bake(directory)).generate(ids, max_new_tokens=200, eos_token_id=None)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.ci
def test_every_isa_of_this_machine(directories: dict[str, Path], tmp_path: Path) -> None:
    library = kaoken.bake(directories["smol"], isa="portable", out=tmp_path / "smol.so")
    ids = ids_of(config_of("smol"), batch=1)
    expected = Llama(directories["smol"]).logits(ids)
    opened = _core.Library(library)
    for isa in runnable(opened.isas.split(",")):
        session = opened.session(1, 2, isa)
        logits = session.append(ids, _core.LOGITS_ALL)
        assert session.executed_isa == isa
        assert logits is not None
        assert relative_error(expected, logits) < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("name", ["grouped", "one_key"])
def test_exploded_is_packed_bit_for_bit(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], tmp_path: Path
) -> None:
    ids = ids_of(config_of(name), batch=2)
    packed = kaoken.load(libraries[name]).logits(ids)
    library = kaoken.bake(directories[name], kernels="exploded", out=tmp_path / "exploded.so")
    for threads in (1, 2, 3):
        model = kaoken.load(library, threads=threads)
        require_same_bits(model.logits(ids), packed)
        require_decode_equals_prefill(model, ids, random_splits(ids.shape[1], threads))


def test_the_library_says_what_it_is(directories: dict[str, Path]) -> None:
    model = kaoken.load(kaoken.bake(directories["grouped"], dtype="int8"))
    (block, _) = model.config.blocks
    assert (block.n_head, block.n_kv_head, block.head_dim, block.n_inner) == (6, 3, 8, 100)
    names = [matrix.name for matrix in model.info.matrices]
    attention = "layers.0.self_attn"
    assert names[0] == f"{attention}.q_proj + {attention}.k_proj + {attention}.v_proj"
    assert names[2] == "layers.0.mlp.gate_proj + layers.0.mlp.up_proj"
    assert model.info.bytes_per_token == sum(matrix.nbytes for matrix in model.info.matrices)


REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "longrope": (UnsupportedModelError, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope'.*llama3"),
    "proportional": (UnsupportedModelError, {"rope_parameters": {"rope_type": "proportional"}}, "'proportional'"),
    "dynamic positions without a factor": (
        CheckpointError,
        {"rope_parameters": {"rope_type": "dynamic"}},
        "factor is None",
    ),
    "dynamic positions beyond the original ones": (
        UnsupportedModelError,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}},
        "'dynamic'.*how a text is split.*set max_position_embeddings, which is 150, to 64",
    ),
    "yarn without a ramp": (
        CheckpointError,
        {"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}},
        "beta_fast is 1; expected no less than beta_slow, which is 2",
    ),
    "yarn without a factor": (CheckpointError, {"rope_scaling": {**YARN, "factor": None}}, "factor is None"),
    "yarn without a theta": (CheckpointError, {"rope_parameters": YARN | {"rope_theta": 1}}, "rope_theta is 1; "),
    "yarn of another repository": (
        UnsupportedModelError,
        {"rope_scaling": {**YARN, "finetuned": True}},
        "rope_scaling: .*'finetuned'",
    ),
    "a part of a head": (UnsupportedModelError, {"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
    "a field of a scaling": (
        UnsupportedModelError,
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}},
        "rope_scaling: .*'beta'",
    ),
    "a scaling without a factor": (CheckpointError, {"rope_scaling": {"type": "linear"}}, "factor is None"),
    "two scalings": (
        CheckpointError,
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_scaling is .*; expected what rope_parameters says",
    ),
    "no scaling": (CheckpointError, {"rope_scaling": 3}, "rope_scaling is 3"),
    "heads": (CheckpointError, {"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor.* 6"),
    "odd heads": (CheckpointError, {"head_dim": 9}, "head_dim is 9; expected an even number"),
    "quantized": (UnsupportedModelError, {"quantization_config": {"bits": 4}}, "quantization_config.*made from"),
    "quantized by GPTQ": (
        UnsupportedModelError,
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantized by 'gptq'.*take the checkpoint that this one was made from",
    ),
    "another activation": (UnsupportedModelError, {"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
    "an unknown field": (UnsupportedModelError, {"sliding_window": 4}, "'sliding_window'"),
    "pairs side by side": (UnsupportedModelError, {"rope_interleaved": True}, "rope_interleaved"),
    "a tensor too few": (
        CheckpointError,
        {"attention_bias": True},
        "lacks the tensor 'layers.0.self_attn.q_proj.bias'",
    ),
    "an architecture": (UnsupportedModelError, {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    kind, fields, message = REFUSED[case]
    write(tmp_path, TINY)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **fields}), encoding="utf-8")
    with pytest.raises(kind, match=message):
        read_graph(open_checkpoint(tmp_path))

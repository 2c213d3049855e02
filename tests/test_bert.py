"""BERTs: the graph's and the oracle's vectors, those of baked ones and their bits, and what is refused by name."""

from __future__ import annotations

import json
import pickle
import threading
from collections import UserDict
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
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import kaoken
from bits import require_same_bits
from children import fork, in_child
from conftest import RecordError, bake_wanted, some_only_in_ci
from hostile import require_numbers, require_refused, require_sound
from kaoken import _core
from native_kernels import runnable
from oracles.bert import CONFIGURATIONS, TINY, Bert, config_of, write
from reference import LIMIT, relative_error

COUNT = 140  # positions: more than two attention tiles
LONGEST = 150
LENGTHS = (1, 2, 63, 64, 65, COUNT, LONGEST)  # of texts whose rows pass what a pass of the encoder has

# Each with the largest difference from the float64 oracle on such random weights, of max(1, largest value): about twice
# what was seen.
TYPES = {"bfloat16": 0.015, "int8": 0.045, "int4": 0.4}
TYPED = "masked"
ONLY_IN_CI = {"one_type", "one_head", "masked", "first_names", "bfloat16", "int4"}

Texts = list[list[int]]


def inputs_of(config: dict[str, Any], count: int = COUNT) -> tuple[list[int], list[int]]:
    """Ids and token types."""
    random = np.random.Generator(np.random.PCG64(5))
    ids = random.integers(0, config["vocab_size"], count).tolist()
    return ids, random.integers(0, config["type_vocab_size"], count).tolist()


def texts_of(config: dict[str, Any], lengths: tuple[int, ...] = LENGTHS) -> tuple[Texts, Texts]:
    """The ids of texts of such lengths, and their token types."""
    drawn = [np.random.Generator(np.random.PCG64(9 + index)) for index in range(len(lengths))]
    ids, types = (
        [random.integers(0, config[size], length).tolist() for random, length in zip(drawn, lengths, strict=True)]
        for size in ("vocab_size", "type_vocab_size")
    )
    return ids, types


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("berts")
    return {name: write(root / name, config_of(name)) for name in CONFIGURATIONS}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By configuration or type: those of the selected tests, baked together."""
    return bake_wanted(request, tmp_path_factory.mktemp("together"), directories, TYPES, TYPED)


names = pytest.mark.parametrize("name", CONFIGURATIONS)
baked = pytest.mark.parametrize("name", some_only_in_ci(CONFIGURATIONS, ONLY_IN_CI))
typed = pytest.mark.parametrize("name", some_only_in_ci(TYPES, ONLY_IN_CI))
every = pytest.mark.parametrize("name", some_only_in_ci([*CONFIGURATIONS, *TYPES], ONLY_IN_CI))
one = pytest.mark.parametrize("name", ["plain"])


@names
def test_the_graph_computes_what_the_oracle_does(name: str, directories: dict[str, Path]) -> None:
    """Before and after the rewrites."""
    ids, types = inputs_of(config_of(name))
    expected = Bert(directories[name]).hidden_states(ids, types)
    graph = read_graph(open_checkpoint(directories[name]))
    for each in (graph, rewrites.run(graph)):
        vectors = evaluate(replace(each, head=None), ids, types=types)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-11)


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
    graph = rewrites.run(read_graph(open_checkpoint(tmp_path)))
    assert relative_error(expected, evaluate(replace(graph, head=None), ids, types=types)) < LIMIT


def error_of(library: Path, directory: Path, config: dict[str, Any]) -> float:
    """The largest of texts of all lengths, in one call."""
    ids, types = texts_of(config)
    oracle, found = Bert(directory), kaoken.load(library).hidden_states(ids, types)
    expected = [oracle.hidden_states(*text) for text in zip(ids, types, strict=True)]
    return max(relative_error(*each) for each in zip(expected, found, strict=True))


@baked
def test_vectors_equal_the_oracle(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = error_of(libraries[name], directories[name], config_of(name))
    record_error("vectors of BERTs against the float64 oracle", error)
    assert error < LIMIT


@typed
def test_vectors_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = error_of(libraries[name], directories[TYPED], config_of(TYPED))
    record_error(f"vectors of BERTs in {name} against the float64 oracle", error)
    assert error < TYPES[name]


@every
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """In any order, in passes that end because of their rows and of their texts."""
    config = config_of(name if name in CONFIGURATIONS else TYPED)
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    ids, types = texts_of(config, (*LENGTHS, *range(1, 8), *[1] * 70, 100, 100, 100))
    expected = [alone.hidden_states(*text)[0] for text in zip(ids, types, strict=True)]
    random = np.random.Generator(np.random.PCG64(threads))
    for order in (np.arange(len(ids)), np.arange(len(ids))[::-1], random.permutation(len(ids))):
        found = model.hidden_states([ids[each] for each in order], [types[each] for each in order])
        for each, vectors in zip(order, found, strict=True):
            require_same_bits(vectors, expected[each])
    for ids_alone, types_alone, vectors in list(zip(ids, types, expected, strict=True))[:8]:
        require_same_bits(model.hidden_states(ids_alone, types_alone)[0], vectors)


@one
def test_a_session_is_used_again(name: str, libraries: dict[str, Path]) -> None:
    """What the texts before have left in its cache and its rows is not seen."""
    ids, types = texts_of(config_of(name))
    model = kaoken.load(libraries[name])
    session = _core.Library(libraries[name]).session(1, 2)
    for each in (6, 0, 5, 1, 4, 2, 3, 6):
        found = session.encode(np.array([len(ids[each])]), np.array(ids[each]), np.array(types[each]))
        assert found is not None
        require_same_bits(found, model.hidden_states(ids[each], types[each])[0])
    assert session.length == 0


@one
def test_token_types(name: str, libraries: dict[str, Path], directories: dict[str, Path]) -> None:
    (ids,), (types,) = texts_of(config_of(name), (20,))
    model, oracle = kaoken.load(libraries[name]), Bert(directories[name])
    (zeros,) = model.hidden_states(ids)
    assert relative_error(oracle.hidden_states(ids), zeros) < LIMIT
    require_same_bits(model.hidden_states([ids], [[0] * 20])[0], zeros)
    (typed,) = model.hidden_states(ids, types)
    assert np.abs(typed - zeros).max() > 0.1
    require_same_bits(model.hidden_states(np.array([ids]), np.array([types], np.int8))[0], typed)
    require_same_bits(model.hidden_states(UserDict(input_ids=[ids], token_type_ids=[types]))[0], typed)
    require_same_bits(model.hidden_states(UserDict(input_ids=[ids], token_type_ids=[types]), [[0] * 20])[0], zeros)


@one
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(name: str, side: str, libraries: dict[str, Path]) -> None:
    """Of ids, whatever they are, and of token types with them."""
    ids, types = texts_of(config_of(name), (4, 65, 1, 9))
    model = kaoken.load(libraries[name])
    expected = model.hidden_states(ids, types)
    padded = []
    for rows, filler in ((ids, 1000), (types, 7), ([[1] * len(row) for row in ids], 0)):
        pads = [[filler] * (65 - len(row)) for row in rows]
        padded.append([pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)])
    fields = ("input_ids", "token_type_ids", "attention_mask")
    encoding = UserDict(zip(fields, map(np.array, padded), strict=True))
    for found in (model.hidden_states(*padded), model.hidden_states(encoding)):
        for vectors, each in zip(found, expected, strict=True):
            require_same_bits(vectors, each)


@one
def test_what_hidden_states_refuses(name: str, libraries: dict[str, Path]) -> None:
    model = kaoken.load(libraries[name])
    cases: list[tuple[tuple[Any, ...], str]] = [
        (([],), "empty"),
        (([[1], []],), "empty"),
        (("text",), "ids are text"),
        (([1.5],), "token id must be an integer"),
        (([1, 61],), "token id 61"),
        (([1, -1],), "token id -1"),
        (([1] * 151,), "the text has 151 tokens, but the model has n_positions = 150"),
        (([[1], [1] * 151],), "the text has 151 tokens"),
        (([1, 2], [0]), "token_type_ids must have the shape of ids"),
        (([[1, 2], [3]], [[0], [0, 1]]), "token_type_ids must have the shape of ids"),
        (([1, 2], [0, 2]), "token_type_ids must be from 0 to 1, not 2"),
        (([1, 2], [0, -1]), "token_type_ids must be from 0 to 1, not -1"),
        (([1, 2], [0, 1 << 70]), "token_type_ids must be from 0 to 1, not 1180591620717411303424"),
        (([1, 2], None, [1]), "attention_mask must have the shape of ids"),
        (([1, 2], None, [0, 0]), "attention_mask"),
        (([1, 2, 3], None, [1, 0, 1]), "hides tokens between others"),
    ]
    for arguments, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            model.hidden_states(*arguments)


@one
def test_what_a_session_of_an_encoder_refuses(name: str, libraries: dict[str, Path]) -> None:
    session = _core.Library(libraries[name]).session(2, 1)
    ids, row = np.array([1, 2]), np.array([[1, 2], [3, 4]])
    cases: list[tuple[Any, str]] = [
        (lambda: session.append(row), "this model is an encoder, which has no cache; encode whole texts"),
        (lambda: session.step(np.array([0]), np.array([2]), ids), "this model is an encoder"),
        (lambda: generation(session, row), "this model is an encoder, which generates nothing"),
        (lambda: session.encode(np.array([1]), ids), "the lengths must add up to the 2 ids"),
        (lambda: session.encode(np.array([2, 0]), ids), "a text is empty"),
        (lambda: session.encode(np.array([], np.int64), ids[:0]), "count is 0"),
        (lambda: session.encode(np.array([2]), np.array([1, 61])), "token id 61 at sequence 0, position 1"),
        (lambda: session.encode(np.array([1, 1]), ids, np.array([0, 2])), "token type 2 of text 1"),
        (lambda: session.encode(np.array([2]), ids, outputs=np.zeros((1, 2), np.float32)), "outputs must have"),
        (lambda: session.encode(np.array([151]), np.full(151, 7)), "text 0 has 151 tokens.*at most 150; cut it"),
        (lambda: session.rewind(1), "rewind"),
        (lambda: session.rewind_slot(0, 1), "rewind"),
        (lambda: session.fork(0, 2), "no slot 2"),
    ]
    for call, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            call()
    session.rewind(0)
    session.fork(0, 1)
    assert session.encode(np.array([2]), ids) is not None


def generation(session: _core.Session, ids: NDArray[np.int64]) -> _core.Generation:
    """The greedy one of five tokens."""
    options: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    return session.generate(ids, max_new_tokens=5, eos_token_ids=[], pad_token_id=0, **options)


@one
def test_the_class_is_that_of_the_kind(name: str, libraries: dict[str, Path]) -> None:
    model = kaoken.load(libraries[name])
    assert type(model) is kaoken.BakedEncoder
    assert (model.config.kind, model.config.family, model.config.type_vocab_size) == ("encoder", "bert", 2)
    assert (model.config.n_positions, model.config.n_embd, model.config.source_positions) == (150, 48, 0)
    for kind in (kaoken.BakedGPT2, kaoken.BakedCausalLM, kaoken.BakedSeq2SeqLM):
        with pytest.raises(kaoken.LibraryError, match=f"holds an encoder, and {kind.__name__} is for .*kaoken.load"):
            kind(libraries[name])
    with pytest.raises(kaoken.LibraryError, match="holds a decoder, and BakedEncoder is for an encoder"):
        kaoken.BakedEncoder()
    for attribute in ("generate", "session"):
        assert not hasattr(model, attribute)
    with pytest.raises(kaoken.InputError, match=r"use encode\(texts\), hidden_states\(ids\)"):
        model([1])


@one
def test_pickled_and_in_threads(name: str, libraries: dict[str, Path]) -> None:
    ids, types = texts_of(config_of(name))
    model = kaoken.load(libraries[name], threads=2)
    expected = np.concatenate(model.hidden_states(ids, types))
    restored = pickle.loads(pickle.dumps(model))
    assert type(restored) is kaoken.BakedEncoder
    require_same_bits(np.concatenate(restored.hidden_states(ids, types)), expected)
    found: list[NDArray[np.float32]] = []
    threads = [
        threading.Thread(target=lambda: found.append(np.concatenate(model.hidden_states(ids, types)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for vectors in found:
        require_same_bits(vectors, expected)


@fork
@one
def test_a_forked_child_encodes(name: str, libraries: dict[str, Path]) -> None:
    ids, types = texts_of(config_of(name))
    model = kaoken.load(libraries[name], threads=2)
    expected = [vectors.tobytes() for vectors in model.hidden_states(ids, types)]
    assert in_child(lambda: model.hidden_states(ids, types)[3].tobytes()) == expected[3]


@pytest.mark.ci
@names
def test_baked_vectors_are_those_of_transformers(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """Of padded texts, whose padding is left out here and masked there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, types = texts_of(config_of(name))
    padded, padded_types, mask = (
        np.array([row + [0] * (LONGEST - len(row)) for row in rows])
        for rows in (ids, types, [[1] * len(row) for row in ids])
    )
    with torch.no_grad():
        model = transformers.BertModel.from_pretrained(directories[name]).eval()
        given = {"input_ids": padded, "token_type_ids": padded_types, "attention_mask": mask}
        expected = model(**{key: torch.from_numpy(array) for key, array in given.items()}).last_hidden_state.numpy()
    errors = [
        relative_error(row[: len(vectors)], vectors)
        for row, vectors in zip(expected, kaoken.load(libraries[name]).hidden_states(given), strict=True)
    ]
    record_error("vectors of BERTs against transformers", max(errors))
    assert max(errors) < LIMIT


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_isa_of_this_machine(dtype: str, directories: dict[str, Path], tmp_path: Path) -> None:
    library = kaoken.bake(directories[TYPED], dtype=dtype, isa="portable", out=tmp_path / "bert.so")
    ids, types = texts_of(config_of(TYPED))
    oracle = Bert(directories[TYPED])
    expected = np.concatenate([oracle.hidden_states(*text) for text in zip(ids, types, strict=True)])
    opened = _core.Library(library)
    for isa in runnable(opened.isas.split(",")):
        session = opened.session(1, 2, isa)
        found = session.encode(np.array(list(map(len, ids))), np.concatenate(ids), np.concatenate(types), True)
        assert session.executed_isa == isa
        assert found is not None
        assert relative_error(expected, found) < (LIMIT if dtype == "float32" else TYPES[dtype])


@pytest.mark.ci
@pytest.mark.parametrize("name", ["plain"])
def test_exploded_is_packed_bit_for_bit(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], tmp_path: Path
) -> None:
    ids, types = texts_of(config_of(name))
    packed = kaoken.load(libraries[name]).hidden_states(ids, types)
    library = kaoken.bake(directories[name], kernels="exploded", out=tmp_path / "exploded.so")
    for threads in (1, 2, 3):
        model = kaoken.load(library, threads=threads)
        for found, expected in zip(model.hidden_states(ids, types), packed, strict=True):
            require_same_bits(found, expected)
        require_same_bits(model.hidden_states(ids[0], types[0])[0], packed[0])


def test_what_the_graph_says_of_itself(directories: dict[str, Path]) -> None:
    graph = read_graph(open_checkpoint(directories["four_types"]))
    assert (graph.kind, graph.width, graph.vocabulary, graph.tied, graph.head) == ("encoder", 52, 61, False, None)
    assert (graph.stack.limit, graph.special.eos, graph.special.bos, graph.special.pad) == (150, (), None, 0)
    assert graph.stack.embeddings.types is not None
    assert graph.stack.embeddings.types.shape == (4, 52)
    ready = rewrites.run(graph)
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
    "a head": (UnsupportedModelError, {"architectures": ["BertForMultipleChoice"]}, "architectures names"),
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


HOSTILE: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "a huge vocabulary": (CheckpointError, {"vocab_size": 1 << 60}, "vocab_size is 1152921504606846976; expected"),
    "a large vocabulary": (CheckpointError, {"vocab_size": 1 << 24}, r"word_embeddings.weight' has shape \[61, 48\]"),
    "huge positions": (CheckpointError, {"max_position_embeddings": 1 << 40}, "max_position_embeddings is 1099511627"),
    "more positions": (CheckpointError, {"max_position_embeddings": 1 << 20}, r"has shape \[150, 48\]"),
    "huge types": (CheckpointError, {"type_vocab_size": 10**30}, "type_vocab_size is 1000000"),
    "huge layers": (CheckpointError, {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected"),
    "many layers": (CheckpointError, {"num_hidden_layers": 1000}, "lacks the tensor 'encoder.layer.2"),
    "a huge MLP": (CheckpointError, {"intermediate_size": 1 << 20}, "intermediate.dense.weight' has shape"),
    "a huge width": (CheckpointError, {"hidden_size": 3 << 14}, "has shape"),
    "a negative width": (CheckpointError, {"hidden_size": -48}, "hidden_size is -48"),
    "no heads": (CheckpointError, {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "no epsilon": (CheckpointError, {"layer_norm_eps": float("inf")}, "is not finite"),
    "a width that is none": (CheckpointError, {"hidden_size": "48"}, "hidden_size is '48'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configs(case: str, tmp_path: Path) -> None:
    require_refused(write(tmp_path, TINY), TINY, *HOSTILE[case])


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.key.bias",
        "encoder.layer.0.output.dense.weight",
    ],
)
def test_hostile_tensors(name: str, tmp_path: Path) -> None:
    require_sound(write(tmp_path, TINY), name)


@pytest.mark.parametrize("name", ["encoder.layer.1.attention.self.value.bias", "embeddings.LayerNorm.weight"])
def test_weights_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    require_numbers(write(tmp_path, TINY), name)

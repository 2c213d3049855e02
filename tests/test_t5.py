"""T5s: the graph's and the oracle's logits, those of baked ones and their bits, the buckets of distances, and what is
refused by name."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate, run_stack
from kaoken.codegen.families import read_graph
from kaoken.codegen.families.distance import buckets
from kaoken.codegen.graph import Graph
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import kaoken
from bits import random_splits, require_same_bits
from children import fork, in_child
from conftest import RecordError, bake_wanted, some_only_in_ci
from hostile import require_numbers, require_refused, require_sound
from kaoken import _core
from native_kernels import runnable
from oracles.t5 import CONFIGURATIONS, T5, TINY, bucket, config_of, write
from reference import LIMIT, relative_error

COUNT, DECODER_COUNT = 140, 133  # positions: more than two attention tiles each
LONGEST = 150

# Of sources, whose rows pass what a pass of the encoder has, and of what the decoder reads beside each.
LENGTHS = (1, 2, 63, 64, 65, COUNT, LONGEST)
DECODER_LENGTHS = (65, LONGEST, 1, 2, 140, 64, 63)

# Each with the largest difference from the float64 oracle on such random weights, of max(1, largest logit): about twice
# what was seen.
TYPES = {"bfloat16": 0.04, "int8": 0.1, "int4": 0.8}
TYPED = "gated_tied"
ONLY_IN_CI = {
    "plain",
    "few_buckets",
    "gated_silu",
    "gated_tied",
    "plain_untied",
    "deep_encoder",
    "one_head",
    "bfloat16",
    "int4",
}
STEPS = 50  # of generated texts

Texts = list[list[int]]
Logits = NDArray[np.float32]


def inputs_of(config: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids of the encoder and of the decoder, which start as they should."""
    random = np.random.Generator(np.random.PCG64(5))
    ids, more = (random.integers(0, config["vocab_size"], count).tolist() for count in (COUNT, DECODER_COUNT - 1))
    return ids, [config["decoder_start_token_id"], *more]


def texts_of(config: dict[str, Any], lengths: tuple[int, ...] = LENGTHS, seed: int = 9) -> Texts:
    """Texts of such lengths."""
    drawn = [np.random.Generator(np.random.PCG64(seed + index)) for index in range(len(lengths))]
    return [
        random.integers(0, config["vocab_size"], length).tolist() for random, length in zip(drawn, lengths, strict=True)
    ]


def graph_in(directory: Path) -> Graph:
    return read_graph(open_checkpoint(directory))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("t5s")
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
one = pytest.mark.parametrize("name", ["deep_decoder"])  # five heads, which no team divides


@names
def test_the_graph_computes_what_the_oracle_does(name: str, directories: dict[str, Path]) -> None:
    """Before and after the rewrites."""
    ids, decoder_ids = inputs_of(config_of(name))
    oracle, graph = T5(directories[name]), graph_in(directories[name])
    expected = oracle.logits(ids, decoder_ids)
    for each in (graph, rewrites.run(graph)):
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
    assert relative_error(expected, evaluate(rewrites.run(graph), ids, decoder_ids)) < LIMIT


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
    assert relative_error(expected, evaluate(rewrites.run(graph_in(tmp_path)), ids, decoder_ids)) < LIMIT


def error_of(library: Path, directory: Path, config: dict[str, Any]) -> float:
    """The largest of sources of all lengths with decoders of all lengths, in one call."""
    ids, decoder_ids = texts_of(config), texts_of(config, DECODER_LENGTHS, seed=20)
    oracle, found = T5(directory), kaoken.load(library).logits(ids, decoder_ids)
    expected = [oracle.logits(*each) for each in zip(ids, decoder_ids, strict=True)]
    return max(relative_error(*each) for each in zip(expected, found, strict=True))


@baked
def test_baked_logits_equal_the_oracle(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = error_of(libraries[name], directories[name], config_of(name))
    record_error("logits of T5s against the float64 oracle", error)
    assert error < LIMIT


@typed
def test_baked_logits_of_other_types(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    error = error_of(libraries[name], directories[TYPED], config_of(TYPED))
    record_error(f"logits of T5s in {name} against the float64 oracle", error)
    assert error < TYPES[name]


def encoded(library: Path, ids: Texts, threads: int, batch: int | None = None) -> _core.Session:
    """A session whose first slots attend to these sources."""
    session = _core.Library(library).session(len(ids) if batch is None else batch, threads)
    encode(session, ids)
    return session


def encode(session: _core.Session, ids: Texts) -> None:
    assert session.encode(np.array([len(row) for row in ids]), np.concatenate(ids)) is None


def step(session: _core.Session, tokens: dict[int, list[int]]) -> list[Logits]:
    """All logits of new tokens by slot."""
    lengths = np.array([len(row) for row in tokens.values()])
    logits = session.step(np.array(list(tokens)), lengths, np.concatenate(list(tokens.values())), all=True)
    return np.split(logits, np.cumsum(lengths)[:-1])


@every
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """Neither of sources, in passes that end because of their rows and of their number, nor of what is decoded."""
    config = config_of(name if name in CONFIGURATIONS else TYPED)
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    lengths, decoder_lengths = (*LENGTHS, *[1] * 66, 100, 3), (*DECODER_LENGTHS, *[1] * 60, *range(2, 8), 70, 5)
    ids, decoder_ids = texts_of(config, lengths), texts_of(config, decoder_lengths, seed=20)
    expected = [alone.logits(*each)[0] for each in zip(ids, decoder_ids, strict=True)]
    for order in (np.arange(len(ids)), np.random.Generator(np.random.PCG64(threads)).permutation(len(ids))):
        found = model.logits([ids[each] for each in order], [decoder_ids[each] for each in order])
        for each, logits in zip(order, found, strict=True):
            require_same_bits(logits, expected[each])


@one
def test_a_batch_whose_passes_are_wider_than_the_models(name: str, libraries: dict[str, Path]) -> None:
    """All 64 texts that a pass may have, each with one position on a second page of the cache."""
    model = kaoken.load(libraries[name], threads=2)
    sources = texts_of(config_of(name), [65] * 64)
    session = _core.Library(libraries[name]).session(5000, 2)
    session.encode(np.full(64, 65), np.concatenate(sources))
    for slot, logits in enumerate(step(session, {slot: [1, 2] for slot in range(64)})):
        require_same_bits(logits, model.logits([sources[slot]], [[1, 2]])[0])


@every
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_decode_equals_prefill(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """Of two sources side by side, however what the decoder reads is split between calls."""
    config = config_of(name if name in CONFIGURATIONS else TYPED)
    model = kaoken.load(libraries[name], threads=threads)
    ids, decoder_ids = texts_of(config, (65, 9)), texts_of(config, (LONGEST, LONGEST), seed=20)
    whole = model.logits(ids, decoder_ids)
    for count in (1, 63, 64, 65):
        prefix = model.logits(ids, [row[:count] for row in decoder_ids])
        require_same_bits(prefix, np.ascontiguousarray(whole[:, :count]))
    session = encoded(libraries[name], ids, threads)
    for splits in (list(range(1, 70)), random_splits(LONGEST, threads)):
        session.rewind(0)
        for part in np.split(np.array(decoder_ids), splits, axis=1):
            begin = session.length
            found = session.append(np.ascontiguousarray(part), _core.LOGITS_ALL)
            assert found is not None
            require_same_bits(found, np.ascontiguousarray(whole[:, begin : session.length]))


@one
@pytest.mark.parametrize("seed", range(3))
def test_slots_keep_their_sources(name: str, seed: int, libraries: dict[str, Path]) -> None:
    """Steps, rewinds, forks and new sources, in any order; each slot's logits are those of a call of its own."""
    random = np.random.Generator(np.random.PCG64(seed))
    config = config_of(name)
    model = kaoken.load(libraries[name], threads=1)
    batch = 4
    sources = texts_of(config, (LONGEST, 64, 7, 1), seed=30)
    decoded: Texts = [[] for _ in range(batch)]
    session = encoded(libraries[name], sources, 1 + seed)
    for _ in range(30):
        action = random.choice(["step", "step", "rewind", "fork", "encode"])
        if action == "step":
            slots = [each for each in range(batch) if random.integers(2) and len(decoded[each]) < 70]
            new = {each: random.integers(0, config["vocab_size"], random.integers(1, 70)).tolist() for each in slots}
            for each, logits in zip(new, step(session, new) if new else [], strict=True):
                decoded[each] += new[each]
                require_same_bits(logits, model.logits(sources[each], decoded[each])[0, -len(new[each]) :])
        elif action == "rewind":
            each = int(random.integers(batch))
            del decoded[each][int(random.integers(len(decoded[each]) + 1)) :]
            session.rewind_slot(each, len(decoded[each]))
        elif action == "fork":
            source, target = random.integers(batch, size=2).tolist()
            session.fork(source, target)
            sources[target], decoded[target] = sources[source], list(decoded[source])
        else:
            count = int(random.integers(1, batch + 1))
            lengths = tuple(random.choice([1, 2, 64, 65, 130, LONGEST], count).tolist())
            sources[:count] = texts_of(config, lengths, seed=int(random.integers(1000)))
            decoded[:count] = [[] for _ in range(count)]
            encode(session, sources[:count])
        assert session.lengths == list(map(len, decoded))


@one
def test_forks_of_a_source_that_fills_its_pages(name: str, libraries: dict[str, Path]) -> None:
    """All sequences attend to one source; then each has one of its own, and what was shared is whole for the last."""
    config = config_of(name)
    model = kaoken.load(libraries[name], threads=1)
    (shared,) = texts_of(config, (LONGEST,))
    session = encoded(libraries[name], [[1], [2], [3], shared], 2)
    for target in range(3):
        session.fork(3, target)
    for count in range(4):
        own = texts_of(config, (LONGEST, LONGEST, 140)[:count], seed=40 + count)
        if own:
            encode(session, own)
        session.rewind(0)
        sources = [*own, *[shared] * (4 - count)]
        for source, logits in zip(sources, step(session, {slot: [0, 5] for slot in range(4)}), strict=True):
            require_same_bits(logits, model.logits(source, [0, 5])[0])


@one
def test_a_step_needs_a_source(name: str, libraries: dict[str, Path]) -> None:
    session = encoded(libraries[name], [[4, 5]], 2, batch=3)
    message = "slot 1 has no source; encode one first"
    for call in (
        lambda: session.append(np.zeros((3, 1), np.int64)),
        lambda: step(session, {0: [0], 1: [0]}),
        lambda: session.generate(np.zeros((3, 1), np.int64), **options_of(2)),
    ):
        with pytest.raises(kaoken.InputError, match=message):
            call()
    assert session.lengths == [0, 0, 0]
    (logits,) = step(session, {0: [0]})
    require_same_bits(logits, kaoken.load(libraries[name]).logits([4, 5], [0])[0])
    session.fork(0, 1)
    session.fork(2, 0)  # which takes the source away as well
    assert session.lengths == [0, 1, 0]
    with pytest.raises(kaoken.InputError, match="slot 0 has no source"):
        step(session, {0: [0]})


def options_of(count: int, eos: tuple[int, ...] = ()) -> dict[str, Any]:
    """Of the greedy generation of so many tokens."""
    sampling = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    return {**sampling, "max_new_tokens": count, "eos_token_ids": list(eos), "pad_token_id": 0}


@baked
def test_greedy_tokens_are_those_of_the_oracle(
    name: str, libraries: dict[str, Path], directories: dict[str, Path]
) -> None:
    """Of sources of different lengths in one call."""
    ids, oracle = texts_of(config_of(name), (1, 9, 70)), T5(directories[name])
    found = kaoken.load(libraries[name], threads=2).generate(ids, max_new_tokens=STEPS, eos_token_id=None)
    start = config_of(name)["decoder_start_token_id"]
    assert found.tolist() == [[start, *oracle.generate(row, STEPS)] for row in ids]


@one
def test_generation_ends(name: str, libraries: dict[str, Path]) -> None:
    """At an end token, behind which a row is padded, after max_new_tokens, and at the last position."""
    ids = texts_of(config_of(name), (5, 70, 1, 64))
    model = kaoken.load(libraries[name])
    free = model.generate(ids, max_new_tokens=30, eos_token_id=None)
    ends = (int(free[0, 6]), int(free[2, 11]))
    expected = np.full_like(free, 3)
    for row, tokens in zip(expected, free, strict=True):
        stop = next((at for at, token in enumerate(tokens) if at and token in ends), 30) + 1
        row[:stop] = tokens[:stop]
    expected = expected[:, : 1 + max(int(np.flatnonzero(row != 3).max(initial=0)) for row in expected)]
    found = model.generate(ids, max_new_tokens=30, eos_token_id=ends, pad_token_id=3)
    np.testing.assert_array_equal(found, expected)
    for row, source in zip(found, ids, strict=True):
        streamed = list(model.stream(source, max_new_tokens=30, eos_token_id=ends))
        assert row[1 : 1 + len(streamed)].tolist() == streamed
        assert set(row[1 + len(streamed) :].tolist()) <= {3}
    assert model.generate(ids).shape[1] <= 21
    assert model.generate(ids, max_new_tokens=1000, eos_token_id=None).shape == (4, LONGEST)


@one
def test_draws_do_not_depend_on_company(name: str, libraries: dict[str, Path]) -> None:
    ids = texts_of(config_of(name), (5, 70, LONGEST))
    model = kaoken.load(libraries[name])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "seed": 3, "eos_token_id": None}
    together = model.generate(ids, **options)
    for row, source in enumerate(ids):
        company = texts_of(config_of(name), (40, 1, 3), seed=50)
        company[row] = source
        require_same_bits(model.generate(company, **options)[row], together[row])
    assert model.generate(ids, **{**options, "seed": 4}).tolist() != together.tolist()
    assert len({tuple(row) for row in model.generate([ids[0]] * 3, **options).tolist()}) == 3


@one
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(name: str, side: str, libraries: dict[str, Path]) -> None:
    ids, decoder_ids = texts_of(config_of(name), (4, 65, 1)), texts_of(config_of(name), (3, 9, 70), seed=20)
    model = kaoken.load(libraries[name])
    pads = [[1000] * (65 - len(row)) for row in ids]
    padded = np.array([pad + row if side == "left" else row + pad for pad, row in zip(pads, ids, strict=True)])
    mask = (padded != 1000).astype(np.int64)
    for found, expected in zip(model.logits(padded, decoder_ids, mask), model.logits(ids, decoder_ids), strict=True):
        require_same_bits(found, expected)
    encoding = {"input_ids": padded, "attention_mask": mask}
    expected = model.generate(ids, max_new_tokens=5, eos_token_id=None)
    require_same_bits(model.generate(encoding, max_new_tokens=5, eos_token_id=None), expected)
    require_same_bits(model.generate(padded, max_new_tokens=5, eos_token_id=None, attention_mask=mask), expected)


@one
def test_what_a_model_refuses(name: str, libraries: dict[str, Path]) -> None:
    model = kaoken.load(libraries[name])
    cases: list[tuple[Any, str]] = [
        (lambda: model.logits([], [0]), "empty"),
        (lambda: model.logits([[1], []], [[0], [0]]), "empty"),
        (lambda: model.logits([1], []), "empty"),
        (lambda: model.logits([61], [0]), "token id 61"),
        (lambda: model.logits([1], [-1]), "token id -1"),
        (lambda: model.logits([1] * 151, [0]), "the text has 151 tokens, but the model has source_positions = 150"),
        (lambda: model.logits([1], [0] * 151), "151 tokens, but the model has n_positions = 150"),
        (lambda: model.logits([[1], [2]], [0]), "ids hold 2 sequences and decoder_ids 1: pass one for each"),
        (lambda: model.logits([1, 2], [0], [1]), "attention_mask must have the shape of ids"),
        (lambda: model.generate([1, 2], attention_mask=[0, 0]), "attention_mask"),
        (lambda: model.generate([[]]), "empty"),
        (lambda: model.generate([1] * 151), "the text has 151 tokens"),
        (lambda: model.generate([1], max_new_tokens=0), "max_new_tokens"),
        (lambda: model.generate([1], num_beams=2), "num_beams"),
        (lambda: model.stream([[1], [2]]), "stream takes one sequence"),
        (lambda: model([1]), r"use generate\(ids\) or logits\(ids, decoder_ids\)"),
    ]
    for call, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            call()


@one
def test_what_a_session_refuses(name: str, libraries: dict[str, Path]) -> None:
    """And stays what it was."""
    session = encoded(libraries[name], [[4, 5], [6]], 1)
    step(session, {0: [0, 7], 1: [0]})
    cases: list[tuple[Any, str]] = [
        (lambda: encode(session, [[1], [2], [3]]), "count is 3; it must be at least 1 and at most 2"),
        (lambda: encode(session, [[1], [61]]), "token id 61 at sequence 1, position 0"),
        (lambda: encode(session, [[1], [2] * 151]), "text 1 has 151 tokens.*at most 150; cut it"),
        (lambda: session.encode(np.array([1, 0]), np.array([1])), "a text is empty"),
        (lambda: session.encode(np.array([1]), np.array([1]), np.array([0])), "no token types"),
        (lambda: step(session, {0: [1] * 149}), "149 tokens behind 2 pass the session's 150 positions"),
    ]
    for call, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            call()
    assert session.lengths == [2, 1]
    model = kaoken.load(libraries[name])
    for logits, (source, tokens) in zip(
        step(session, {0: [3], 1: [3]}), [([4, 5], [0, 7, 3]), ([6], [0, 3])], strict=True
    ):
        require_same_bits(logits[-1], model.logits(source, tokens)[0, -1])


def test_a_decoder_encodes_nothing(bundled: kaoken.BakedGPT2) -> None:
    with pytest.raises(kaoken.InputError, match="this model is a decoder, which encodes no texts; append tokens"):
        bundled._session(1).encode(np.array([1]), np.array([1]))


@one
def test_the_class_is_that_of_the_kind(name: str, libraries: dict[str, Path]) -> None:
    model = kaoken.load(libraries[name])
    assert type(model) is kaoken.BakedSeq2SeqLM
    config = model.config
    assert (config.kind, config.family, config.decoder_start_token_id) == ("encoder-decoder", "t5", 0)
    assert (config.n_layer, config.n_positions, config.source_positions, config.type_vocab_size) == (3, 150, 150, 0)
    for kind in (kaoken.BakedGPT2, kaoken.BakedCausalLM, kaoken.BakedEncoder):
        with pytest.raises(kaoken.LibraryError, match=f"holds an encoder-decoder, and {kind.__name__} .*kaoken.load"):
            kind(libraries[name])
    with pytest.raises(kaoken.LibraryError, match="holds a decoder, and BakedSeq2SeqLM is for an encoder-decoder"):
        kaoken.BakedSeq2SeqLM()
    for attribute in ("hidden_states", "session"):
        assert not hasattr(model, attribute)


@fork
@one
def test_pickled_in_threads_and_in_a_child(name: str, libraries: dict[str, Path]) -> None:
    ids, decoder_ids = texts_of(config_of(name)), texts_of(config_of(name), DECODER_LENGTHS, seed=20)
    model = kaoken.load(libraries[name], threads=2)
    expected = np.concatenate(model.logits(ids, decoder_ids)).tobytes()

    restored = pickle.loads(pickle.dumps(model))
    assert type(restored) is kaoken.BakedSeq2SeqLM
    assert np.concatenate(restored.logits(ids, decoder_ids)).tobytes() == expected
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(np.concatenate(model.logits(ids, decoder_ids)).tobytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    session = encoded(libraries[name], ids, 2)
    tokens = {slot: row[:3] for slot, row in enumerate(decoder_ids)}
    inherited = in_child(lambda: np.concatenate(step(session, tokens)).tobytes())
    assert inherited == np.concatenate(step(session, tokens)).tobytes()
    generated = model.generate(ids, max_new_tokens=5)
    assert in_child(lambda: model.generate(ids, max_new_tokens=5).tobytes()) == generated.tobytes()


@pytest.mark.ci
@names
def test_baked_t5s_do_what_transformers_does(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """Logits and greedy tokens of padded sources, whose padding is left out here and masked there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids, decoder_ids = texts_of(config_of(name)), texts_of(config_of(name), (LONGEST,) * len(LENGTHS), seed=20)
    padded, mask = (
        np.array([row + [0] * (LONGEST - len(row)) for row in rows]) for rows in (ids, [[1] * len(row) for row in ids])
    )
    given = {"input_ids": padded, "attention_mask": mask}
    tensors = {key: torch.from_numpy(array) for key, array in given.items()}
    model = transformers.T5ForConditionalGeneration.from_pretrained(directories[name]).eval()
    with torch.no_grad():
        expected = model(**tensors, decoder_input_ids=torch.tensor(decoder_ids)).logits.numpy()
        # Its cache has as many layers as the encoder, which are too few for a deeper decoder.
        options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "use_cache": False}
        tokens = model.generate(**tensors, **options).numpy()
    baked_model = kaoken.load(libraries[name])
    error = relative_error(expected, baked_model.logits(given, decoder_ids))
    record_error("logits of T5s against transformers", error)
    assert error < LIMIT
    np.testing.assert_array_equal(baked_model.generate(given, max_new_tokens=STEPS, eos_token_id=None), tokens)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["gated"])
def test_end_tokens_are_those_of_transformers(
    name: str, libraries: dict[str, Path], directories: dict[str, Path]
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = np.array(texts_of(config_of(name), (20, 20, 20, 20)))
    model = transformers.T5ForConditionalGeneration.from_pretrained(directories[name]).eval()
    baked_model = kaoken.load(libraries[name])
    free = baked_model.generate(ids, max_new_tokens=STEPS, eos_token_id=None)
    for end in (int(free[0, 3]), int(free[2, 9]), [int(free[1, 5]), int(free[3, 20])]):
        options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": end, "pad_token_id": 3}
        expected = model.generate(torch.from_numpy(ids), **options).numpy()
        np.testing.assert_array_equal(baked_model.generate(ids, **options), expected)


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_isa_of_this_machine(dtype: str, directories: dict[str, Path], tmp_path: Path) -> None:
    library = kaoken.bake(directories[TYPED], dtype=dtype, isa="portable", out=tmp_path / "t5.so")
    ids, decoder_ids = texts_of(config_of(TYPED)), texts_of(config_of(TYPED), DECODER_LENGTHS, seed=20)
    oracle = T5(directories[TYPED])
    expected = [oracle.logits(*each) for each in zip(ids, decoder_ids, strict=True)]
    opened = _core.Library(library)
    for isa in runnable(opened.isas.split(",")):
        session = opened.session(len(ids), 2, isa)
        encode(session, ids)
        found = step(session, dict(enumerate(decoder_ids)))
        assert session.executed_isa == isa
        errors = [relative_error(*each) for each in zip(expected, found, strict=True)]
        assert max(errors) < (LIMIT if dtype == "float32" else TYPES[dtype])


@pytest.mark.ci
@pytest.mark.parametrize("name", ["gated_silu"])
def test_exploded_is_packed_bit_for_bit(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], tmp_path: Path
) -> None:
    ids, decoder_ids = texts_of(config_of(name)), texts_of(config_of(name), DECODER_LENGTHS, seed=20)
    packed = kaoken.load(libraries[name]).logits(ids, decoder_ids)
    library = kaoken.bake(directories[name], kernels="exploded", out=tmp_path / "exploded.so")
    for threads in (1, 2, 3):
        for found, expected in zip(kaoken.load(library, threads=threads).logits(ids, decoder_ids), packed, strict=True):
            require_same_bits(found, expected)
        session = encoded(library, ids[:2], threads)
        for position in range(70):
            found = step(session, dict.fromkeys(range(2), decoder_ids[1][position : position + 1]))
            require_same_bits(found[1], packed[1][position : position + 1])


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
    for stack in rewrites.run(graph).stacks:
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


HOSTILE: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "a huge vocabulary": (CheckpointError, {"vocab_size": 1 << 60}, "vocab_size is 1152921504606846976; expected"),
    "a large vocabulary": (CheckpointError, {"vocab_size": 1 << 24}, r"shared.weight' has shape \[61, 48\]"),
    "huge positions": (CheckpointError, {"n_positions": 1 << 40}, "n_positions is 1099511627776; expected"),
    "huge heads": (CheckpointError, {"num_heads": 1 << 16, "d_kv": 1 << 16}, "has shape"),
    "huge layers": (CheckpointError, {"num_layers": 10**9}, "num_layers is 1000000000; expected"),
    "many layers": (CheckpointError, {"num_layers": 1000}, "lacks the tensor 'encoder.block.2"),
    "a huge MLP": (CheckpointError, {"d_ff": 1 << 20}, "wi.weight' has shape"),
    "huge buckets": (CheckpointError, {"relative_attention_num_buckets": 10**30}, "num_buckets is 1000000"),
    "far away": (CheckpointError, {"relative_attention_max_distance": 10**30}, "max_distance is 1000000"),
    "a negative width": (CheckpointError, {"d_model": -48}, "d_model is -48"),
    "a width that is none": (CheckpointError, {"d_model": 48.0}, "d_model is 48.0"),
    "no epsilon": (CheckpointError, {"layer_norm_epsilon": float("nan")}, "is not finite"),
    "true heads": (CheckpointError, {"num_heads": True}, "num_heads is True"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configs(case: str, tmp_path: Path) -> None:
    require_refused(write(tmp_path, TINY), TINY, *HOSTILE[case])


@pytest.mark.parametrize(
    "name",
    [
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.1.layer.1.EncDecAttention.k.weight",
        "encoder.final_layer_norm.weight",
        "shared.weight",
    ],
)
def test_hostile_tensors(name: str, tmp_path: Path) -> None:
    require_sound(write(tmp_path, TINY), name)


@pytest.mark.parametrize("name", ["encoder.block.1.layer.0.SelfAttention.q.weight", "shared.weight"])
def test_weights_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    require_numbers(write(tmp_path, TINY), name)

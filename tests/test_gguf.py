"""GGUF files: the same models as the directories that they are made of, and what is refused by name."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, KaokenError, UnsupportedModelError
from kaoken.codegen.families import read_graph, read_weights
from kaoken.codegen.gguf_checkpoint import readable_types
from kaoken.codegen.gguf_header import read_header
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import gguf_files
import kaoken
from bits import require_same_bits
from configurations import CONFIGURATIONS
from conftest import Checkpoints, RecordError
from gguf_files import write_bert, write_file, write_gpt2, write_llama
from native_build import bake_together
from oracles import bert, llama
from oracles.bert import Bert
from reference import LIMIT, relative_error
from test_adapter import write_adapter

ROOT = Path(__file__).parent.parent

# A GGUF cannot say which activation a Llama has, so all have its own.
LLAMAS = {name: llama.config_of(name) for name in ("grouped", "a_head_each", "one_key", "llama3", "smol", "stretched")}
LLAMAS["one_key"].pop("hidden_act")
# Rows of whole blocks.
BLOCKY = {
    **llama.TINY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
GPT2S = ("plain", "three_heads", "untied")
IDS = np.random.Generator(np.random.PCG64(3)).integers(0, 61, (2, 40))


def weights_of(path: Path) -> dict[str, Any]:
    """All that a family reads of a checkpoint, by its own names."""
    _, weights = read_weights(open_checkpoint(path))
    stored = weights._stored  # type: ignore[attr-defined]
    return {name: weights.read(name) for name in weights.expected if name in stored}


def require_same_weights(directory: Path, path: Path) -> None:
    expected, found = weights_of(directory), weights_of(path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# Families


@pytest.mark.parametrize("name", LLAMAS)
def test_a_llama_is_its_directory(name: str, tmp_path: Path) -> None:
    """Every tensor in the order and every number of the graph."""
    directory = llama.write(tmp_path / name, LLAMAS[name])
    path = write_llama(directory, tmp_path / "model.gguf")
    require_same_weights(directory, path)
    expected, found = (read_graph(open_checkpoint(each)) for each in (directory, path))
    assert (found.kind, found.vocabulary, found.width, found.tied) == (
        expected.kind,
        expected.vocabulary,
        expected.width,
        expected.tied,
    )
    assert found.stack.limit == expected.stack.limit
    assert found.stack.norm is not None
    assert expected.stack.norm is not None
    assert found.stack.norm.epsilon == expected.stack.norm.epsilon
    for own, theirs in zip(found.blocks, expected.blocks, strict=True):
        assert (own.attention.heads, own.attention.kv_heads, own.attention.head_dim, own.attention.scale) == (
            theirs.attention.heads,
            theirs.attention.kv_heads,
            theirs.attention.head_dim,
            theirs.attention.scale,
        )
        assert own.mlp.activation == theirs.mlp.activation
        assert own.attention.rotary is not None
        assert theirs.attention.rotary is not None
        np.testing.assert_allclose(own.attention.rotary.frequencies, theirs.attention.rotary.frequencies, rtol=3e-7)


@pytest.mark.parametrize("name", GPT2S)
def test_a_gpt2_is_its_directory(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    require_same_weights(checkpoints(name), write_gpt2(checkpoints(name), tmp_path / "model.gguf"))


def test_a_bert_is_its_directory(tmp_path: Path) -> None:
    directory = bert.write(tmp_path / "bert", bert.TINY)
    path = write_bert(directory, tmp_path / "model.gguf")
    expected, found = weights_of(directory), weights_of(path)
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert read_graph(open_checkpoint(path)).kind == "encoder"


@pytest.mark.parametrize(("kind", "mode"), [(1, "mean"), (2, "first"), (3, "last")])
def test_the_pooling_of_an_encoder(kind: int, mode: str, tmp_path: Path) -> None:
    directory = bert.write(tmp_path / "bert", bert.TINY)
    graph = read_graph(open_checkpoint(write_bert(directory, tmp_path / "a.gguf", {"bert.pooling_type": kind})))
    assert graph.head is not None
    assert graph.head.pooling == (mode,)
    assert not graph.head.normalize


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.Q5_1, Kind.F16, Kind.BF16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_become_what_the_gguf_package_makes_of_them(
    family: str, kind: Kind, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Rows of queries and keys are exchanged, matrices of a GPT-2 transposed, a piece at a time."""
    path = tmp_path / "model.gguf"
    if family == "llama":
        directory = llama.write(tmp_path / "llama", BLOCKY)
        _, _, tensors = gguf_files.llama_parts(directory)
        write_llama(directory, path, kind)
    else:
        directory = checkpoints("plain")
        tensors = gguf_files.gpt2_tensors(directory)
        write_gpt2(directory, path, kind)
    values = gguf_files.dequantized(*gguf_files.quantized(tensors, kind))
    found = weights_of(path)
    for name, theirs, of_family in expected_values(family, values):
        np.testing.assert_array_equal(found[name], of_family, err_msg=theirs)
    checkpoint = read_weights(open_checkpoint(path))[1]
    for name, values_of in found.items():
        count = len(values_of)
        for rows in (slice(0, 1), slice(count // 3, count // 2 + 1), slice(count - 1, count), slice(2, 2)):
            np.testing.assert_array_equal(checkpoint.read(name, rows), values_of[rows], err_msg=f"{name} {rows}")


def expected_values(family: str, values: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Some tensors by the family's name and by llama.cpp's, with the values that they should have."""
    if family == "gpt2":
        pairs = {"h.1.attn.c_attn.weight": "blk.1.attn_qkv.weight", "h.0.mlp.c_proj.weight": "blk.0.ffn_down.weight"}
        return [(name, theirs, values[theirs].T) for name, theirs in pairs.items()]
    query, key, value = (f"blk.1.attn_{part}.weight" for part in "qkv")
    return [
        ("layers.1.self_attn.q_proj.weight", query, gguf_files.separated(values[query], 8)),
        ("layers.1.self_attn.k_proj.weight", key, gguf_files.separated(values[key], 2)),
        ("layers.1.self_attn.v_proj.weight", value, values[value]),
        ("embed_tokens.weight", "token_embd.weight", values["token_embd.weight"]),
    ]


@pytest.mark.parametrize("name", readable_types())
def test_every_type_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    """Bytes below 64 make small finite scales in every type."""
    kind = Kind[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.Generator(np.random.PCG64(1)).integers(0, 64, (40, 256 // block * block_bytes), np.uint8)
    metadata = gguf_files.llama_metadata(BLOCKY)
    path = write_file(
        tmp_path / "a.gguf", "llama", metadata, {"token_embd.weight": blocks}, {"token_embd.weight": kind}
    )
    checkpoint = open_checkpoint(path)
    expected = gguf.quants.dequantize(blocks, kind)
    np.testing.assert_array_equal(checkpoint.read("token_embd.weight"), expected)
    np.testing.assert_array_equal(checkpoint.read("token_embd.weight", slice(7, 20)), expected[7:20])


# Baked


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by name: GGUF files, and directories of the same values."""
    root = tmp_path_factory.mktemp("models")
    blocky = llama.write(root / "llama", {**BLOCKY, "rope_parameters": llama.LLAMA3})
    blocks = write_llama(blocky, root / "llama.gguf", Kind.Q8_0)
    values = {name: tensor for name, tensor in weights_of(blocks).items() if name != "lm_head.weight"}
    save_file({f"model.{name}": tensor for name, tensor in values.items()}, blocky / "model.safetensors")
    encoder = bert.write(root / "bert", bert.TINY)
    return {
        "llama": blocky,
        "llama_gguf": blocks,
        "gpt2": checkpoints("plain"),
        "gpt2_gguf": write_gpt2(checkpoints("plain"), root / "gpt2.gguf"),
        "bert": encoder,
        "bert_gguf": write_bert(encoder, root / "bert.gguf", {"bert.pooling_type": 1}),
    }


@pytest.fixture(scope="module")
def load(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`load(name)` is a model; all are baked together, by CMake alone."""
    arguments = {name: (path, "DTYPE float32 ISA native") for name, path in models.items() if name != "bert"}
    libraries = bake_together(tmp_path_factory.mktemp("together"), arguments)
    return lambda name: kaoken.load(libraries[name])


def test_logits_of_a_llama(load: Callable[[str], Any], models: dict[str, Path]) -> None:
    """Its frequencies differ from the directory's in the last bit, as the file has quotients of them."""
    found = load("llama_gguf").logits(IDS)
    assert relative_error(load("llama").logits(IDS), found) < LIMIT
    assert relative_error(llama.Llama(models["llama"]).logits(IDS), found) < LIMIT


def test_logits_of_a_gpt2(load: Callable[[str], Any]) -> None:
    ids = CONFIGURATIONS["plain"].ids()
    require_same_bits(load("gpt2_gguf").logits(ids), load("gpt2").logits(ids))


def test_vectors_of_a_bert(load: Callable[[str], Any], models: dict[str, Path]) -> None:
    expected = np.stack([Bert(models["bert"]).hidden_states(row.tolist()).mean(0) for row in IDS])
    assert relative_error(expected, load("bert_gguf").encode([row.tolist() for row in IDS])) < LIMIT


def test_baked_at_run_time(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    model = kaoken.load(kaoken.bake(write_llama(directory, tmp_path / "Some Llama.Q8_0.gguf")))
    assert (model.info.name, model.info.source) == ("some_llama_q8_0", "Some Llama.Q8_0")
    assert relative_error(llama.Llama(directory).logits(IDS), model.logits(IDS)) < LIMIT


@pytest.mark.ci
def test_a_file_that_changed_is_baked_again(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    path = write_llama(directory, tmp_path / "model.gguf")
    first = kaoken.bake(path)
    assert kaoken.bake(path) == first
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, directory / "model.safetensors")
    write_llama(directory, path)
    second = kaoken.bake(path)
    assert second != first
    np.testing.assert_allclose(kaoken.load(second).logits(IDS), 2 * kaoken.load(first).logits(IDS), rtol=1e-5)


QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = ["Once upon a time", QUESTION, "def f(x):"]


@pytest.mark.ci
def test_smollm2_is_that_of_transformers(smollm2: Path, record_error: RecordError) -> None:
    """Which dequantizes the same file."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    model = kaoken.load(kaoken.bake(smollm2, dtype="float32"))
    for prompt in PROMPTS:
        ids = model.tokenizer.encode(prompt).ids
        with torch.inference_mode():
            logits = theirs(torch.tensor([ids])).logits.numpy()
            greedy = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)
        error = relative_error(logits, model.logits(ids))
        record_error("logits of SmolLM2 from a GGUF against transformers, live", error)
        assert error < 1e-4
        assert model.generate(ids, max_new_tokens=40, do_sample=False).tolist() == greedy.tolist()


@pytest.mark.ci
def test_minilm_as_a_file(minilm: Path, tmp_path: Path) -> None:
    """Its vectors are those of sentence-transformers, where they are brought to length 1."""
    library = pytest.importorskip("sentence_transformers")
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    vocabulary = gguf_files.wordpiece_metadata(tokenizer.get_vocab(), special)
    keys = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    model = kaoken.load(kaoken.bake(write_bert(minilm, tmp_path / "minilm.gguf", {**keys, "bert.pooling_type": 1})))
    theirs = library.SentenceTransformer(str(minilm), device="cpu")
    texts = [text for text in (ROOT / "README.md").read_text(encoding="utf-8").split("\n") if text][:60]
    found = model.encode(texts, normalize_embeddings=True)
    assert relative_error(theirs.encode(texts), found) < LIMIT


@pytest.mark.ci
def test_an_adapter_is_merged_into_a_file(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    adapter = write_adapter(tmp_path / "adapter", directory, modules)
    path = write_llama(directory, tmp_path / "model.gguf")
    own, theirs = (kaoken.load(kaoken.bake(each, adapter=adapter)).logits(IDS) for each in (path, directory))
    require_same_bits(own, theirs)
    assert np.abs(own - llama.Llama(directory).logits(IDS)).max() > 1e-3


# Metadata


def llama_file(path: Path, more: Mapping[str, Any], drop: str = "") -> Path:
    """A Llama without blocks, whose metadata are what matters."""
    metadata = {key: value for key, value in gguf_files.llama_metadata(llama.TINY).items() if key != drop} | dict(more)
    width = llama.TINY["hidden_size"]
    tensors = {
        "token_embd.weight": np.zeros((61, width), np.float32),
        "output_norm.weight": np.zeros(width, np.float32),
    }
    return write_file(path, "llama", metadata, tensors)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"llama.logit_scale": 2.0}, "the key 'llama.logit_scale'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8; expected 0"),
    "other values": ({"llama.attention.value_length": 4}, "attention.value_length is 4; expected 8"),
    "a part of a head": ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4; expected 8"),
    "layers that differ": ({"llama.attention.head_count": [6, 6]}, "a value for each layer"),
    "longrope": ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "'longrope'"),
    "an encoder": ({"llama.attention.causal": False}, "attention.causal is False; expected True"),
    "a model of vectors": ({"llama.pooling_type": 3}, "pooling_type is 3; expected 0"),
    "an adapter": ({"general.type": "adapter"}, "holds 'adapter'"),
    "one of several files": ({"split.count": 3}, "one of 3 files"),
    "a vocabulary of another kind": ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_kaoken_does_not_know_is_named(name: str, tmp_path: Path) -> None:
    more, message = UNSUPPORTED[name]
    path = llama_file(tmp_path / "model.gguf", more)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        read_graph(open_checkpoint(path))
    assert str(path) in str(caught.value)


BARE = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no width": ({}, "llama.embedding_length", "lacks llama.embedding_length"),
    "a text for a width": ({"llama.embedding_length": "48"}, "", "embedding_length is '48'"),
    "no layers": ({"llama.block_count": 0}, "", "num_hidden_layers is 0"),
    "too many layers": ({"llama.block_count": 2000}, "", "num_hidden_layers is 2000"),
    "more tokens than rows": (
        {**BARE, "tokenizer.ggml.tokens": [str(index) for index in range(62)]},
        "",
        "has 62 tokens, and token_embd.weight has 61 rows",
    ),
    "blocks that are not there": ({}, "", r"lacks the tensor 'layers\.0\.self_attn\.q_proj\.weight'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metadata_are_named(name: str, tmp_path: Path) -> None:
    more, drop, message = WRONG[name]
    path = llama_file(tmp_path / "model.gguf", more, drop)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_graph(open_checkpoint(path))
    assert str(path) in str(caught.value)


def test_tensors_that_are_none_of_the_family(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    _, _, tensors = gguf_files.llama_parts(directory)
    tensors["blk.0.ffn_gate_inp.weight"] = np.zeros((4, 48), np.float32)
    path = write_file(tmp_path / "a.gguf", "llama", gguf_files.llama_metadata(llama.TINY), tensors)
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.ffn_gate_inp\.weight' is no tensor of a Llama"):
        read_graph(open_checkpoint(path))


def test_an_architecture_that_is_not_baked(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf", "mamba", {}, {"x": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"general.architecture is 'mamba'; expected one of bert, gemma3"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [Kind.I32, Kind.F64])
def test_types_that_are_no_weights(kind: Kind, tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    _, _, tensors = gguf_files.llama_parts(directory)
    tensors["output_norm.weight"] = tensors["output_norm.weight"].astype(np.int32 if kind == Kind.I32 else np.float64)
    path = write_file(tmp_path / "a.gguf", "llama", gguf_files.llama_metadata(llama.TINY), tensors)
    with pytest.raises(CheckpointError, match=f"stored as {kind.name}; expected one of F32, F16, BF16"):
        read_graph(open_checkpoint(path))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "llama", llama.TINY)
    _, _, tensors = gguf_files.llama_parts(directory)
    tensors["blk.1.attn_q.weight"][3, 4] = np.nan
    path = write_file(tmp_path / "a.gguf", "llama", gguf_files.llama_metadata(llama.TINY), tensors)
    with pytest.raises(CheckpointError, match=r"1 of the 2304 values read from 'layers\.1\.self_attn\.q_proj\.weight'"):
        weights_of(path)


# Damaged headers


def header_of(*parts: bytes | int | str, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    """A file of that many tensors and keys: texts with their lengths, and whole numbers of 32 bits."""
    made = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    for part in parts:
        if isinstance(part, int):
            made += struct.pack("<I", part)
        else:
            data = part.encode() if isinstance(part, str) else part
            made += struct.pack("<Q", len(data)) + data if isinstance(part, str) else data
    return made


def long(value: int) -> bytes:
    return struct.pack("<Q", value)


ARRAY, STRING, UINT8, UINT32 = 9, 8, 0, 4
HUGE = 1 << 60

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "needs 4 bytes"),
    "no GGUF": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(100), "big-endian"),
    "the first version": (header_of(version=1), "of version 1"),
    "countless tensors": (header_of(tensors=HUGE), "the number of tensors is 1152921504606846976"),
    "countless keys": (header_of(keys=HUGE), "the number of keys is"),
    "more keys than bytes": (header_of(keys=1000), "the name of key 0 needs 8 bytes"),
    "a key that never ends": (header_of(long(HUGE), keys=1), "the length of the name of key 0 is"),
    "a text that never ends": (header_of("a", STRING, long(HUGE), keys=1), "the length of the key 'a' is"),
    "a text past the end": (header_of("a", STRING, long(1000), keys=1), "the key 'a' needs 1000 bytes"),
    "an array that never ends": (header_of("a", ARRAY, UINT8, long(HUGE), keys=1), "the length of the key 'a' is"),
    "texts that never end": (header_of("a", ARRAY, STRING, long(HUGE), keys=1), "the length of the key 'a' is"),
    "an array past the end": (header_of("a", ARRAY, UINT32, long(1 << 20), keys=1), "needs 4194304 bytes"),
    "arrays in arrays": (header_of("a", ARRAY, ARRAY, long(1), ARRAY, long(1), keys=1), "values of type 9"),
    "values of no type": (header_of("a", 77, long(0), keys=1), "values of type 77"),
    "a key twice": (header_of("a", UINT32, 1, "a", UINT32, 2, keys=2), "the key 'a' stands there twice"),
    "a key that is no text": (header_of(long(2) + b"\xff\xfe", UINT32, 1, keys=1), "is not UTF-8"),
    "a tensor's name that never ends": (header_of(long(HUGE), tensors=1), "the length of the name of tensor 0 is"),
    "a tensor twice": (
        header_of("x", 1, long(4), 0, long(0), "x", 1, long(4), 0, long(0), tensors=2) + bytes(100),
        "the tensor 'x' stands there twice",
    ),
    "no dimensions": (header_of("x", 0, 0, long(0), tensors=1) + bytes(100), "has 0 dimensions"),
    "countless dimensions": (header_of("x", 0xFFFFFFFF, tensors=1) + bytes(100), "has 4294967295 dimensions"),
    "a zero dimension": (header_of("x", 1, long(0), 0, long(0), tensors=1) + bytes(100), "expected no zeros"),
    "a tensor past the end": (header_of("x", 1, long(100), 0, long(0), tensors=1) + bytes(100), "needs 400 bytes"),
    "an offset past the end": (header_of("x", 1, long(4), 0, long(HUGE), tensors=1) + bytes(100), "needs 16 bytes at"),
    "sizes that overflow": (
        header_of("x", 2, long(1 << 33), long(1 << 33), 0, long(0), tensors=1) + bytes(100),
        "needs 295147905179352825856 bytes",
    ),
    "half a block": (header_of("x", 1, long(33), 2, long(0), tensors=1) + bytes(100), "Q4_0 stores 32 together"),
    "an alignment of three": (
        header_of("general.alignment", UINT32, 3, keys=1) + bytes(100),
        "general.alignment is 3; expected a power of two",
    ),
    "an alignment of nothing": (header_of("general.alignment", UINT32, 0, keys=1), "general.alignment is 0"),
    "paths for names": (
        header_of("../../x\n\x1b", 1, long(100), 0, long(0), tensors=1) + bytes(100),
        r"the tensor '../../x\\n\\x1b' of shape",
    ),
}


def quickly(function: Callable[[], Any]) -> Any:
    """The error that is raised within a second, without tracemalloc, and 200 MB."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(KaokenError) as caught:
            function()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 3.0  # of which tracemalloc takes most
    assert peak < 200 << 20
    return caught.value


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers_are_refused(name: str, tmp_path: Path) -> None:
    data, message = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    error = quickly(lambda: open_checkpoint(path))
    assert str(error).startswith(str(path))
    assert message.replace("\\\\", "\\") in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(("kind", "width"), [(UINT8, 1), (STRING, 8)])
def test_a_header_of_gigabytes_is_refused_as_quickly(kind: int, width: int, tmp_path: Path) -> None:
    """Of zeros that take no room on the disk."""
    path = tmp_path / "model.gguf"
    path.write_bytes(header_of("a", ARRAY, kind, long((1 << 33) // width), keys=1))
    with path.open("r+b") as file:
        file.truncate(1 << 34)
    assert "the length of the key 'a' is" in str(quickly(lambda: open_checkpoint(path)))


def test_the_longest_header_is_refused_as_quickly(tmp_path: Path) -> None:
    """Of as many texts as an array may have, and then nothing that is known."""
    texts = b"".join(long(2) + struct.pack("<H", 0x3030 + index % 40) for index in range(1 << 20))
    path = tmp_path / "model.gguf"
    path.write_bytes(header_of("a", ARRAY, STRING, long(1 << 20), texts, "b", 77, keys=2))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="values of type 77"):
        open_checkpoint(path)
    assert time.process_time() - start < 3


def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    texts = ["", "ä", "\N{OGHAM SPACE MARK}" * 100]
    more = {
        "a.text": "x\ny",
        "a.yes": True,
        "a.small": 1e-5,
        "a.texts": texts,
        "a.numbers": [1.5, 2.5],
        "a.ids": [1, -2],
    }
    path = llama_file(tmp_path / "model.gguf", more)
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for name, value in fields.items():
        found = header.metadata[name]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        assert np.float32(found) == np.float32(value) if isinstance(value, float) else found == value
    assert header.metadata["a.small"] == 1e-5
    assert {name: (entry.ggml_type, entry.offset, entry.nbytes) for name, entry in header.tensors.items()} == {
        tensor.name: (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes) for tensor in reader.tensors
    }
    assert [entry.shape for entry in header.tensors.values()] == [
        tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors
    ]


def test_a_part_of_the_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "model.gguf", {"a.texts": ["a", "b"]}).read_bytes()
    path = tmp_path / "part.gguf"
    for end in range(0, len(whole), 29):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="is not a sound GGUF file"):
            open_checkpoint(path)


def test_the_gguf_package_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = llama_file(tmp_path / "model.gguf", {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        open_checkpoint(path)


def test_a_directory_may_end_in_gguf(tmp_path: Path) -> None:
    directory = llama.write(tmp_path / "model.gguf", llama.TINY)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "llama"
    assert read_graph(open_checkpoint(directory)).family == "llama"

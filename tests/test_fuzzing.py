"""Headers of GGUF files and configs that hypothesis changes: an error of Kaoken's that can be printed, or a model."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import KaokenError
from kaoken.codegen.families import check_config, read_graph
from kaoken.codegen.gguf_header import read_header

from decoders import CONFIGURATIONS, config_of
from gguf_files import write_llama
from oracles import llama

# The same examples in every run: what fails here fails for everyone.
fuzzed = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

EDGES = [0, 1, 2, 3, 7, 8, 9, 31, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
numbers = st.sampled_from([*EDGES, *(-edge for edge in EDGES)]) | st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=12)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)


def require_an_error_or_a_model(function: Callable[[], Any]) -> None:
    message = ""
    try:
        function()
    except KaokenError as error:
        message = str(error)
    event("refused" if message else "a model")
    assert message.isprintable()


def configs_of(family: str) -> st.SearchStrategy[dict[str, Any]]:
    """One of the family's configurations with some fields changed, taken from others, or absent."""
    known = [config_of(name) for name in CONFIGURATIONS[family]]
    fields = sorted({field for config in known for field in config} | {"rope_scaling", "rope_parameters", "dtype"})
    rope = st.dictionaries(
        st.sampled_from(["rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "beta_fast"]),
        values | st.sampled_from(["linear", "dynamic", "yarn", "llama3", "default"]),
        max_size=4,
    )
    theirs = st.sampled_from([value for config in known for value in config.values()])
    changes = st.dictionaries(st.sampled_from(fields), values | theirs | rope, min_size=1, max_size=3)
    absent = st.sets(st.sampled_from(fields), max_size=2)
    return st.builds(
        lambda config, changed, left_out: {
            field: value for field, value in {**config, **changed}.items() if field not in left_out - {"model_type"}
        },
        st.sampled_from(known),
        changes,
        absent,
    )


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_configs(family: str) -> None:
    @fuzzed
    @given(configs_of(family))
    def check(config: dict[str, Any]) -> None:
        require_an_error_or_a_model(lambda: check_config(copy.deepcopy(config), Path("config.json")))

    check()


@fuzzed
@given(st.one_of(values.map(json.dumps), st.text(), st.binary()))
def test_what_stands_in_config_json(tmp_path: Path, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    (tmp_path / "config.json").write_bytes(data)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    require_an_error_or_a_model(lambda: read_graph(open_checkpoint(tmp_path)))


VOCABULARY = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", *"abcdefghij", "ab", "abc"],
    "tokenizer.ggml.scores": [-1.5] * 13,
    "tokenizer.ggml.token_type": [2] + [1] * 12,
    "tokenizer.ggml.bos_token_id": 1,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of a small Llama."""
    root = tmp_path_factory.mktemp("llama")
    directory = llama.write(root / "llama", {**llama.TINY, "num_hidden_layers": 1})
    path = write_llama(directory, root / "model.gguf", **VOCABULARY)
    read_graph(open_checkpoint(path))
    return path


whole_numbers = st.sampled_from([edge for edge in EDGES if edge < 1 << 64])
edits = st.tuples(
    st.floats(0, 1, exclude_max=True),  # where in the header
    st.binary(min_size=1, max_size=2)
    | whole_numbers.map(lambda number: struct.pack("<Q", number))
    | st.integers(0, 13).map(lambda number: struct.pack("<I", number)),
    st.sampled_from(["replace", "insert", "remove", "end"]),
)


@fuzzed
@given(st.lists(edits, min_size=1, max_size=4))
def test_bytes_of_gguf_headers(sound: Path, tmp_path: Path, changes: list[tuple[float, bytes, str]]) -> None:
    end = min(entry.offset for entry in read_header(sound).tensors.values())
    data = bytearray(sound.read_bytes())
    for where, new, way in changes:
        place = int(where * end)
        if way == "end":
            del data[place:]
        else:
            data[place : place + (0 if way == "insert" else len(new))] = b"" if way == "remove" else new
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    require_an_error_or_a_model(lambda: read_graph(open_checkpoint(path)))


Type = gguf.GGUFValueType
typed = st.one_of(
    st.tuples(st.just(Type.UINT32), st.integers(0, (1 << 32) - 1) | st.integers(0, 80)),
    st.tuples(st.just(Type.INT64), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.tuples(st.just(Type.FLOAT64), st.floats()),
    st.tuples(st.just(Type.BOOL), st.booleans()),
    st.tuples(st.just(Type.STRING), st.text(max_size=12)),
    st.tuples(st.just(Type.ARRAY), st.lists(st.integers(-2, 1 << 30), min_size=1, max_size=14)),
    st.tuples(st.just(Type.ARRAY), st.lists(st.text(max_size=3), min_size=1, max_size=14)),
    st.tuples(st.just(Type.ARRAY), st.lists(st.floats(width=32), min_size=1, max_size=14)),
)


OPTIONAL = [
    "general.alignment",
    "general.type",
    "split.count",
    "tokenizer.chat_template",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.pre",
    *(f"llama.rope.{name}" for name in ("scaling.type", "scaling.factor", "scale_linear", "scaling.finetuned")),
    *(f"llama.{name}" for name in ("attention.sliding_window", "expert_count", "rope.dimension_sections", "unknown")),
]


@fuzzed
@given(st.data())
def test_keys_of_gguf_headers(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Other values, of other types, for the keys that count, and keys that are absent."""
    reader = gguf.GGUFReader(sound)
    keys = [name for name in reader.fields if not name.startswith("GGUF.")]
    changes = st.dictionaries(st.sampled_from([*keys, *OPTIONAL]), st.none() | typed, min_size=1, max_size=3)
    changed = data.draw(changes)
    made = tmp_path / "changed.gguf"
    writer = gguf.GGUFWriter(made, "llama")
    del writer.kv_data[0]["general.architecture"]
    stored = {name: (field.types[0], field.contents()) for name, field in reader.fields.items() if name in keys}
    for name, value in {**stored, **changed}.items():
        if value is not None:
            writer.add_key_value(name, value[1], value[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    require_an_error_or_a_model(lambda: read_graph(open_checkpoint(made)))

"""Directories of sentence-transformers: what they become, what decides a library, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint, watched_names
from kaoken.codegen.errors import CheckpointError, KaokenError, UnsupportedModelError
from kaoken.codegen.families import read_graph
from kaoken.codegen.families.sentence import describe
from kaoken.codegen.graph import Head
from safetensors.numpy import load_file, save_file

import decoders
from checkpoints import write_json
from oracles import bert, t5
from oracles.sentence import MODELS, NORMALIZE, POOLING, WIDTH, change, dense, write, write_modules

DEFAULTS = {
    "max_seq_length": None,
    "do_lower_case": False,
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": None,
    "truncate_dim": None,
    "include_prompt": True,
}


def head_of(directory: Path) -> Head:
    graph = read_graph(open_checkpoint(directory))
    assert graph.head is not None
    assert graph.task.name == "sentence-similarity"
    return graph.head


def refused(directory: Path) -> KaokenError:
    """What is raised of a directory, by its modules or by the description."""

    def read() -> None:
        head_of(directory)
        describe(open_checkpoint(directory))

    with pytest.raises(KaokenError) as caught:
        read()
    return caught.value


def test_pooling_and_normalize(tmp_path: Path) -> None:
    head = head_of(write(tmp_path))
    assert (head.pooling, head.layers, head.normalize) == (("mean",), (), True)
    assert describe(open_checkpoint(tmp_path)) == DEFAULTS


def test_modules_stand_behind_a_transformer_without_its_head(tmp_path: Path) -> None:
    """all-mpnet-base-v2's config names a masked language model, whose head it does not have."""
    directory = write(tmp_path)
    change(directory, "config.json", architectures=["BertForMaskedLM"])
    assert head_of(directory).pooling == ("mean",)
    change(directory, "config.json", architectures=["BertForAnything"])
    assert "BertForAnything" in str(refused(directory))


def test_a_plain_checkpoint_has_no_modules(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(bert.write(tmp_path, bert.TINY))
    assert checkpoint.sentence is None
    assert read_graph(checkpoint).head is None
    assert describe(checkpoint) is None


@pytest.mark.parametrize(
    ("fields", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("first",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_lasttoken": True}, ("mean_sqrt_len", "last")),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "weightedmean", "pooling_mode_cls_token": True}, ("weighted_mean",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "first")),
        ({}, ("mean",)),
    ],
)
def test_pooling_modes(fields: dict[str, Any], pooling: tuple[str, ...], tmp_path: Path) -> None:
    """In the old fields and in the new one."""
    assert head_of(write(tmp_path, [(f"{MODELS}.Pooling", fields)])).pooling == pooling


def test_dense_layers_and_a_norm(tmp_path: Path) -> None:
    norm = f"{MODELS}.LayerNorm"
    last = dense(7, 3, "torch.nn.modules.linear.Identity", bias=False)
    head = head_of(write(tmp_path, [POOLING, dense(WIDTH, 7), (norm, {"dimension": 7}), last]))
    assert [layer.activation for layer in head.layers] == ["tanh", None]
    assert head.layers[0].norm is not None
    assert (head.layers[1].norm, head.layers[1].linear.bias, head.normalize) == (None, None, False)
    linear = head.layers[0].linear
    assert linear.name == "2_Dense.linear"
    stored = load_file(tmp_path / "2_Dense" / "model.safetensors")
    assert linear.bias is not None
    np.testing.assert_array_equal(linear.weight.load(), stored["linear.weight"])
    np.testing.assert_array_equal(linear.bias.load(), stored["linear.bias"])


@pytest.mark.parametrize(
    ("path", "function"),
    [("torch.nn.ReLU", "relu"), ("torch.nn.modules.activation.GELU", "gelu_erf"), ("torch.nn.SiLU", "silu")],
)
def test_activations_of_dense(path: str, function: str, tmp_path: Path) -> None:
    assert head_of(write(tmp_path, [POOLING, dense(WIDTH, 4, path)])).layers[0].activation == function


def test_pooling_of_several_modes_widens_what_dense_reads(tmp_path: Path) -> None:
    several = (f"{MODELS}.Pooling", {"pooling_mode": ["cls", "mean"], "embedding_dimension": WIDTH})
    assert head_of(write(tmp_path, [several, dense(2 * WIDTH, 5)])).layers[0].linear.weight.shape == (5, 2 * WIDTH)


def test_classes_by_their_newer_names(tmp_path: Path) -> None:
    packages = ("sentence_transformers.sentence_transformer.modules.pooling", "sentence_transformers.base.modules")
    write(tmp_path, [(f"{packages[0]}.Pooling", {"embedding_dimension": WIDTH}), (f"{packages[1]}.Normalize", {})])
    assert head_of(tmp_path).normalize


def test_the_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, [POOLING], subfolder="0_Transformer", transformer={"max_seq_length": 12})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.directory == tmp_path / "0_Transformer"
    assert head_of(tmp_path).pooling == ("mean",)
    assert describe(checkpoint) == {**DEFAULTS, "max_seq_length": 12}
    assert {"0_Transformer/config.json", "0_Transformer/vocab.txt"} <= set(watched_names(checkpoint, tmp_path))


def test_how_texts_are_prepared(tmp_path: Path) -> None:
    settings = {
        "__version__": {"sentence_transformers": "6.2.0"},
        "prompts": {"query": "q: ", "document": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 16,
    }
    transformer = {"max_seq_length": 20, "do_lower_case": True, "model_args": {"trust_remote_code": True}}
    pooling = (POOLING[0], {**POOLING[1], "include_prompt": False})
    write(tmp_path, [pooling], transformer=transformer, settings=settings)
    assert describe(open_checkpoint(tmp_path)) == {
        "max_seq_length": 20,
        "do_lower_case": True,
        "prompts": {"query": "q: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 16,
        "include_prompt": False,
    }


def test_its_files_decide_the_library(tmp_path: Path) -> None:
    write(tmp_path, [POOLING, dense(WIDTH, 4), NORMALIZE], transformer={}, settings={})
    checkpoint = open_checkpoint(tmp_path)
    found = {str(file.relative_to(tmp_path)) for file in checkpoint.files}
    assert found == {
        "config.json",
        "model.safetensors",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }
    watched = watched_names(checkpoint, tmp_path)
    assert found <= set(watched)
    assert {"tokenizer.json", "vocab.txt", "3_Normalize/config.json"} <= set(watched)
    before = checkpoint.sha256()
    weights = tmp_path / "2_Dense" / "model.safetensors"
    save_file({name: 2 * values for name, values in load_file(weights).items()}, weights)
    assert open_checkpoint(tmp_path).sha256() != before


def test_a_cross_encoder_is_its_transformer(tmp_path: Path) -> None:
    kind, task = {"model_type": "CrossEncoder"}, {"transformer_task": "sequence-classification"}
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    write(tmp_path, [], settings=kind, transformer=task, config=config)
    graph = read_graph(open_checkpoint(tmp_path))
    assert (graph.task.name, graph.task.score) == ("text-classification", "sigmoid")
    assert describe(open_checkpoint(tmp_path)) == DEFAULTS
    change(tmp_path, "config_sentence_transformers.json", activation_fn="torch.nn.modules.linear.Identity")
    assert read_graph(open_checkpoint(tmp_path)).task.score == "none"
    change(tmp_path, "config_sentence_transformers.json", activation_fn="my.Function")
    assert "my.Function" in str(refused(tmp_path))
    write(tmp_path, [POOLING], settings=kind, config=config)
    assert "Transformer alone" in str(refused(tmp_path))
    write(tmp_path, [], settings=kind)
    assert "the head of no classifier" in str(refused(tmp_path))


def test_links_of_files_are_followed_and_links_of_folders_are_not(tmp_path: Path) -> None:
    """The hub's cache keeps files elsewhere, with links to them."""
    model = write(tmp_path / "model", [POOLING])
    config = model / "1_Pooling" / "config.json"
    config.rename(tmp_path / "blob")
    config.symlink_to(tmp_path / "blob")
    assert head_of(model).pooling == ("mean",)
    (model / "1_Pooling").rename(tmp_path / "elsewhere")
    (model / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the checkpoint" in str(refused(model))


@pytest.mark.parametrize("path", ["../other", "/etc", "a/b", "..", "1_Pooling/..", "C:\\x", "\0", "x" * 101])
def test_paths_that_leave_the_directory(path: str, tmp_path: Path) -> None:
    entries = json.loads((write(tmp_path) / "modules.json").read_text())
    entries[1]["path"] = path
    write_json(tmp_path / "modules.json", entries)
    error = refused(tmp_path)
    assert type(error) is CheckpointError
    assert "bare name of a directory" in str(error)


@pytest.mark.parametrize(
    ("modules", "parts"),
    [
        ([], ["no Pooling"]),
        ([POOLING, POOLING], ["one Pooling"]),
        ([dense(WIDTH, 4), POOLING], ["one Pooling", "Dense"]),
        ([POOLING, NORMALIZE, dense(WIDTH, 4)], ["nothing behind Normalize"]),
        ([POOLING, (f"{MODELS}.LayerNorm", {"dimension": WIDTH})], ["follow a Dense"]),
        ([(f"{MODELS}.LSTM", {}), POOLING], ["LSTM", "expected one of Pooling"]),
        ([(f"{MODELS}.WordWeights", {}), POOLING], ["WordWeights"]),
        ([(f"{MODELS}.CNN", {}), POOLING], ["CNN"]),
        ([("custom_module.Pooling", {})], ["custom_module.Pooling", "runs no code"]),
        ([("sentence_transformers.models.pooling.x.Pooling", {})], ["none of sentence-transformers"]),
        ([POOLING, dense(WIDTH, 4, "my.Activation")], ["activation_function", "my.Activation"]),
        ([POOLING, dense(WIDTH, 4, use_residual=True)], ["use_residual"]),
        ([POOLING, dense(WIDTH, 4, module_input_name="token_embeddings")], ["module_input_name"]),
        ([POOLING, dense(WIDTH + 1, 4)], ["in_features", "in front"]),
        ([POOLING, dense(WIDTH, 4, scale=2.0)], ["scale"]),
        ([(f"{MODELS}.Pooling", {"pooling_mode": "attention"})], ["pooling_mode", "weightedmean"]),
        ([(f"{MODELS}.Pooling", {"pooling_mode": []})], ["pooling_mode"]),
        ([(f"{MODELS}.Pooling", {"pooling_mode_cls_token": 1})], ["pooling_mode_cls_token", "true or false"]),
        ([(f"{MODELS}.Pooling", {"word_embedding_dimension": 7})], ["word_embedding_dimension"]),
        ([(f"{MODELS}.Pooling", {"include_prompt": "no"})], ["include_prompt"]),
    ],
)
def test_modules_that_kaoken_lacks(modules: list[Any], parts: list[str], tmp_path: Path) -> None:
    message = str(refused(write(tmp_path, modules)))
    for part in (str(tmp_path), *parts):
        assert part in message


@pytest.mark.parametrize(
    ("file", "fields", "part"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length"),
        ("sentence_bert_config.json", {"max_seq_length": "512"}, "max_seq_length"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "config_args"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "modality_config"),
        ("sentence_bert_config.json", {"other": 1}, "other"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts"),
        ("config_sentence_transformers.json", {"prompts": ["q: "]}, "prompts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name"),
        ("config_sentence_transformers.json", {"truncate_dim": -1}, "truncate_dim"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type"),
    ],
)
def test_settings_out_of_range(file: str, fields: dict[str, Any], part: str, tmp_path: Path) -> None:
    change(write(tmp_path), file, **fields)
    message = str(refused(tmp_path))
    assert part in message
    assert file in message


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[1]", '[{"type": 1, "path": ""}]', '[{"type": "a"}]', "[" * 5000, "null"]
)
def test_a_malformed_list_of_modules(content: str, tmp_path: Path) -> None:
    (write(tmp_path) / "modules.json").write_text(content)
    error = refused(tmp_path)
    assert type(error) is CheckpointError
    assert "modules.json" in str(error)


def test_tensors_of_a_dense(tmp_path: Path) -> None:
    """Missing, left over, of another shape, damaged, or pickled."""
    weights = write(tmp_path, [POOLING, dense(WIDTH, 4)]) / "2_Dense" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "other": tensors["linear.bias"]}, weights)
    assert isinstance(refused(tmp_path), UnsupportedModelError)
    save_file({"linear.weight": tensors["linear.weight"]}, weights)
    assert "lacks the tensor '2_Dense.linear.bias'" in str(refused(tmp_path))
    save_file({**tensors, "linear.bias": tensors["linear.bias"][:3]}, weights)
    assert "has shape [3]" in str(refused(tmp_path))
    weights.write_bytes(b"\0" * 16)
    assert "not a sound safetensors file" in str(refused(tmp_path))
    weights.unlink()
    weights.with_name("pytorch_model.bin").write_bytes(b"pickle")
    assert "SentenceTransformer(...).save" in str(refused(tmp_path))


def test_the_transformer_of_an_encoder_decoder(tmp_path: Path) -> None:
    assert "a t5 encoder-decoder" in str(refused(write_modules(t5.write(tmp_path, t5.TINY))))


def test_a_cross_encoder_is_no_language_model(tmp_path: Path) -> None:
    directory = write_modules(decoders.write(tmp_path, decoders.config_of("qwen3")), [])
    change(directory, "config_sentence_transformers.json", model_type="CrossEncoder")
    assert "the head of no classifier" in str(refused(directory))


def test_the_first_module_must_be_a_transformer(tmp_path: Path) -> None:
    entries = json.loads((write(tmp_path) / "modules.json").read_text())
    entries[0]["type"] = f"{MODELS}.StaticEmbedding"
    write_json(tmp_path / "modules.json", entries)
    assert "the first to be a Transformer" in str(refused(tmp_path))

"""What config.json means: every option is honoured or refused by name, and every tensor accounted for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from kaoken.codegen.errors import CheckpointError, KaokenError, UnsupportedModelError
from kaoken.codegen.families import check_config, fields, gpt2, read_graph
from kaoken.codegen.families.weights import Weights
from kaoken.codegen.graph import Graph
from kaoken.codegen.pipeline import config_of

from checkpoints import TINY, change_config, make_tensors, tensor_shapes, write_checkpoint
from configurations import CONFIGURATIONS

DEFAULTS = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def graph_of(config: Mapping[str, Any], generation: dict[str, Any] | None = None) -> Graph:
    """The graph of a config whose tensors are all as it says; nothing is written, so it may be of any size."""
    named = {gpt2.ALIASES.get(name, name): value for name, value in config.items()}
    shapes = tensor_shapes({**DEFAULTS, **named})
    file = Path("/checkpoint/model.safetensors")
    tensors = {name: TensorInfo("F32", shape, file, 0, 4 * math.prod(shape)) for name, shape in shapes.items()}
    return read_graph(Checkpoint(file.parent, dict(config), generation, tensors, (), (), None))


def graph_in(directory: Path) -> Graph:
    return read_graph(open_checkpoint(directory))


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a checkpoint's config.json calls for, but for a head that a tied one may have."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    expected = check_config(config, path)
    if config.get("tie_word_embeddings", True):
        expected.pop("lm_head.weight")
    return expected


def alike(graph: Graph) -> tuple[dict[str, Any], list[tuple[float, str]]]:
    """What two graphs of equal configs share."""
    return config_of(graph), [(block.attention.scale, block.mlp.activation) for block in graph.blocks]


def refused(kind: type[KaokenError], directory: Path, *parts: str) -> None:
    """The directory is refused with this type of error, whose message contains all of `parts`."""
    with pytest.raises(KaokenError) as caught:
        graph_in(directory)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sound checkpoint of TINY."""
    return write_checkpoint(tmp_path)


# Configs that must be understood


OPENAI: dict[str, Any] = {  # openai-community/gpt2 on the hub
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}

# What GPT2Config().to_dict() of transformers 4 adds, all at its default.
VERSION_4: dict[str, Any] = {
    "_attn_implementation_autoset": False,
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "n_inner": None,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "reorder_and_upcast_attn": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "sep_token_id": None,
    "suppress_tokens": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.57.6",
    "typical_p": 1.0,
    "use_bfloat16": False,
    "use_cache": True,
}

# What GPT2Config().to_dict() of transformers 5 adds.
VERSION_5: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "dtype": "float32",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "n_inner": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "problem_type": None,
    "reorder_and_upcast_attn": False,
    "return_dict": True,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
    "use_cache": True,
}

OLD_EXTRAS = {"n_special": 0, "predict_special_tokens": True, "output_past": True}

# name: (config, n_embd, n_layer, n_head)
HUB_CONFIGS: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "gpt2": (OPENAI, 768, 12, 12),
    "gpt2-medium": ({**OPENAI, **OLD_EXTRAS, "n_embd": 1024, "n_layer": 24, "n_head": 16}, 1024, 24, 16),
    "gpt2-large": ({**OPENAI, "n_embd": 1280, "n_layer": 36, "n_head": 20}, 1280, 36, 20),
    "gpt2-xl": ({**OPENAI, "n_embd": 1600, "n_layer": 48, "n_head": 25, "output_past": True}, 1600, 48, 25),
    "distilgpt2": ({**OPENAI, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "n_layer": 6}, 768, 6, 12),
    "DialoGPT": (
        {**OPENAI, **OLD_EXTRAS, "task_specific_params": {"conversational": {"max_length": 1000}}},
        768,
        12,
        12,
    ),
    "transformers-2": (  # which wrote no model_type
        {
            **{name: value for name, value in OPENAI.items() if name != "model_type"},
            "finetuning_task": None,
            "is_decoder": False,
            "num_labels": 2,
            "torchscript": False,
            "use_bfloat16": False,
        },
        768,
        12,
        12,
    ),
    "transformers-4": ({**OPENAI, **VERSION_4}, 768, 12, 12),
    "transformers-5": ({**OPENAI, **VERSION_5}, 768, 12, 12),
}


@pytest.mark.parametrize(("config", "n_embd", "n_layer", "n_head"), HUB_CONFIGS.values(), ids=HUB_CONFIGS.keys())
def test_configs_of_the_hub(config: dict[str, Any], n_embd: int, n_layer: int, n_head: int) -> None:
    graph = graph_of(config)
    assert (graph.width, len(graph.blocks), graph.vocabulary, graph.decoder.limit) == (
        n_embd,
        n_layer,
        50257,
        1024,
    )
    assert {(block.attention.heads, block.attention.head_dim, block.mlp.inner) for block in graph.blocks} == {
        (n_head, n_embd // n_head, 4 * n_embd)
    }
    assert graph.tied
    assert graph.special.eos == (50256,)


def test_defaults_are_those_of_transformers() -> None:
    graph = graph_of({"model_type": "gpt2"})
    assert alike(graph) == alike(graph_of(OPENAI))
    assert (graph.special.bos, graph.special.pad, graph.decoder.norm.epsilon) == (50256, None, 1e-5)
    assert config_of(graph)["activation_function"] == "gelu_new"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_has_the_tensors_that_the_family_expects(name: str, tmp_path: Path) -> None:
    config = CONFIGURATIONS[name].config
    graph = graph_in(write_checkpoint(tmp_path, config))
    assert shapes_of(tmp_path) == tensor_shapes(config)
    assert len(graph.blocks) == config["n_layer"]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu", "gelu_erf"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("tanh", "tanh"),
    ],
)
def test_activations(name: str, function: str) -> None:
    assert graph_of({**TINY, "activation_function": name}).blocks[0].mlp.activation == function


@pytest.mark.parametrize(
    ("scaled", "by_layer", "expected"),
    [
        (True, False, [0.25, 0.25, 0.25]),
        (False, False, [1, 1, 1]),
        (True, True, [0.25, 0.125, 0.25 / 3]),
        (False, True, [1, 0.5, 1 / 3]),
    ],
)
def test_attention_scale(scaled: bool, by_layer: bool, expected: list[float]) -> None:
    options = {"scale_attn_weights": scaled, "scale_attn_by_inverse_layer_idx": by_layer}
    graph = graph_of({**TINY, **options, "n_layer": 3})
    assert [block.attention.scale for block in graph.blocks] == expected


def test_reorder_and_upcast_changes_nothing_in_float32() -> None:
    assert alike(graph_of({**TINY, "reorder_and_upcast_attn": True})) == alike(graph_of(TINY))


@pytest.mark.parametrize("n_inner", [None, 128, 83])
def test_mlp_width(n_inner: int | None) -> None:
    assert graph_of({**TINY, "n_inner": n_inner}).blocks[0].mlp.inner == (n_inner or 128)


@pytest.mark.parametrize(
    "architectures", [None, [], ["GPT2Model"], ["GPT2DoubleHeadsModel"], "GPT2LMHeadModel"], ids=str
)
def test_architectures_with_a_language_model(architectures: object) -> None:
    assert alike(graph_of({**TINY, "architectures": architectures})) == alike(graph_of(TINY))


def test_family_neutral_names() -> None:
    own = {alias: TINY[name] for alias, name in gpt2.ALIASES.items()}
    kept = {name: value for name, value in TINY.items() if name not in gpt2.ALIASES.values()}
    assert alike(graph_of({**kept, **own})) == alike(graph_of({**TINY, **own})) == alike(graph_of(TINY))


def test_blocks_that_differ(tmp_path: Path) -> None:
    blocks = [{"n_head": 1, "head_dim": 7, "n_inner": 5}, {"n_head": 3, "head_dim": 16, "n_inner": 160}]
    graph = graph_in(write_checkpoint(tmp_path, {"kaoken_blocks": blocks, "n_head": 3}))
    assert config_of(graph)["blocks"] == [{**block, "n_kv_head": block["n_head"]} for block in blocks]
    assert [block.attention.scale for block in graph.blocks] == [1 / math.sqrt(7), 0.25]
    assert shapes_of(tmp_path)["h.1.attn.c_attn.weight"] == (32, 144)
    assert shapes_of(tmp_path)["h.0.attn.c_proj.weight"] == (7, 32)


def test_a_library_states_the_whole_of_the_model() -> None:
    graph = graph_of({**TINY, "eos_token_id": [3, 5], "bos_token_id": 1, "pad_token_id": 2, "n_inner": 83})
    block = {"n_head": 2, "n_kv_head": 2, "head_dim": 16, "n_inner": 83}
    assert json.loads(json.dumps(config_of(graph))) == {
        "vocab_size": 61,
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 2,
        "blocks": [block, block],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_ids": [3, 5],
        "bos_token_id": 1,
        "pad_token_id": 2,
        "kind": "decoder",
        "family": "gpt2",
        "decoder_start_token_id": None,
        "type_vocab_size": 0,
        "source_positions": 0,
        "source_layers": 0,
        "task": "text-generation",
        "labels": [],
        "function": "",
        "score_function": "",
        "has_head": True,
        "pools": False,
        "output_width": 61,
    }


# Special tokens


@pytest.mark.parametrize(
    ("config", "generation", "eos", "bos", "pad"),
    [
        ({}, None, (), None, None),  # 50256 is no token of a small vocabulary
        ({"vocab_size": 50257}, None, (50256,), 50256, None),
        ({"eos_token_id": 5, "bos_token_id": 4, "pad_token_id": 3}, None, (5,), 4, 3),
        ({"eos_token_id": [5, 7, 5, 99, -1]}, None, (5, 7), None, None),
        ({"eos_token_id": None, "vocab_size": 50257}, None, (), 50256, None),
        ({"eos_token_id": 5}, {"eos_token_id": 7}, (7,), None, None),
        ({"eos_token_id": 5}, {"eos_token_id": [8, 7]}, (8, 7), None, None),
        ({"eos_token_id": 5}, {"eos_token_id": None}, (), None, None),
        ({"eos_token_id": 5, "pad_token_id": 1}, {"bos_token_id": 3}, (), 3, None),
        ({"eos_token_id": 61, "bos_token_id": 60, "pad_token_id": -1}, None, (), 60, None),
        ({"eos_token_id": 5, "vocab_size": 50257}, {}, (), None, None),
    ],
)
def test_special_tokens(
    config: dict[str, Any], generation: dict[str, Any] | None, eos: tuple[int, ...], bos: int | None, pad: int | None
) -> None:
    """As transformers: generation_config.json, where there is one, is the only word."""
    special = graph_of({**TINY, **config}, generation).special
    assert (special.eos, special.bos, special.pad) == (eos, bos, pad)


@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["5", 5.0, True, {"a": 1}, [5, "6"], [[5]]], ids=repr)
def test_token_ids_that_are_none(tmp_path: Path, name: str, value: object) -> None:
    refused(CheckpointError, write_checkpoint(tmp_path, {name: value}), "config.json", name)
    write_checkpoint(tmp_path, generation={name: value})
    refused(CheckpointError, tmp_path, "generation_config.json", name)


# Configs that must be refused


def test_every_known_field_has_one_meaning() -> None:
    read = fields.Fields(TINY, "", gpt2.ALIASES)
    gpt2.read(read, fields.Fields({}, ""), Weights(None, gpt2.PREFIX, gpt2.IGNORED))
    groups = [read.read, fields.OFF, gpt2.OFF, fields.HARMLESS, gpt2.HARMLESS, gpt2.ALIASES.keys()]
    assert sum(map(len, groups)) == len(set().union(*groups))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layer_norm_eps", "'layer_norm_epsilon'"),
        ("n_heads", "'n_head'"),
        ("scale_attn_weight", "'scale_attn_weights'"),
        ("rotary_dim", ""),
        ("num_key_value_heads", "'num_attention_heads'"),
        ("\x1b[2J\n", ""),
        ("x" * 10_000, ""),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(tiny: Path, name: str, hint: str) -> None:
    refused(UnsupportedModelError, change_config(tiny, **{name: 1}), "config.json", repr(name)[:20], hint)


@pytest.mark.parametrize("name", sorted(fields.OFF | gpt2.OFF))
def test_what_would_change_the_model_must_be_off(tiny: Path, name: str) -> None:
    off: list[Any] = [None, False, {}]
    for value in off:
        assert graph_in(change_config(tiny, **{name: value}))
    on: list[Any] = [True, {"0": [1]}, "x", 1]
    for value in on:
        refused(UnsupportedModelError, change_config(tiny, **{name: value}), "config.json", name)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": "gptj"}, "'gptj'"),
        ({"model_type": "GPT2"}, "'GPT2'"),
        ({"model_type": ["gpt2"]}, "['gpt2']"),
        ({"model_type": ..., "architectures": ...}, "None"),
        ({"model_type": ..., "architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM'"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "'GPT2ForSequenceClassification'"),
        (
            {"architectures": ["GPT2LMHeadModel", "GPT2ForTokenClassification"]},
            "'GPT2ForTokenClassification'",
        ),
        ({"architectures": [{"a": 1}]}, "{'a': 1}"),
        ({"architectures": 7}, "7"),
    ],
)
def test_other_families_are_refused(tiny: Path, fields: dict[str, Any], part: str) -> None:
    refused(UnsupportedModelError, change_config(tiny, **fields), "config.json", part)


@pytest.mark.parametrize(
    "name",
    [
        "gelu_fast",
        "quick_gelu",
        "gelu_10",
        "GELU",
        "",
        None,
        3,
        ["gelu"],
        'relu"; system("x',
        "relu\n#include <x>",
        "é" * 999,
    ],
    ids=lambda name: repr(name)[:20],
)
def test_other_activations_are_refused(tiny: Path, name: object) -> None:
    refused(
        UnsupportedModelError,
        change_config(tiny, activation_function=name),
        "activation_function",
        "gelu_new",
    )


LIMITS = {
    "vocab_size": 1 << 24,
    "n_positions": 1 << 20,
    "n_embd": 1 << 16,
    "n_layer": 1 << 10,
    "n_head": 1 << 16,
    "n_inner": 1 << 20,
}
NO_COUNTS = [0, -1, 1.0, 32.5, True, "32", [32], {"a": 32}, 10**99]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [*NO_COUNTS, ...], ids=lambda value: repr(value)[:12])
def test_sizes_out_of_range(tiny: Path, name: str, value: object) -> None:
    value = LIMITS[name] + 1 if value is ... else value
    refused(CheckpointError, change_config(tiny, **{name: value}), "config.json", name, str(LIMITS[name]))


@pytest.mark.parametrize("name", sorted(LIMITS.keys() - {"n_inner"}))
def test_sizes_that_are_null(tiny: Path, name: str) -> None:
    refused(CheckpointError, change_config(tiny, **{name: None}), "config.json", name)


@pytest.mark.parametrize("value", [0.0, -1e-5, 1.0, 1e-46, 1, 0, True, "1e-5", None, [1e-5]], ids=repr)
def test_epsilon_out_of_range(tiny: Path, value: object) -> None:
    refused(CheckpointError, change_config(tiny, layer_norm_epsilon=value), "layer_norm_epsilon")


@pytest.mark.parametrize(
    "name",
    [
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "tie_word_embeddings",
    ],
)
@pytest.mark.parametrize("value", [None, 0, 1, "true", 1.0, []], ids=repr)
def test_switches_are_true_or_false(tiny: Path, name: str, value: object) -> None:
    refused(CheckpointError, change_config(tiny, **{name: value}), "config.json", name, "true or false")


def test_heads_must_divide_the_width(tiny: Path) -> None:
    refused(CheckpointError, change_config(tiny, n_head=5), "n_head is 5", "a divisor of n_embd, which is 32")


def test_two_names_of_one_field_must_agree(tiny: Path) -> None:
    refused(CheckpointError, change_config(tiny, hidden_size=64), "hidden_size is 64", "n_embd", "32")


BLOCK = {"n_head": 2, "head_dim": 16, "n_inner": 128}


@pytest.mark.parametrize(
    ("blocks", "part"),
    [
        (None, "a list of 2 objects"),
        ({}, "a list of 2 objects"),
        ([BLOCK], "a list of 2 objects"),
        ([BLOCK] * 3, "a list of 2 objects"),
        ([BLOCK, 7], "n_head, head_dim, n_inner"),
        ([BLOCK, {"n_head": 2, "head_dim": 16}], "n_head, head_dim, n_inner"),
        ([BLOCK, {**BLOCK, "rotary": 1}], "n_head, head_dim, n_inner"),
        ([BLOCK, {**BLOCK, "n_head": 0}], "kaoken_blocks[1]: n_head is 0"),
        ([BLOCK, {**BLOCK, "head_dim": 16.0}], "kaoken_blocks[1]: head_dim is 16.0"),
        ([{**BLOCK, "n_inner": None}, BLOCK], "kaoken_blocks[0]: n_inner is None"),
        ([{**BLOCK, "n_inner": 1 << 21}, BLOCK], "kaoken_blocks[0]: n_inner"),
        ([BLOCK, {**BLOCK, "n_head": 3}], "'h.1.attn.c_attn.weight' has shape [32, 96]; expected [32, 144]"),
        ([BLOCK, {**BLOCK, "n_inner": 127}], "'h.1.mlp.c_fc.weight' has shape [32, 128]; expected [32, 127]"),
    ],
)
def test_blocks_that_make_no_sense(tiny: Path, blocks: object, part: str) -> None:
    refused(CheckpointError, change_config(tiny, kaoken_blocks=blocks), part)


# Tensors


@pytest.mark.parametrize("name", sorted(tensor_shapes(TINY)))
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = {key: value for key, value in make_tensors(TINY).items() if key != name}
    refused(CheckpointError, write_checkpoint(tmp_path, tensors=tensors), repr(name), "1 of 28 are missing")


@pytest.mark.parametrize("name", sorted(tensor_shapes(TINY)))
@pytest.mark.parametrize("change", ["longer", "deeper", "transposed"])
def test_a_wrong_shape_is_named(tmp_path: Path, name: str, change: str) -> None:
    tensors = make_tensors(TINY)
    shape = tensors[name].shape
    wrong = {"longer": (shape[0] + 1, *shape[1:]), "deeper": (1, *shape), "transposed": shape[::-1]}[change]
    if wrong == shape:
        wrong = (*shape[:-1], shape[-1] - 1)
    tensors[name] = np.ones(wrong, np.float32)
    message = f"{name!r} has shape {list(wrong)}; expected {list(shape)}"
    refused(CheckpointError, write_checkpoint(tmp_path, tensors=tensors), "model.safetensors", message)


@pytest.mark.parametrize(
    "name",
    [
        "h.2.ln_1.weight",
        "h.0.crossattention.c_attn.weight",
        "h.0.ln_cross_attn.weight",
        "h.0.attn.c_attn.lora_A.weight",
        "h.0.attn.q_attn.weight",
        "h.00.ln_1.weight",
        "h.0.mlp.gate.weight",
        "lm_head.bias",
        "score.weight",
        "v_head.summary.bias",
        "base_model.model.wte.weight",
        "_orig_mod.transformer.wte.weight",
        "wte.weight.absmax",
        "model.layers.0.weight",
        "\x1b[2J",
    ],
)
def test_a_tensor_too_many_is_named(tmp_path: Path, name: str) -> None:
    tensors = make_tensors(TINY) | {name: np.ones(3, np.float32)}
    refused(UnsupportedModelError, write_checkpoint(tmp_path, tensors=tensors, prefix=False), repr(name)[1:-1])


def test_the_other_of_two_heads_is_left_out(tmp_path: Path) -> None:
    head = {"multiple_choice_head.summary.weight": np.ones((1, 32), np.float32)}
    assert graph_in(write_checkpoint(tmp_path, tensors=make_tensors(TINY) | head, prefix=False))


def test_more_layers_in_the_file_than_in_the_config(tiny: Path) -> None:
    refused(UnsupportedModelError, change_config(tiny, n_layer=1), "'h.1.", "a GPT-2 of 1 layers", "number of layers")


def test_a_vocabulary_that_does_not_match(tiny: Path) -> None:
    refused(
        CheckpointError,
        change_config(tiny, vocab_size=60),
        "'wte.weight' has shape [61, 32]; expected [60, 32]",
    )


def test_an_untied_head_is_needed(tiny: Path) -> None:
    refused(CheckpointError, change_config(tiny, tie_word_embeddings=False), "'lm_head.weight'")


@pytest.mark.parametrize("tie", [..., True, False])
@pytest.mark.parametrize("last", [0.0, 1.0], ids=["equal", "different"])
def test_a_head_beside_the_embedding(tmp_path: Path, tie: object, last: float) -> None:
    """As in transformers 5: a tied model whose checkpoint has a head of its own keeps it."""
    tensors = make_tensors(TINY)
    head = tensors["wte.weight"].copy()
    head[-1, -1] += last
    directory = write_checkpoint(tmp_path, {"tie_word_embeddings": tie}, tensors=tensors | {"lm_head.weight": head})
    assert graph_in(directory).tied is (tie is not False and last == 0.0)


def test_a_tied_head_of_another_shape(tmp_path: Path) -> None:
    tensors = make_tensors(TINY) | {"lm_head.weight": np.ones((60, 32), np.float32)}
    refused(
        CheckpointError,
        write_checkpoint(tmp_path, tensors=tensors),
        "'lm_head.weight'",
        "[60, 32]",
        "[61, 32]",
    )


@pytest.mark.parametrize("shape", [(), (0,), (61, 0)], ids=str)
def test_a_head_and_a_table_without_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nothing = {"wte.weight": np.ones(shape, np.float32), "lm_head.weight": np.zeros(shape, np.float32)}
    refused(
        CheckpointError, write_checkpoint(tmp_path, tensors=make_tensors(TINY) | nothing), "'wte.weight'", "[61, 32]"
    )


def test_a_tied_head_stored_alone(tmp_path: Path) -> None:
    tensors = make_tensors(TINY)
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    graph = graph_in(write_checkpoint(tmp_path, tensors=tensors))
    assert alike(graph) == alike(graph_of(TINY))
    np.testing.assert_array_equal(graph.head.output.weight.load(), tensors["lm_head.weight"])

"""Families of decoders: logits of baked ones against transformers and their graphs, their bits, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph

import kaoken
from bits import random_splits, require_decode_equals_prefill, require_same_bits
from conftest import RecordError, some_only_in_ci
from decoders import (
    CONFIGURATIONS,
    COUNT,
    FAMILY_OF,
    FIRST,
    LIMITED,
    POSITIONS,
    YARN,
    config_of,
    ids_of,
    live_logits,
    load_live,
    read_reference,
    write,
)
from hostile import require_refused, require_sound
from native_build import bake_together
from reference import LIMIT, relative_error

INT8 = (
    0.06  # the largest difference from float64 on such random weights, of max(1, largest logit): about twice the seen
)

families = pytest.mark.parametrize("family", CONFIGURATIONS)
names = pytest.mark.parametrize("name", FAMILY_OF)
first = pytest.mark.parametrize("name", FIRST)
baked = pytest.mark.parametrize("name", some_only_in_ci(FAMILY_OF, {*FAMILY_OF} - {*FIRST}))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("decoders")
    return {name: write(root / name, config_of(name)) for name in FAMILY_OF}


@pytest.fixture(scope="module")
def libraries(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By configuration, and by configuration with `_int8` behind: those of the selected tests, baked together."""
    users = [item for item in request.session.items if "libraries" in getattr(item, "fixturenames", ())]
    wanted = {item.callspec.params.get("name") for item in users if hasattr(item, "callspec")}
    typed = {item.callspec.params["name"] for item in users if "int8" in item.name}
    models = {name: (directories[name], "ISA native") for name in FAMILY_OF if name in wanted}
    models |= {f"{name}_int8": (directories[name], "ISA native DTYPE int8") for name in FAMILY_OF if name in typed}
    return bake_together(tmp_path_factory.mktemp("together"), models)


@names
def test_rewrites_change_nothing(name: str, directories: dict[str, Path]) -> None:
    graph, ids = read_graph(open_checkpoint(directories[name])), ids_of(config_of(name))[0]
    np.testing.assert_allclose(evaluate(rewrites.run(graph), ids), evaluate(graph, ids), rtol=0, atol=1e-10)


@first
def test_logits_are_the_references(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    logits = kaoken.load(libraries[name]).logits(ids_of(config_of(name)))[0, list(POSITIONS)]
    error = relative_error(read_reference(directories[name], name), logits)
    record_error("logits of decoders against what transformers gave", error)
    assert error < LIMIT


@baked
def test_logits_are_those_of_the_graph(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    graph, ids = read_graph(open_checkpoint(directories[name])), ids_of(config_of(name))
    error = relative_error(evaluate(graph, ids[0])[None], kaoken.load(libraries[name]).logits(ids))
    record_error("logits of decoders against their graphs in float64", error)
    assert error < LIMIT


@pytest.mark.parametrize("name", some_only_in_ci(FAMILY_OF, {*FAMILY_OF} - {FIRST[0]}))
def test_logits_in_int8(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    graph, ids = read_graph(open_checkpoint(directories[name])), ids_of(config_of(name))
    error = relative_error(evaluate(graph, ids[0])[None], kaoken.load(libraries[f"{name}_int8"]).logits(ids))
    record_error("logits of decoders in int8 against their graphs in float64", error)
    assert error < INT8


@baked
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_on_nothing_else(name: str, threads: int, libraries: dict[str, Path]) -> None:
    """Threads that share the heads evenly or not, batches, and how a prompt is split."""
    ids = ids_of(config_of(name), batch=3)
    model, alone = kaoken.load(libraries[name], threads=threads), kaoken.load(libraries[name], threads=1)
    require_same_bits(model.logits(ids), alone.logits(ids))
    require_same_bits(model.logits(ids[1:2]), alone.logits(ids)[1:2])
    for splits in (range(1, COUNT), random_splits(COUNT, threads)):
        require_decode_equals_prefill(model, ids, splits)
    require_decode_equals_prefill(model, ids[:1], range(1, COUNT))  # rows that are alone in their passes


@pytest.mark.ci
@names
def test_transformers_agrees(
    name: str, libraries: dict[str, Path], directories: dict[str, Path], record_error: RecordError
) -> None:
    """On logits, and on 200 greedy tokens up to a step whose two best logits are as good as equal."""
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs, model, ids = load_live(directories[name]), kaoken.load(libraries[name]), ids_of(config_of(name), batch=2)
    error = relative_error(live_logits(theirs, ids), model.logits(ids))
    record_error("logits of decoders against transformers", error)
    assert error < LIMIT
    prompt = ids[:1, :8]
    expected = theirs.generate(torch.from_numpy(prompt), max_new_tokens=200, do_sample=False, eos_token_id=None)
    found = model.generate(prompt, max_new_tokens=200, eos_token_id=None)
    for step, (token, wanted) in enumerate(zip(found[0], expected[0].tolist(), strict=True)):
        if token != wanted:
            best = np.sort(model.logits(found[:, :step])[0, -1])[-2:]
            assert best[1] - best[0] < 1e-3, f"step {step}: token {token}, expected {wanted}; logits {best}"
            print(f"{name}: the two best logits of step {step} are {best}")
            break


@pytest.mark.ci
def test_the_scale_of_embeddings_that_are_stored_in_bfloat16(tmp_path: Path) -> None:
    """A Gemma 3 in float32 has the scale of float32: bfloat16's, 6.9375 for 6.9282, would show."""
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = config_of("gemma3_text")
    load_live(write(tmp_path / "written", config)).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    assert '"bfloat16"' in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    graph, theirs, ids = read_graph(open_checkpoint(tmp_path / "saved")), load_live(tmp_path / "saved"), ids_of(config)
    expected = live_logits(theirs, ids)
    assert relative_error(evaluate(graph, ids[0])[None], expected) < LIMIT
    embeddings = theirs.model.embed_tokens
    embeddings.embed_scale.copy_(embeddings.embed_scale.to(torch.bfloat16))
    assert relative_error(live_logits(theirs, ids), expected) > 10 * LIMIT


@pytest.mark.ci
@names
def test_what_transformers_saves_is_read(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    """Every field and every tensor."""
    pytest.importorskip("transformers")
    load_live(directories[name]).save_pretrained(tmp_path)
    ids = ids_of(config_of(name))[0]
    expected, found = (evaluate(read_graph(open_checkpoint(each)), ids) for each in (directories[name], tmp_path))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.ci
@pytest.mark.parametrize("name", FIRST)
def test_the_stored_reference_is_what_transformers_gives(name: str, directories: dict[str, Path]) -> None:
    pytest.importorskip("transformers")
    logits = live_logits(load_live(directories[name]), ids_of(config_of(name)))[0, list(POSITIONS)]
    assert relative_error(read_reference(directories[name], name), logits) < 2e-5


def test_what_the_graphs_say_of_themselves(directories: dict[str, Path]) -> None:
    graphs = {name: read_graph(open_checkpoint(directories[name])) for name in FAMILY_OF}
    windows = {name: [block.attention.window for block in graph.blocks] for name, graph in graphs.items()}
    assert windows["mistral"] == [21, 21]
    assert windows["mistral_without_window"] == windows["qwen2"] == [None, None]
    assert windows["qwen2_windows"] == [None, 40]
    assert windows["qwen2_alternating"] == [70, None, 70]
    assert windows["smollm3_windows"] == [None, 66]
    turned = {name: [block.attention.rotary is not None for block in graph.blocks] for name, graph in graphs.items()}
    assert turned["smollm3"] == [True, True, True, False]
    assert turned["smollm3_one_with_positions"] == [False, True]
    assert windows["gpt_neo"] == [None, 30]
    assert windows["gpt_neo_wide_windows"] == [70, 70, None]
    assert windows["gpt_neo_untied"] == [None, None]  # a window of all positions is none
    assert graphs["granite"].tied
    assert not graphs["opt_projected"].tied
    assert not graphs["granite_untied"].tied


ALTERNATE = ["sliding_attention", "full_attention"]

# By family, what of its first configuration is changed, and the error.
REFUSED: dict[str, dict[str, tuple[type[Exception], dict[str, Any], str]]] = {
    "mistral": {
        "no window": (CheckpointError, {"sliding_window": 0}, "sliding_window is 0; expected a whole number"),
        "a huge window": (CheckpointError, {"sliding_window": 1 << 40}, "sliding_window is 1099511627776"),
        "heads": (CheckpointError, {"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor.* 6"),
        "kinds of blocks": (UnsupportedModelError, {"layer_types": []}, "'layer_types'"),
        "a bias": (UnsupportedModelError, {"attention_bias": True}, "'attention_bias'"),
        "a block too many": (CheckpointError, {"num_hidden_layers": 3}, "lacks the tensor 'layers.2"),
        "quantized": (
            UnsupportedModelError,
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "quantized by 'awq'.*dtype=int8 or int4.*dequantize",
        ),
    },
    "qwen2": {
        "kinds of other blocks": (CheckpointError, {"layer_types": ["full_attention"]}, "expected a list of 2"),
        "a kind of block": (CheckpointError, {"layer_types": ["full_attention", "chunked"]}, "layer_types is"),
        "windows that are off": (CheckpointError, {"layer_types": ALTERNATE}, "no sliding_attention where"),
        "the first window": (
            CheckpointError,
            {"use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers is -1",
        ),
        "positions of images": (UnsupportedModelError, {"use_mrope": True}, "use_mrope is True"),
        "no biases": (UnsupportedModelError, {"attention_bias": False}, "'attention_bias'"),
        "another scaling": (UnsupportedModelError, {"rope_scaling": {"type": "mrope"}}, "'mrope'; expected default"),
    },
    "qwen3": {
        "kinds of other blocks": (CheckpointError, {"layer_types": ["full_attention"]}, "expected a list of 2"),
        "odd heads": (CheckpointError, {"head_dim": 19}, "head_dim is 19; expected an even number"),
        "no heads": (CheckpointError, {"head_dim": 0}, "head_dim is 0; expected a whole number"),
        "heads of another width": (CheckpointError, {"head_dim": 22}, "has shape"),
        "experts": (UnsupportedModelError, {"num_experts": 4}, "'num_experts'"),
    },
    "smollm3": {
        "positions of too few": (CheckpointError, {"no_rope_layers": [1, 1]}, "a list with 0 or 1 for each of 4"),
        "positions of some": (CheckpointError, {"no_rope_layers": [1, 1, 0.5, 1]}, "no_rope_layers is"),
        "no interval": (CheckpointError, {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        "a window": (CheckpointError, {"use_sliding_window": True, "sliding_window": -1}, "sliding_window is -1"),
    },
    "granite": {
        "a constant": (CheckpointError, {"logits_scaling": 0}, "logits_scaling is 0; expected a number from 1e-06"),
        "a constant of words": (CheckpointError, {"embedding_multiplier": "much"}, "embedding_multiplier is 'much'"),
        "a huge constant": (CheckpointError, {"residual_multiplier": 1e300}, "residual_multiplier is 1e\\+300"),
        "experts": (UnsupportedModelError, {"num_local_experts": 4}, "'num_local_experts'"),
    },
    "gpt_neo": {
        "blocks of three": (CheckpointError, {"attention_types": [[["global"], 3]]}, "for 2 layers together"),
        "blocks by default": (CheckpointError, {"attention_types": None}, "attention_types is None; expected lists"),
        "many blocks": (CheckpointError, {"attention_types": [[["global"], 1 << 60]]}, "attention_types is"),
        "other blocks": (CheckpointError, {"attention_types": [[["global", "axial"], 1]]}, "attention_types is"),
        "no lists": (CheckpointError, {"attention_types": ["global", "local"]}, "attention_types is"),
        "two lists": (
            CheckpointError,
            {"attention_layers": ["local", "global"]},
            "attention_layers is .*; expected what attention_types says",
        ),
        "heads": (CheckpointError, {"num_heads": 5}, "num_heads is 5; expected a divisor"),
        "a window": (CheckpointError, {"window_size": 0}, "window_size is 0"),
        "rotary positions": (UnsupportedModelError, {"rotary_dim": 4}, "'rotary_dim'"),
    },
    "gpt_neox": {
        "heads": (CheckpointError, {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor"),
        "three dimensions that turn": (CheckpointError, {"rotary_pct": 0.375}, "partial_rotary_factor is 0.375"),
        "nothing that turns": (CheckpointError, {"rotary_pct": 0.0}, "partial_rotary_factor is 0.0"),
        "two shares": (CheckpointError, {"partial_rotary_factor": 0.5}, "rotary_pct is 0.25, but partial_rotary"),
        "no word": (CheckpointError, {"use_parallel_residual": 1}, "use_parallel_residual is 1; expected true"),
        "a part that is scaled": (UnsupportedModelError, {"rope_scaling": YARN}, "'yarn' multiplies the 2 dimensions"),
    },
    "gemma3_text": {
        "capped scores": (
            UnsupportedModelError,
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0, which changes",
        ),
        "capped logits": (UnsupportedModelError, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        "both ways": (UnsupportedModelError, {"use_bidirectional_attention": True}, "use_bidirectional_attention is"),
        "no scale": (CheckpointError, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; expected a number"),
        "no pattern": (CheckpointError, {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        "no window": (CheckpointError, {"sliding_window": None}, "no sliding_attention where sliding_window is off"),
        "positions of no kind": (UnsupportedModelError, {"rope_parameters": {"rope_theta": 1e4}}, "plain Gemma 3"),
        "odd heads": (CheckpointError, {"head_dim": 23}, "head_dim is 23; expected an even number"),
    },
    "olmo2": {
        "clipped projections": (UnsupportedModelError, {"clip_qkv": 8.0}, "'clip_qkv'"),
        "windows": (UnsupportedModelError, {"sliding_window": 100}, "'sliding_window'"),
        "heads": (CheckpointError, {"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor.* 6"),
        "norms of each head": (CheckpointError, {"num_attention_heads": 3, "head_dim": 8}, "has shape"),
        "biases": (CheckpointError, {"attention_bias": True}, "lacks the tensor 'layers.0.self_attn.q_proj.bias'"),
    },
    "opt": {
        "no last norm": (UnsupportedModelError, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
        "no projections": (
            CheckpointError,
            {"word_embed_proj_dim": 20},
            "lacks the tensor 'decoder.project_in.weight'",
        ),
        "heads": (CheckpointError, {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor"),
        "an activation": (UnsupportedModelError, {"activation_function": "relu6"}, "activation_function is 'relu6'"),
        "positions": (CheckpointError, {"max_position_embeddings": LIMITED + 2}, "embed_positions"),
    },
    "bloom": {
        "heads": (CheckpointError, {"n_head": 5}, "n_head is 5; expected a divisor"),
        "two widths": (CheckpointError, {"n_embed": 64}, "n_embed is 64, but hidden_size"),
        "huge positions": (CheckpointError, {"seq_length": 1 << 40}, "seq_length is 1099511627776"),
        "an activation": (UnsupportedModelError, {"activation_function": "relu"}, "'activation_function'"),
    },
}
CASES = [(family, case) for family, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_what_is_refused(family: str, case: str, tmp_path: Path) -> None:
    config = config_of(next(iter(CONFIGURATIONS[family])))
    require_refused(write(tmp_path, config), config, *REFUSED[family][case])


@families
def test_hostile_tensors(family: str, tmp_path: Path) -> None:
    config = config_of(next(iter(CONFIGURATIONS[family])))
    graph = read_graph(open_checkpoint(write(tmp_path, config, prefixed=False)))
    for tensor in (graph.blocks[1].attention.query.weight, graph.blocks[0].mlp.down.weight):
        require_sound(write(tmp_path, config, prefixed=False), tensor.sources[0])

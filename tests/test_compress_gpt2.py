"""The torch model of checkpoints whose blocks differ, and cutting parts out of it, against the NumPy oracle.

Skipped without torch and transformers, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.families import read_graph
from kaoken.codegen.pipeline import config_of

import make_references as live
import reference
from checkpoints import change_config, write_checkpoint
from configurations import CONFIGURATIONS
from conftest import Checkpoints
from kaoken.compress import gpt2, load_model
from kaoken.errors import CheckpointError, InputError, KaokenError, UnsupportedModelError
from oracle import Oracle, attention, layer_norm, linear, open_oracle

pytestmark = pytest.mark.ci

IRREGULAR = ("pruned", "irregular")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_the_oracles_and_survive_saving(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids = CONFIGURATIONS[name].ids()
    model = load_model(checkpoints(name))
    actual = live.logits(model, ids)
    assert reference.relative_error(open_oracle(checkpoints(name)).logits(ids), actual) < reference.LIMIT
    saved = gpt2.save(model, tmp_path / "saved", tokenizer_from=checkpoints(name))
    np.testing.assert_array_equal(live.logits(load_model(saved), ids), actual)
    np.testing.assert_array_equal(live.logits(gpt2.GPT2LMHeadModel.from_pretrained(saved), ids), actual)
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert ("kaoken_blocks" in config) == (name in IRREGULAR)
    before, after = (config_of(read_graph(open_checkpoint(path))) for path in (checkpoints(name), saved))
    assert before == after
    if name not in IRREGULAR:
        np.testing.assert_array_equal(
            live.logits(live.load(saved), ids), live.logits(live.load(checkpoints(name)), ids)
        )


def test_save_pretrained_writes_what_kaoken_reads(checkpoints: Checkpoints, tmp_path: Path) -> None:
    load_model(checkpoints("irregular")).save_pretrained(tmp_path)
    assert config_of(read_graph(open_checkpoint(tmp_path))) == config_of(
        read_graph(open_checkpoint(checkpoints("irregular")))
    )


@pytest.mark.parametrize("name", IRREGULAR)
def test_ways_of_running_agree(name: str, checkpoints: Checkpoints) -> None:
    model = load_model(checkpoints(name))
    ids = torch.from_numpy(CONFIGURATIONS[name].ids())[:, :20]
    with torch.no_grad():
        whole = model(ids).logits
        prompt = model(ids[:, :7], use_cache=True)
        rest = model(ids[:, 7:], past_key_values=prompt.past_key_values).logits
        torch.testing.assert_close(torch.cat([prompt.logits, rest], dim=1), whole, rtol=0, atol=1e-5)
        model.set_attn_implementation("eager")
        eager = model(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(eager.logits, whole, rtol=0, atol=1e-5)
    heads = [n_head for n_head, _, _ in gpt2.blocks(model)]
    assert [tuple(each.shape) for each in eager.attentions] == [(2, n_head, 20, 20) for n_head in heads]
    assert [tuple(each.shape) for each in eager.hidden_states] == [(2, 20, model.config.n_embd)] * (len(heads) + 1)
    tokens = model.generate(ids[:1, :5], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    assert tokens[5:].tolist() == open_oracle(checkpoints(name)).greedy(ids[0, :5].tolist(), 8).tokens


def test_gradient_checkpointing_gives_the_same_gradients(checkpoints: Checkpoints) -> None:
    ids = torch.from_numpy(CONFIGURATIONS["irregular"].ids())
    gradients = []
    for checkpointing in (False, True):
        config = load_model(checkpoints("irregular")).config
        config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
        torch.manual_seed(0)
        model = gpt2.GPT2LMHeadModel(config).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_new_model_of_unlike_blocks_begins_as_gpt2_does(checkpoints: Checkpoints) -> None:
    torch.manual_seed(0)
    model = gpt2.GPT2LMHeadModel(load_model(checkpoints("irregular")).config)
    for block in model.transformer.h:
        assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / np.sqrt(2 * 4), rel=0.2)
        assert not block.attn.c_attn.bias.any()


def test_the_generation_config_and_the_tokenizer_are_kept(tmp_path: Path) -> None:
    generation = {"eos_token_id": [3, 5], "temperature": 0.7, "do_sample": True, "top_k": 4}
    source = write_checkpoint(tmp_path / "source", {"vocab_size": 300}, generation=generation, tokenizer=True)
    saved = gpt2.save(load_model(source), tmp_path / "saved", tokenizer_from=source)
    kept = json.loads((saved / "generation_config.json").read_text())
    assert {name: kept[name] for name in generation} == generation
    assert (saved / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_saving_replaces_a_checkpoint_and_nothing_else(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_model(checkpoints("plain"))
    target = write_checkpoint(tmp_path / "target", {"n_layer": 1})
    gpt2.save(model, target)
    assert len(gpt2.blocks(load_model(target))) == 2
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not just a checkpoint"):
        gpt2.save(model, target)
    with pytest.raises(InputError, match=r"is a file"):
        gpt2.save(model, target / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["target"], "nothing temporary is left"


def test_what_cannot_be_written_leaves_the_old_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    target = write_checkpoint(tmp_path / "target", {"n_layer": 1})
    monkeypatch.setattr(gpt2, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        gpt2.save(load_model(checkpoints("plain")), target)
    assert len(gpt2.blocks(load_model(target))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"kaoken_blocks": [{"n_head": 1, "head_dim": 8, "n_inner": 4}]}, CheckpointError, "kaoken_blocks"),
        ({"n_inner": 7}, CheckpointError, "has shape"),
        ({"attn_pdrop": "often"}, CheckpointError, "attn_pdrop is 'often'"),
        ({"rope_theta": 1.0}, UnsupportedModelError, "rope_theta"),
    ],
)
def test_unsound_checkpoints(fields: dict[str, Any], error: type[KaokenError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load_model(change_config(write_checkpoint(tmp_path / "unsound"), **fields))


def test_missing_torch_is_explained(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kaoken.compress.gpt2")
    monkeypatch.delattr("kaoken.compress.gpt2")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(KaokenError, match=r'pip install "kaoken\[distill\]"'):
        load_model(checkpoints("plain"))


# Cutting

CUT = gpt2.Cut(
    blocks=(
        gpt2.BlockCut(0, heads=(1,), dims=(tuple(range(16)),), neurons=tuple(range(3, 100, 7))),
        gpt2.BlockCut(2, heads=(0, 1), dims=((0, 2, 5, 6), (1, 2, 3, 15)), neurons=tuple(range(40))),
    ),
    channels=(0, 1, 3, 4, 7, 8, 11, 12, 15, 20, 21, 22, 28, 29, 30, 31),
    positions=20,
)


def sliced_logits(oracle: Oracle, cut: gpt2.Cut, ids: Any) -> Any:
    """What a cut means, head by head on slices of the whole model's float64 tensors, with the old scale of scores."""
    c, t = list(cut.channels), oracle.tensors
    x = t["wte.weight"][:, c][ids] + t["wpe.weight"][:, c][: ids.shape[1]]
    for kept in cut.blocks:
        old = oracle.blocks[kept.layer]
        w, width = old.tensors, old.n_head * old.head_dim

        def norm(x: Any, name: str, w: Any = w, epsilon: float = old.epsilon) -> Any:
            return layer_norm(x, w[f"{name}.weight"][c], w[f"{name}.bias"][c], epsilon)

        y = norm(x, "ln_1")
        x = x + w["attn.c_proj.bias"][c]
        for head, dims in zip(kept.heads, kept.dims, strict=True):
            columns = head * old.head_dim + np.array(dims)
            query, key, value = (
                linear(y, w["attn.c_attn.weight"][c][:, part + columns], w["attn.c_attn.bias"][part + columns])
                for part in (0, width, 2 * width)
            )
            x = x + attention(query, key, value, old.scale) @ w["attn.c_proj.weight"][columns][:, c]
        n = list(kept.neurons)
        y = old.activation(linear(norm(x, "ln_2"), w["mlp.c_fc.weight"][c][:, n], w["mlp.c_fc.bias"][n]))
        x = x + linear(y, w["mlp.c_proj.weight"][n][:, c], w["mlp.c_proj.bias"][c])
    x = layer_norm(x, t["ln_f.weight"][c], t["ln_f.bias"][c], oracle.config["layer_norm_epsilon"])
    return x @ t.get("lm_head.weight", t["wte.weight"])[:, c].T


@pytest.mark.parametrize(
    "fields",
    [{}, {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}, {"tie_word_embeddings": False}],
)
def test_a_cut_is_what_slicing_gives(fields: dict[str, Any], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", {"n_layer": 3} | fields)
    ids = CONFIGURATIONS["plain"].ids()[:, :20]
    expected = sliced_logits(open_oracle(source), CUT, ids)
    carved = gpt2.carve(load_model(source), CUT)
    assert gpt2.blocks(carved) == [(1, 16, 14), (2, 4, 40)]
    assert reference.relative_error(expected, live.logits(carved, ids)) < reference.LIMIT
    saved = gpt2.save(carved, tmp_path / "saved")
    assert reference.relative_error(expected, open_oracle(saved).logits(ids)) < reference.LIMIT
    assert gpt2.parameters(carved) == sum(tensor.size for tensor in open_oracle(saved).tensors.values())


def test_the_whole_cut_is_the_same_model(checkpoints: Checkpoints) -> None:
    model = load_model(checkpoints("irregular"))
    copy = gpt2.carve(model, gpt2.whole(model))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), copy.state_dict().values(), strict=True))
    assert copy.transformer.wte.weight.data_ptr() != model.transformer.wte.weight.data_ptr()


def test_a_regular_cut_needs_no_loader_of_kaokens(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = load_model(checkpoints("plain"))
    half = gpt2.BlockCut(1, (0,), (tuple(range(16)),), tuple(range(64)))
    saved = gpt2.save(gpt2.carve(model, gpt2.Cut((half,), tuple(range(16)), 32)), tmp_path / "saved")
    ids = CONFIGURATIONS["plain"].ids()
    assert reference.relative_error(live.logits(live.load(saved), ids), live.logits(load_model(saved), ids)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "layers"),
        ({"channels": ()}, "channels"),
        ({"channels": (1, 0)}, "channels"),
        ({"channels": (0, 99)}, "channels"),
        ({"positions": 33}, "33 positions; expected 1 to 32"),
        ({"blocks": (gpt2.BlockCut(0, (2,), ((0,),), (0,)),)}, "heads of layer 0"),
        ({"blocks": (gpt2.BlockCut(0, (0, 1), ((0,), (0, 1)), (0,)),)}, "dims"),
        ({"blocks": (gpt2.BlockCut(0, (0,), ((0,),), ()),)}, "neurons of layer 0"),
    ],
)
def test_unsound_cuts(changes: dict[str, Any], message: str, checkpoints: Checkpoints) -> None:
    model = load_model(checkpoints("plain"))
    fields = {"blocks": gpt2.whole(model).blocks, "channels": (0, 1), "positions": 32} | changes
    with pytest.raises(InputError, match=message):
        gpt2.carve(model, gpt2.Cut(**fields))

"""Students by every way: what they learn from, how they begin, chains, pruning, and what is refused.

Skipped without torch and transformers, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoints import TOKENIZER
from conftest import Bake
from kaoken.compress import gpt2, load_model, models
from kaoken.compress.distillation import Smaller, Way, distill, prune
from kaoken.compress.losses import Objective
from kaoken.compress.training import Schedule
from kaoken.errors import CheckpointError, InputError
from toys import TOY

pytestmark = pytest.mark.ci

SCHEDULE = Schedule(max_steps=6, batch_size=8, learning_rate=3e-3, min_learning_rate=1e-3, warmup_steps=1, seed=3)
HALF = Smaller((0.5,))

Report = dict[str, Any]
Teach = Callable[..., Report]


@pytest.fixture
def teach(toy_text: Path, toy_teacher: Path, tmp_path: Path) -> Teach:
    """`teach(name, **options)` distils the toy teacher into tmp_path / name."""

    def teach(name: str, way: Way | None = None, **options: Any) -> Report:
        if "student" not in options:
            options = {"smaller": HALF, **options}
        options = {"teachers": [str(toy_teacher)], "schedule": SCHEDULE, **options}
        say = options.pop("say", lambda line: None)
        return distill(tmp_path / name, toy_text, options.pop("teachers"), way=way, say=say, **options)

    return teach


def weights(directory: Path) -> dict[str, Any]:
    return dict(load_model(directory).state_dict())


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("top_k", [None, 257, 20, 0])
def test_labels_teach_what_the_teacher_beside_the_student_teaches(
    top_k: int | None, teach: Teach, tmp_path: Path
) -> None:
    start = weights_before(teach, tmp_path)
    teach("online", Way(Objective(temperature=2.0), online=True))
    teach("offline", Way(Objective(temperature=2.0), top_k=top_k))
    online, offline = weights(tmp_path / "online"), weights(tmp_path / "offline")
    moved = distance(online, start)
    assert moved > 1e-3
    assert distance(offline, online) < (0.3 if top_k == 20 else 0.05) * moved  # float16, and the rest as one token


def weights_before(teach: Teach, tmp_path: Path) -> dict[str, Any]:
    """Of the carved student, which a learning rate of next to nothing leaves as it is."""
    still = replace(SCHEDULE, learning_rate=1e-30, min_learning_rate=0.0, max_steps=1)
    teach("before", Way(online=True), schedule=still)
    return weights(tmp_path / "before")


WAYS = {
    "reverse-kl": Way(Objective("reverse-kl")),
    "mse": Way(Objective("mse")),
    "mixture": Way(Objective(hard_weight=0.5)),
    "text alone": Way(Objective(hard_weight=1.0)),
    "random": Way(start="random"),
    "hidden": Way(Objective(hidden_weight=1.0), online=True),
    "attention": Way(Objective(attention_weight=10.0), online=True),
    "dropout": Way(dropout=0.3),
}


def test_every_way_teaches_another_student(teach: Teach, tmp_path: Path) -> None:
    teach("plain")
    students = {"plain": weights(tmp_path / "plain")}
    without = ("text alone", "hidden", "attention")
    for name, way in WAYS.items():
        report = teach(name, way)
        students[name] = weights(tmp_path / name)
        assert set(students[name]) == set(students["plain"])  # no projection is saved
        assert all(torch.isfinite(tensor).all() for tensor in students[name].values())
        assert report["stages"][0]["label_bytes"] == (0 if name in without else 340 * 8 * 257 * 2)
    names = list(students)
    for place, name in enumerate(names):
        for other in names[:place]:
            assert distance(students[name], students[other]) > 1e-5, (name, other)


def test_a_student_of_the_teacher_begins_ahead_of_a_random_one(teach: Teach) -> None:
    smaller = Smaller((0.75,), ("width", "heads"))
    losses = [
        teach(start, Way(start=start), smaller=smaller)["stages"][0]["evaluation"]["loss"]
        for start in ("teacher", "random")
    ]
    assert losses[0] < losses[1] - 0.3


def test_the_same_command_gives_the_same_student(teach: Teach, tmp_path: Path) -> None:
    way = Way(Objective(hidden_weight=1.0), online=True)  # with a projection
    torch.manual_seed(1)
    teach("one", way)
    torch.manual_seed(2)
    teach("two", way)
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) == 0


def test_an_ensemble_teaches_its_mean(teach: Teach, toy_teacher: Path, tmp_path: Path) -> None:
    other = gpt2.load(toy_teacher)
    with torch.no_grad():
        other.transformer.wpe.weight.mul_(0.5)
    gpt2.save(other, tmp_path / "other")
    both = [str(toy_teacher), str(tmp_path / "other")]
    teach("one")
    teach("offline", teachers=both)
    teach("online", Way(online=True), teachers=both)
    one, offline, online = (weights(tmp_path / name) for name in ("one", "offline", "online"))
    assert distance(offline, online) < 0.1 * distance(offline, one)


CHAIN = Smaller((1.0, 0.75, 0.5), ("width", "heads"))
WIDE = {**TOY, "n_head": 4}


def test_each_student_of_a_chain_teaches_the_next(teach: Teach, tmp_path: Path) -> None:
    gpt2.save(gpt2.new(WIDE, 0), tmp_path / "wide", tokenizer_from=TOKENIZER.parent)
    report = teach("chain", smaller=CHAIN, teachers=[str(tmp_path / "wide")])
    assert [stage["name"] for stage in report["stages"]] == ["1", "0.75", "0.5"]
    assert [load_model(tmp_path / "chain" / "stages" / name).config.n_head for name in ("1", "0.75")] == [4, 3]
    assert load_model(tmp_path / "chain").config.n_head == 2
    assert json.loads((tmp_path / "chain" / "training.json").read_text())["stages"] == report["stages"]
    assert sorted(path.name for path in (tmp_path / "chain" / "stages").iterdir()) == ["0.75", "1"]
    # the last step is what the one before it teaches on its own: 2 of 3 heads
    teach("last", smaller=Smaller((2 / 3,), ("width", "heads")), teachers=[str(tmp_path / "chain" / "stages" / "0.75")])
    assert distance(weights(tmp_path / "chain"), weights(tmp_path / "last")) == 0


def test_a_chain_that_was_stopped_between_stages_trains_none_again(teach: Teach, tmp_path: Path) -> None:
    chain = Smaller((1.0, 0.5))
    teach("whole", smaller=chain)

    def stop(line: str) -> None:
        if "labels-0.5" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach("stopped", smaller=chain, say=stop)
    work = tmp_path / "stopped.work"
    lines: list[str] = []
    teach("stopped", smaller=chain, say=lines.append)
    assert not any("labels-1" in line for line in lines)
    assert not work.exists()
    assert distance(weights(tmp_path / "whole"), weights(tmp_path / "stopped")) == 0
    assert distance(weights(tmp_path / "whole/stages/1"), weights(tmp_path / "stopped/stages/1")) == 0


def test_labels_that_are_kept_are_used_again(teach: Teach, toy_teacher: Path, tmp_path: Path) -> None:
    way = Way(labels=str(tmp_path / "labels"))
    teach("one", way)
    before = (tmp_path / "labels" / "labels.bin").stat().st_mtime_ns
    teach("two", replace(way, start="random"))
    assert (tmp_path / "labels" / "labels.bin").stat().st_mtime_ns == before
    teach("three")
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "three")) == 0
    other = gpt2.load(toy_teacher)
    with torch.no_grad():
        other.transformer.wpe.weight.mul_(0.5)
    gpt2.save(other, tmp_path / "other", tokenizer_from=toy_teacher)
    with pytest.raises(InputError, match="are others than asked for: teacher"):
        teach("four", way, teachers=[str(tmp_path / "other")])
    assert not (tmp_path / "four.work").exists()


def llama(directory: Path, vocab_size: int = 257, **options: Any) -> Path:
    """A tiny model of another architecture."""
    sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=16, **{**sizes, **options})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("way", [Way(), Way(Objective(hidden_weight=1.0, attention_weight=1.0), online=True)])
def test_a_student_of_another_architecture(way: Way, teach: Teach, toy_teacher: Path, tmp_path: Path) -> None:
    begin = llama(tmp_path / "llama")
    report = teach("student", way, student=begin)
    assert report["stages"][0]["sizes"] == "llama"
    before, after = (models.load(path).state_dict() for path in (begin, tmp_path / "student"))
    assert before.keys() == after.keys()
    assert distance(after, before) > 1e-3
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() == (toy_teacher / "tokenizer.json").read_bytes()
    # and it teaches in turn, another of its kind or a GPT-2
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(TOY))
    report = teach("pupil", way, student=tmp_path / "gpt2", teachers=[str(tmp_path / "student")])
    assert report["stages"][0]["parameters"] == models.parameters(load_model(toy_teacher))


def test_students_that_do_not_fit(teach: Teach, toy_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a vocabulary of 99 tokens and the teacher one of 257; expected the same"):
        teach("student", student=llama(tmp_path / "small", 99))
    long = llama(tmp_path / "long")
    config = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    for way, error in ((Way(), "have 32 tokens, but the teacher takes 16"), (Way(online=True), "32 positions, but a")):
        with pytest.raises(InputError, match=error):
            teach("student", way, student=long)
    llama(tmp_path / "teacher")
    shutil.copyfile(toy_teacher / "tokenizer.json", tmp_path / "teacher" / "tokenizer.json")
    with pytest.raises(InputError, match="only a GPT-2 is scaled"):
        teach("student", teachers=[str(tmp_path / "teacher")])
    with pytest.raises(InputError, match="is a llama; expected a GPT-2: only that is pruned"):
        prune(tmp_path / "student", "nothing", str(tmp_path / "teacher"), None, heads=0.5)
    with pytest.raises(InputError, match="either a scale or a student"):
        teach("student", student=long, smaller=HALF)
    assert not list(tmp_path.glob("student*"))


def test_teachers_that_are_not_sound(teach: Teach, toy_text: Path, toy_teacher: Path, tmp_path: Path) -> None:
    bare = gpt2.save(gpt2.load(toy_teacher), tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.json nor .*copy it there"):
        teach("student", teachers=[str(bare)])
    (bare / "tokenizer.json").write_bytes((toy_teacher / "tokenizer.json").read_bytes())
    model = gpt2.load(bare)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = np.nan
    gpt2.save(model, bare, tokenizer_from=toy_teacher)
    for directory in (bare, nan_llama(tmp_path / "llama")):
        with pytest.raises(CheckpointError, match="NaN"):
            teach("student", teachers=[str(directory)])
    small = gpt2.save(
        gpt2.new({**TOY, "vocab_size": 90, "bos_token_id": 1, "eos_token_id": 1}, 0), tmp_path / "small", toy_teacher
    )
    with pytest.raises(InputError, match="but the model has 90 tokens; expected the model's own tokenizer"):
        teach("student", teachers=[str(small)])
    pruned = prune(tmp_path / "pruned", toy_text, str(toy_teacher), None, mlp=0.5, say=lambda line: None)
    assert pruned["stages"][0]["training"] is None
    with pytest.raises(InputError, match="blocks of different sizes; expected alike ones to scale: name a student"):
        teach("student", teachers=[str(tmp_path / "pruned")])
    assert not list(tmp_path.glob("student*"))
    teach("student", student=bare_config(tmp_path), teachers=[str(tmp_path / "pruned")])


def nan_llama(directory: Path) -> Path:
    llama(directory)
    model = LlamaForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.model.norm.weight[3] = np.nan
    model.save_pretrained(directory)
    return directory


def bare_config(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(TOY))
    return tmp_path / "config"


def test_a_step_that_cannot_start_is_found_before_the_first(teach: Teach, tmp_path: Path) -> None:
    chain = Smaller((1.0, 0.5), ("heads",))
    with pytest.raises(InputError, match="heads of 16 cannot start from the teacher's of 8"):
        teach("student", smaller=chain)
    assert not (tmp_path / "student.work").exists()
    teach("student", Way(start="random"), smaller=chain)
    assert load_model(tmp_path / "student").config.n_head == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"start": "nothing"}, "start is 'nothing'; expected 'teacher' or 'random'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"objective": Objective(hidden_weight=1.0)}, "match those with an online teacher"),
        ({"objective": Objective(attention_weight=1.0)}, "match those with an online teacher"),
        ({"online": True, "labels": "labels"}, "an online teacher makes no labels"),
        ({"online": True, "labels_from": "library"}, "an online teacher makes no labels"),
    ],
    ids=str,
)
def test_ways_that_contradict_themselves(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        Way(**options)


# Pruning


@pytest.fixture
def cut(toy_text: Path, toy_teacher: Path, tmp_path: Path) -> Teach:
    """`cut(name, **options)` prunes the toy teacher into tmp_path / name."""

    def cut(name: str, schedule: Schedule | None = SCHEDULE, **options: Any) -> Report:
        return prune(tmp_path / name, toy_text, str(toy_teacher), schedule, say=lambda line: None, **options)

    return cut


@pytest.mark.parametrize(("pattern", "group"), [(0.5, None), ("2:4", 4)])
def test_zeros_stay_zero(pattern: float | str, group: int | None, cut: Teach, tmp_path: Path) -> None:
    cut("before", None, sparsity=pattern)
    cut("after", sparsity=pattern)
    before, after = (gpt2.matrices(load_model(tmp_path / name)) for name in ("before", "after"))
    for name, matrix in after.items():
        weight = matrix.weight.detach().numpy()
        assert not weight[before[name].weight.detach().numpy() == 0].any()
        assert (weight != before[name].weight.detach().numpy()).any()
        zeros = (weight.reshape(-1, group or len(weight), weight.shape[1]) == 0).sum(1)
        assert (zeros >= (group or len(weight)) // 2).all()


def test_recovery_lowers_the_loss(cut: Teach, tmp_path: Path) -> None:
    options = {"heads": 0.5, "mlp": 0.75, "layers": 1}
    before, after = cut("before", None, **options), cut("after", replace(SCHEDULE, max_steps=60), **options)
    losses = [report["stages"][0]["evaluation"]["loss"] for report in (before, after)]
    assert losses[1] < losses[0] - 0.01
    assert gpt2.blocks(load_model(tmp_path / "before")) == gpt2.blocks(load_model(tmp_path / "after"))


def test_a_share_of_the_parameters_and_layers(cut: Teach, toy_teacher: Path, tmp_path: Path) -> None:
    whole = gpt2.parameters(load_model(toy_teacher))
    assert cut("share", None, parameters=0.7)["stages"][0]["parameters"] <= 0.7 * whole
    cut("layers", None, layers=1)
    assert load_model(tmp_path / "layers").config.n_layer == 1


def test_blocks_of_their_own_sizes_are_baked_and_speak_and_teach(
    teach: Teach,
    toy_text: Path,
    toy_teacher: Path,
    bake_checkpoint: Bake,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from kaoken.cli import main

    uneven = gpt2.load(toy_teacher)
    with torch.no_grad():
        uneven.transformer.h[0].mlp.c_proj.weight[16:] *= 1e-3  # of which block 0 hardly needs more than 16
    gpt2.save(uneven, tmp_path / "uneven", tokenizer_from=toy_teacher)
    prune(tmp_path / "pruned", toy_text, str(tmp_path / "uneven"), SCHEDULE, mlp=0.4, say=lambda line: None)
    assert len(set(gpt2.blocks(load_model(tmp_path / "pruned")))) == 2
    library = bake_checkpoint(tmp_path / "pruned", dtype="int8")
    assert main(["generate", "--model", str(library), "--max-new-tokens", "5", "the "]) == 0
    assert capsys.readouterr().out.startswith("the ")
    options = {"student": toy_teacher, "teachers": [str(tmp_path / "pruned")]}
    teach("int8", Way(labels_from=str(library)), **options)
    teach("float32", **options)
    int8, float32 = weights(tmp_path / "int8"), weights(tmp_path / "float32")
    assert 0 < distance(int8, float32) < 0.5 * distance(float32, weights(toy_teacher))


@pytest.mark.parametrize(
    "options", [{}, {"heads": 0.5, "parameters": 0.5}, {"parameters": 0.5, "sparsity": 0.5}], ids=str
)
def test_what_goes_is_said_in_one_way(options: dict[str, Any], cut: Teach, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected heads, mlp, layers and width, or parameters, or sparsity"):
        cut("pruned", **options)
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_is_no_teacher(teach: Teach, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError, match=r"model\.gguf is a GGUF file; expected a checkpoint with config.json"):
        teach("student", teachers=[str(tmp_path / "model.gguf")])

"""Soft labels on the disk: what they hold, reuse, resuming, damage, a full disk, and teachers of each kind.

Skipped without torch, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes its absence a failure.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch

from conftest import Bake, Checkpoints, LibraryOf
from kaoken import load
from kaoken.compress import labels as module
from kaoken.compress import models
from kaoken.compress.labels import (
    CHECKSUMS,
    DATA,
    HEADER,
    LabelFile,
    Teacher,
    baked_teacher,
    ensemble_teacher,
    open_labels,
    plan_labels,
    torch_teacher,
    write_labels,
)
from kaoken.compress.losses import Objective, SoftLabels, soft_loss
from kaoken.errors import InputError, KaokenError
from oracle import open_oracle

pytestmark = pytest.mark.ci

V, T, COUNT = 300, 8, 11


@dataclass(frozen=True)
class Rows:
    """Samples of random ids."""

    ids: NDArray[np.int64]
    vocab_size: int = V

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.ids.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.ids[start:stop]


def rows(count: int = COUNT, context: int = T, vocab_size: int = V, seed: int = 0) -> Rows:
    return Rows(np.random.default_rng(seed).integers(0, vocab_size, (count, context)), vocab_size)


SAMPLES = rows()
TABLE = np.random.default_rng(1).normal(0, 3, (V, V)).astype(np.float32)


@dataclass
class Table:
    """A teacher whose logits are a row of a table for each id; it counts its samples, and may be stopped before one."""

    asked: list[int] = field(default_factory=list)
    stop_at: int = COUNT

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        if sum(self.asked) + len(ids) > self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(len(ids))
        return TABLE[ids]


def teacher(logits: Any = None, digest: str = "a" * 64) -> Teacher:
    return Teacher(logits or Table(), digest, V, 32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 samples, so that 11 are 4 chunks of which the last is shorter."""
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 3 * T)


def log_probabilities(ids: NDArray[np.int64], temperature: float = 1.0) -> NDArray[np.float64]:
    logits = TABLE[ids].astype(np.float64) / temperature
    shifted: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return shifted


def data_of(directory: Path) -> bytes:
    return (directory / DATA).read_bytes()


def test_whole_labels_are_the_teachers_log_probabilities(tmp_path: Path) -> None:
    stored = write_labels(tmp_path, SAMPLES, teacher())
    expected = log_probabilities(SAMPLES.ids)
    labels = stored[np.arange(COUNT)]
    assert labels.ids is labels.rest is labels.temperature is None
    assert labels.values.dtype == torch.float16
    np.testing.assert_array_equal(labels.values, expected.astype(np.float32).astype(np.float16))
    assert stored.plan.nbytes == len(data_of(tmp_path)) == COUNT * T * V * 2


@pytest.mark.parametrize(("vocab_size", "id_bytes"), [(V, 2), (256, 1)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_labels_are_the_likeliest_and_the_rest(
    temperature: float, vocab_size: int, id_bytes: int, tmp_path: Path
) -> None:
    samples = rows(vocab_size=vocab_size)
    of_vocabulary = Teacher(lambda ids: TABLE[ids][..., :vocab_size], "a", vocab_size, T)
    stored = write_labels(tmp_path, samples, of_vocabulary, top_k=5, temperature=temperature)
    logits = TABLE[samples.ids][..., :vocab_size].astype(np.float64) / temperature
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-p, axis=-1)[..., :5]
    labels = stored[range(COUNT)]
    assert labels.ids is not None
    assert labels.rest is not None
    assert labels.temperature == temperature
    kept = np.take_along_axis(p, ids, -1)
    np.testing.assert_array_equal(labels.ids, ids)
    np.testing.assert_allclose(labels.values, np.log(kept), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(labels.rest, np.log(1 - kept.sum(-1)), rtol=1e-3, atol=1e-4)
    assert stored.plan.nbytes == len(data_of(tmp_path)) == COUNT * T * (5 * (2 + id_bytes) + 2)


def test_ids_of_a_large_vocabulary_and_the_default_top_k() -> None:
    large = Teacher(Table(), "a", 70_000, T)
    plan = plan_labels(rows(vocab_size=70_000), large)
    assert plan.top_k == 64
    assert plan.dtype["ids"].base == np.uint32
    assert plan_labels(rows(vocab_size=1024), replace(large, vocab_size=1024)).top_k == 0
    assert plan_labels(rows(vocab_size=1025), replace(large, vocab_size=1025)).top_k == 64


def test_labels_of_any_order_are_each_samples_own(tmp_path: Path) -> None:
    stored = write_labels(tmp_path, SAMPLES, teacher(), top_k=4)
    order = np.random.default_rng(3).permutation(COUNT)
    logits = torch.randn(COUNT, T, V, generator=torch.Generator().manual_seed(1))
    objective = Objective()
    shuffled = soft_loss(logits[order], stored[order], objective)
    torch.testing.assert_close(shuffled, soft_loss(logits, stored[np.arange(COUNT)], objective))
    for place, index in enumerate(order):
        torch.testing.assert_close(stored[int(index)].values, stored[order].values[place : place + 1])
    with pytest.raises(IndexError):
        stored[[0, -1]]
    with pytest.raises(IndexError):
        stored[COUNT]
    assert len(list(stored)) == len(stored) == COUNT


def test_reading_from_threads_forks_and_pickles(tmp_path: Path) -> None:
    stored = write_labels(tmp_path, SAMPLES, teacher())
    expected = [stored[index].values.numpy() for index in range(COUNT)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(stored.__getitem__, list(range(COUNT)) * 20), expected * 20, strict=True):
            np.testing.assert_array_equal(got.values, want)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        sums = processes.map(stored_sum, [(stored, index) for index in range(COUNT)])
    assert sums == [float(values.astype(np.float64).sum()) for values in expected]
    assert len(pickle.dumps(stored)) < 2000


def stored_sum(job: tuple[LabelFile, int]) -> float:
    stored, index = job
    return float(stored[index].values.numpy().astype(np.float64).sum())


def test_complete_labels_are_not_made_again(tmp_path: Path) -> None:
    write_labels(tmp_path, SAMPLES, teacher())
    again = Table()
    stored = write_labels(tmp_path, SAMPLES, teacher(again))
    assert again.asked == []
    opened = open_labels(tmp_path, stored.plan)
    torch.testing.assert_close(opened[4].values, stored[4].values)


@pytest.mark.parametrize("top_k", [0, 4])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(top_k: int, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    write_labels(whole, SAMPLES, teacher(), top_k=top_k)
    with pytest.raises(KeyboardInterrupt):
        write_labels(resumed, SAMPLES, teacher(Table(stop_at=7)), top_k=top_k)
    plan = plan_labels(SAMPLES, teacher(), top_k=top_k)
    with pytest.raises(InputError, match=r"incomplete \(6 of 11 samples\)"):
        open_labels(resumed, plan)
    rest = Table()
    write_labels(resumed, SAMPLES, teacher(rest), top_k=top_k)
    assert rest.asked == [3, 2]
    assert data_of(resumed) == data_of(whole)
    open_labels(resumed, plan)


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import test_labels as t
from kaoken.compress import labels
labels._CHUNK_TOKENS = 3 * t.T
append = labels._append
def killed(directory, offset, data):
    if offset == 0:
        return append(directory, offset, data)
    with (directory / labels.DATA).open("r+b") as file:
        file.seek(offset)
        file.write(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
labels._append = killed
t.write_labels(Path(sys.argv[2]), t.SAMPLES, t.teacher())
"""


def killed_in_a_chunk(directory: Path) -> None:
    """Has the first chunk, and half of the second one's data."""
    run = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(directory)], check=False)
    assert run.returncode == -signal.SIGKILL


def killed_in_a_checksum(directory: Path) -> None:
    """Has the first chunk, and the second one's data with half of its checksum."""
    with pytest.raises(KeyboardInterrupt):
        write_labels(directory, SAMPLES, teacher(Table(stop_at=7)))
    os.truncate(directory / CHECKSUMS, 6)


@pytest.mark.parametrize("killed", [killed_in_a_chunk, killed_in_a_checksum])
def test_what_a_killed_run_left_half_written_does_not_count(killed: Callable[[Path], None], tmp_path: Path) -> None:
    killed(tmp_path / "killed")
    with pytest.raises(InputError, match=r"incomplete \(3 of 11 samples\)"):
        open_labels(tmp_path / "killed", plan_labels(SAMPLES, teacher()))
    rest = Table()
    write_labels(tmp_path / "killed", SAMPLES, teacher(rest))
    assert rest.asked == [3, 3, 2]
    write_labels(tmp_path / "whole", SAMPLES, teacher())
    assert data_of(tmp_path / "killed") == data_of(tmp_path / "whole")


def test_killed_before_the_space_was_reserved_begins_anew(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(b"half")
    (tmp_path / CHECKSUMS).write_bytes(b"1234")
    asked = Table()
    stored = write_labels(tmp_path, SAMPLES, teacher(asked))
    assert sum(asked.asked) == COUNT
    open_labels(tmp_path, stored.plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": teacher(digest="b" * 64)}, r"teacher aaaaaaaaaaaa instead of bbbbbbbbbbbb;"),
        ({"samples": rows(seed=9)}, rf"samples {SAMPLES.digest[:12]} instead of {rows(seed=9).digest[:12]};"),
        ({"samples": rows(count=12)}, "count 11 instead of 12"),
        ({"top_k": 5}, "asked for: top_k 4 instead of 5;"),
        ({"top_k": 0}, r"top_k 4 instead of 0, temperature 2\.0 instead of None"),
        ({"temperature": 4}, r"asked for: temperature 2\.0 instead of 4\.0;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_of_something_else_are_never_reused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": SAMPLES, "teacher": teacher(), "top_k": 4, "temperature": 2.0}
    write_labels(tmp_path, **options)
    before = data_of(tmp_path)
    with pytest.raises(InputError, match=message):
        write_labels(tmp_path, **{**options, **change})
    with pytest.raises(InputError, match=message):
        open_labels(tmp_path, plan_labels(**{**options, **change}))
    assert data_of(tmp_path) == before


def test_damage_is_found_and_made_again(tmp_path: Path) -> None:
    stored = write_labels(tmp_path, SAMPLES, teacher())
    sound = data_of(tmp_path)
    with (tmp_path / DATA).open("r+b") as file:
        file.seek(5 * stored.plan.dtype.itemsize)  # sample 5, of the second chunk
        file.write(b"\x42")
    with pytest.raises(InputError, match=r"damaged in the samples from 3 on"):
        open_labels(tmp_path, stored.plan)
    again = Table()
    write_labels(tmp_path, SAMPLES, teacher(again))
    assert again.asked == [3, 3, 2]
    assert data_of(tmp_path) == sound


def test_files_cut_or_missing_are_refused(tmp_path: Path) -> None:
    plan = plan_labels(SAMPLES, teacher())
    with pytest.raises(InputError, match=r"has no labels\.json"):
        open_labels(tmp_path, plan)
    write_labels(tmp_path, SAMPLES, teacher())
    os.truncate(tmp_path / DATA, plan.nbytes - 1)
    with pytest.raises(InputError, match=f"has {plan.nbytes - 1} bytes; expected {plan.nbytes}"):
        open_labels(tmp_path, plan)
    (tmp_path / DATA).unlink()
    with pytest.raises(InputError, match=r"labels\.bin cannot be read"):
        open_labels(tmp_path, plan)
    for text in ("{", "[]", "[" * 100_000, '{"format": 2}'):
        (tmp_path / HEADER).write_text(text)
        with pytest.raises(InputError, match=r"labels\.json cannot be read|format .* instead of 1"):
            open_labels(tmp_path, plan)


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_found_before_the_teacher_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    asked = Table()
    plan = plan_labels(SAMPLES, teacher())
    with pytest.raises(KaokenError, match=f"the disk is full: .* take {plan.nbytes} bytes, and 1000 are free"):
        write_labels(tmp_path, SAMPLES, teacher(asked))
    assert asked.asked == []
    assert not (tmp_path / DATA).exists()


@pytest.mark.parametrize("failing", ["posix_fallocate", "write"])
def test_a_disk_that_fills_keeps_what_is_complete(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path, SAMPLES, teacher(Table(stop_at=7)))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, failing) if failing == "posix_fallocate" else (module, "_append")), full)
        with pytest.raises(KaokenError, match=r"the disk is full: .* what is complete is kept"):
            write_labels(tmp_path, SAMPLES, teacher())
    rest = Table()
    write_labels(tmp_path, SAMPLES, teacher(rest))
    assert rest.asked == [3, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_small_file_system_that_is_full(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    try:
        small = rows(count=1)  # 4800 bytes
        stored = write_labels(tmp_path / "small", small, teacher())
        with pytest.raises(KaokenError, match="the disk is full"):
            write_labels(tmp_path / "large", rows(count=40), teacher())
        open_labels(tmp_path / "small", stored.plan)
    finally:  # lazily, as the labels are still mapped
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_file_system_that_cannot_reserve_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    stored = write_labels(tmp_path, SAMPLES, teacher())
    open_labels(tmp_path, stored.plan)


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(b"")
    with pytest.raises(KaokenError, match="cannot be written"):
        write_labels(tmp_path / "labels", SAMPLES, teacher())


def test_options_and_teachers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"top_k": V + 1}, f"top_k is {V + 1}; expected at most the vocabulary's {V}"),
        ({"top_k": -1}, "top_k must be an integer of at least 0"),
        ({"temperature": 0}, "temperature is 0; expected"),
    ):
        with pytest.raises(InputError, match=message):
            plan_labels(SAMPLES, teacher(), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="vocabulary has 300 tokens, the samples' 299"):
        write_labels(tmp_path / "a", replace(SAMPLES, vocab_size=V - 1), teacher())
    with pytest.raises(InputError, match="the samples have 33 tokens, but the teacher takes 32"):
        write_labels(tmp_path / "b", rows(context=33), teacher())
    with pytest.raises(InputError, match=r"logits of the shape \[3, 8, 300\]; expected \[2, 8, 300\]"):
        write_labels(tmp_path / "c", SAMPLES, teacher(lambda ids: TABLE[np.resize(ids, (3, T))]))
    with pytest.raises(KaokenError, match="NaN or infinite in the samples 0 to 2"):
        write_labels(tmp_path / "d", SAMPLES, teacher(lambda ids: TABLE[ids] * np.nan))


def test_values_too_small_for_float16_stay_finite(tmp_path: Path) -> None:
    steep = teacher(lambda ids: TABLE[ids] * 1e5)
    assert torch.isfinite(write_labels(tmp_path, SAMPLES, steep)[0].values).all()


def tiny_gpt2(directory: Path) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(directory)


def values_of(labels: SoftLabels) -> NDArray[np.float64]:
    values: NDArray[np.float64] = labels.values.double().numpy()
    return values


def oracle_labels(directory: Path, samples: Rows) -> NDArray[np.float64]:
    logits = open_oracle(directory).logits(samples.ids.tolist())
    expected: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return expected


def test_a_torch_teacher_in_training_mode_under_autocast(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints("plain")
    model = tiny_gpt2(directory).train()  # whose dropout of 0.1 would show
    of_model = torch_teacher(model, models.digest(model))
    samples = rows(count=4, vocab_size=61)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stored = write_labels(tmp_path, samples, of_model)
    np.testing.assert_allclose(values_of(stored[range(4)]), oracle_labels(directory, samples), rtol=1e-3)
    assert of_model.n_positions == 32
    assert all(parameter.grad is None for parameter in model.parameters())


def digest_of(directory: Path) -> str:
    return models.digest(models.load(directory))


def test_a_models_digest_is_of_weights_and_configuration(checkpoints: Checkpoints, tmp_path: Path) -> None:
    plain = digest_of(checkpoints("plain"))
    copy = shutil.copytree(checkpoints("plain"), tmp_path / "copy")
    assert digest_of(copy) == plain
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    assert digest_of(copy) != plain
    assert digest_of(checkpoints("untied")) != plain


@pytest.fixture(scope="module")
def int8_library(checkpoints: Checkpoints, bake_checkpoint: Bake) -> Path:
    return bake_checkpoint(checkpoints("plain"), dtype="int8")


def test_a_baked_teacher_in_int8_and_an_ensemble_with_it(
    checkpoints: Checkpoints, library_of: LibraryOf, int8_library: Path, tmp_path: Path
) -> None:
    directory = checkpoints("plain")
    float32, int8 = baked_teacher(library_of("plain")), baked_teacher(int8_library)
    samples = rows(count=4, vocab_size=61)
    exact = oracle_labels(directory, samples)
    plan = plan_labels(samples, float32)
    np.testing.assert_allclose(
        values_of(write_labels(tmp_path / "float32", samples, float32)[range(4)]), exact, rtol=1e-3
    )
    logits = load(int8_library).logits(samples.ids).astype(np.float64)
    rounded = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(values_of(write_labels(tmp_path / "int8", samples, int8)[range(4)]), rounded, rtol=1e-3)
    assert np.abs(rounded - exact).max() > 0.01
    with pytest.raises(InputError, match=r"teacher .* instead of"):
        open_labels(tmp_path / "int8", plan)

    of_model = torch_teacher(tiny_gpt2(directory), "of its weights")
    both = ensemble_teacher([of_model, int8])
    mean = np.log((np.exp(exact) + np.exp(rounded)) / 2)
    np.testing.assert_allclose(values_of(write_labels(tmp_path / "both", samples, both)[range(4)]), mean, rtol=1e-3)
    assert both.digest == ensemble_teacher([int8, of_model]).digest
    assert both.digest not in (of_model.digest, int8.digest)


def test_an_ensemble_of_other_vocabularies_or_of_none_is_refused() -> None:
    with pytest.raises(InputError, match="vocabularies of 299, 300 tokens"):
        ensemble_teacher([teacher(), replace(teacher(), vocab_size=299)])
    with pytest.raises(InputError, match="no teachers"):
        ensemble_teacher([])


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_what_continues_no_texts_is_no_teacher(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaoken.compress.labels.load", lambda *_, **__: SimpleNamespace(kind=kind))
    with pytest.raises(InputError, match=rf"my\.so holds an {kind}; expected a decoder"):
        baked_teacher("my.so")


def test_a_baked_teachers_labels_do_not_depend_on_the_batch(
    int8_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baked = baked_teacher(int8_library)
    samples = rows(vocab_size=61)
    write_labels(tmp_path / "threes", samples, baked)
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 1)
    write_labels(tmp_path / "ones", samples, baked)
    assert data_of(tmp_path / "ones") == data_of(tmp_path / "threes")


def test_labels_on_another_device() -> None:
    whole = SoftLabels(torch.zeros(1, 2, 3)).to("meta")
    top_k = SoftLabels(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2), 2.0).to("meta")
    assert top_k.ids is not None
    assert top_k.rest is not None
    assert {whole.values.device.type, top_k.values.device.type, top_k.ids.device.type, top_k.rest.device.type} == {
        "meta"
    }
    assert top_k.temperature == 2.0

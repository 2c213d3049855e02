"""The study of compression: students of half the parameters by steps, at once, without a teacher, and by pruning.

Every arm is a directory that `kaoken.compress` writes, so a study that was stopped goes on. Arms whose name ends in
" long" train for as many tokens as the whole chain; all others for as many as one of its steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kaoken
from benchmarks.machine import header
from benchmarks.peers import save
from benchmarks.summary import summarize
from kaoken.causal import BakedGPT2
from kaoken.compress.corpus import Corpus, read_corpus
from kaoken.compress.distillation import REPORT, Smaller, Way, distill, prune, train
from kaoken.compress.losses import Objective
from kaoken.compress.models import read_config, read_tokenizer
from kaoken.compress.presets import PRESETS, byte_tokenizer
from kaoken.compress.scaling import AXES
from kaoken.compress.training import Schedule

TEACHER = "teacher"
ROUNDS = 9  # of timing

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A teacher, how it is made smaller, and for how long everything trains."""

    config: dict[str, Any]
    factors: tuple[float, ...]
    axes: tuple[str, ...]  # of the chain
    schedule: Schedule  # of one step of the chain, at seed 0
    teacher_steps: int  # as many times as a step of the chain
    seeds: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32", "int8", "int4")  # that are baked
    baked: tuple[str, ...] = (
        *("one-shot", "direct", "pruned", "one-shot long", "direct long", "pruned long"),
        *("half the width", "half of each"),
    )  # beside the teacher and each step down

    def one(self, seed: int, steps: int = 1) -> Schedule:
        """The schedule of as many steps of the chain."""
        count = self.schedule.max_steps
        if count is not None:
            return replace(self.schedule, seed=seed, max_steps=count * steps)
        assert self.schedule.epochs is not None
        return replace(self.schedule, seed=seed, epochs=self.schedule.epochs * steps)


FACTORS = (0.9, 0.8, 0.7, 0.6, 0.5)

# Of a size for two cores. Ten layers, so that tenths of them are whole; of the parameters 95 % are in the layers.
PRESET = Study(
    config={**PRESETS["gptlite-deep"].config, "n_embd": 64, "n_head": 4},
    factors=FACTORS,
    axes=("layers",),
    schedule=Schedule(max_steps=200, batch_size=16, learning_rate=2e-3, min_learning_rate=2e-4, warmup_steps=50),
    teacher_steps=15,
    seeds=(0, 1, 2),
)

# The published study's way, on the bundled model's shape: all four sizes, Adam at 2e-4, 30 epochs a step.
FULL = Study(
    config={**PRESETS["gptlite"].config, "activation_function": "gelu_pytorch_tanh"},
    factors=FACTORS,
    axes=AXES,
    schedule=Schedule(
        epochs=30, batch_size=24, learning_rate=2e-4, min_learning_rate=2e-4, weight_decay=0.0, beta2=0.999
    ),
    teacher_steps=1,
    seeds=(0, 1, 2),
)

# Seconds, for the tests of this command.
TINY = replace(
    PRESET,
    config={**PRESET.config, "n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 32},
    factors=(0.75, 0.5),
    schedule=replace(PRESET.schedule, max_steps=4),
    teacher_steps=2,
    seeds=(0,),
    dtypes=("int8",),
    baked=("pruned",),
)

STUDIES = {"preset": PRESET, "full": FULL, "tiny": TINY}


def arms(study: Study, text: Path, seed: int, root: Path) -> dict[str, Callable[[Path], Any]]:
    """What makes the checkpoint directory of each arm, in an order in which each finds what it needs."""
    half, long = study.factors[-1], len(study.factors)
    teacher, directory = str(root / TEACHER), root / f"seed-{seed}"

    def quiet(line: str) -> None: ...

    def students(smaller: Smaller | None = None, steps: int = 1, **options: Any) -> Callable[[Path], Any]:
        sizes = smaller or Smaller((half,), study.axes)
        if not {"online", "labels_from"} & options.keys():
            options["labels"] = labels(sizes.factors[0] if "context" in sizes.axes else 1)
        way = Way(**options)
        return lambda out: distill(out, text, [teacher], study.one(seed, steps), smaller=sizes, way=way, say=quiet)

    def labels(context: float) -> str:
        """Where all arms whose samples have this share of the teacher's context find its labels."""
        return str(root / f"labels-{context:g}")

    def direct(steps: int) -> Callable[[Path], Any]:
        return lambda out: train(
            out, text, _half_config(directory), byte_tokenizer(), study.one(seed, steps), say=quiet
        )

    def pruned(steps: int) -> Callable[[Path], Any]:
        schedule, way = study.one(seed, steps), Way(labels=labels(1))
        return lambda out: prune(out, text, teacher, schedule, parameters=_half_share(root, seed), way=way, say=quiet)

    chain = Smaller(study.factors, study.axes)

    found = {
        "iterative": students(chain),
        "one-shot": students(),
        "direct": direct(1),
        "pruned": pruned(1),
        "one-shot long": students(steps=long),
        "direct long": direct(long),
        "pruned long": pruned(long),
        "random start": students(start="random"),
        "random start long": students(start="random", steps=long),
        "temperature 2": students(objective=Objective(temperature=2.0)),
        "temperature 4": students(objective=Objective(temperature=4.0)),
        "mse": students(objective=Objective(loss="mse")),
        "reverse kl": students(objective=Objective(loss="reverse-kl")),
        "half hard": students(objective=Objective(hard_weight=0.5)),
        "online": students(online=True),
        "int8 labels": lambda out: students(labels_from=str(kaoken.bake(teacher, dtype="int8")))(out),
        "half the width": students(Smaller((0.5,), ("width", "heads"), of_parameters=True)),
        "iterative random start": students(chain, start="random"),
        "half of each": students(Smaller((0.5,), AXES)),
    }
    if seed == study.seeds[0]:  # it takes longer than all others
        found["direct as long as the teacher"] = direct(study.teacher_steps)
    return found


def _half_config(directory: Path) -> dict[str, Any]:
    """Of the student at once, which trains without a teacher too."""
    return dict(read_config(directory / "one-shot"))


def _half_share(root: Path, seed: int) -> float:
    """The one-shot student's share of the teacher's parameters."""
    student, teacher = (_report(path)["stages"][-1] for path in (root / f"seed-{seed}" / "one-shot", root / TEACHER))
    return float(student["parameters"] / teacher["parameters"])


def _report(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / REPORT).read_text(encoding="utf-8")))


def run(options: argparse.Namespace, arguments: Sequence[str], say: Say) -> dict[str, Any]:
    """Trains what is missing, bakes and measures it, and writes distill.json."""
    study = STUDIES[options.study]
    seeds = study.seeds if options.seeds is None else options.seeds
    root = options.work / options.study
    if not (root / TEACHER).exists():
        say(TEACHER)
        schedule = study.one(study.seeds[0], study.teacher_steps)
        train(root / TEACHER, options.text, study.config, byte_tokenizer(), schedule, say=say)
    for seed in seeds:
        for name, make in arms(study, options.text, seed, root).items():
            if not (root / f"seed-{seed}" / name).exists():
                say(f"seed {seed}: {name}")
                make(root / f"seed-{seed}" / name)
    document = {
        **header(" ".join(["distill", *arguments]), options.threads),
        "study": {"name": options.study, **asdict(study)},
        "runs": list(_runs(root, study, options.text)),
        "baked": [] if options.train_only else _measure(root, study, options, say),
    }
    save(document, options.out / "distill.json")
    return document


def _runs(root: Path, study: Study, text: Path) -> Iterator[dict[str, Any]]:
    """What was trained, a row a model; tokens and seconds are all that it took from the teacher on."""
    yield from _stages(root / TEACHER, TEACHER, study.seeds[0])
    for seed in study.seeds:
        for name in arms(study, text, seed, root):
            if (root / f"seed-{seed}" / name).exists():
                yield from _stages(root / f"seed-{seed}" / name, name, seed)


def _stages(directory: Path, name: str, seed: int) -> Iterator[dict[str, Any]]:
    tokens, seconds = 0, 0.0
    for stage in _report(directory)["stages"]:
        tokens += stage["training"]["tokens"]
        seconds += stage["training"]["seconds"]
        arm = f"{name} {stage['name']}" if name.startswith("iterative") else name
        yield {**stage, "arm": arm, "seed": seed, "total_tokens": tokens, "total_seconds": seconds}


def checkpoints(root: Path, study: Study) -> Iterator[tuple[str, Path]]:
    """The models that are baked: the teacher, and of the first seed each step down and the halves."""
    directory = root / f"seed-{study.seeds[0]}"
    yield TEACHER, root / TEACHER
    for factor in study.factors[:-1]:
        yield f"iterative {factor:g}", directory / "iterative" / "stages" / f"{factor:g}"
    yield f"iterative {study.factors[-1]:g}", directory / "iterative"
    for name in study.baked:
        yield name, directory / name


def _measure(root: Path, study: Study, options: argparse.Namespace, say: Say) -> list[dict[str, Any]]:
    """Each model in each type: its size, its quality on the held out text, and its speed beside the teacher's."""
    tokenizer = read_tokenizer(root / TEACHER)
    _, held_out = read_corpus(options.text, tokenizer, study.config["vocab_size"])
    records = []
    for dtype in study.dtypes:
        teacher = kaoken.load(kaoken.bake(root / TEACHER, dtype=dtype), threads=options.threads)
        for name, checkpoint in checkpoints(root, study):
            library = kaoken.bake(checkpoint, dtype=dtype)
            model = kaoken.load(library, threads=options.threads)
            pairs = [(_tokens_per_second(model), _tokens_per_second(teacher)) for _ in range(ROUNDS + 1)][1:]
            ours, theirs = zip(*pairs, strict=True)
            record = {
                "arm": name,
                "dtype": dtype,
                "bytes_per_token": model.info.bytes_per_token,
                "library_bytes": library.stat().st_size,
                **_quality(model, held_out),
                "tokens_per_second": ours,
                "teacher_tokens_per_second": theirs,
            }
            ratio = summarize([a / b for a, b in pairs]).median
            say(f"{name}, {dtype}: loss {record['loss']:.4f}, {ratio:.2f} of the teacher's tokens/s")
            records.append(record)
    return records


def _tokens_per_second(model: BakedGPT2) -> float:
    """Of decoding from one token to a full context, several times over; a prompt of one is read as fast as a token."""
    steps = model.config.n_positions - 1
    repeats = max(1, 4096 // steps)
    begin = time.perf_counter()
    for _ in range(repeats):
        model.generate([[0]], max_new_tokens=steps, eos_token_id=None, do_sample=False)
    return repeats * steps / (time.perf_counter() - begin)


def _quality(model: BakedGPT2, held_out: Corpus) -> dict[str, float]:
    """Loss in nats, bits a byte and accuracy on every whole window of the context, in float64."""
    samples = held_out.samples(model.config.n_positions)
    total, right = 0.0, 0
    for start in range(0, len(samples), 64):
        indices = np.arange(start, min(start + 64, len(samples)))
        inputs, targets = samples.gather(indices)
        logits: NDArray[np.float64] = model.logits(inputs).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        total += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
        right += int((logits.argmax(-1) == targets).sum())
    count = len(samples) * samples.context
    bits = total / count / np.log(2) * len(held_out.tokens) / held_out.size
    return {"loss": total / count, "bits_per_byte": float(bits), "accuracy": right / count}

"""`kaoken train`, `distill` and `prune`: their options, and what these mean to `kaoken.compress.distillation`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kaoken.errors import InputError, KaokenError

if TYPE_CHECKING:
    from kaoken.compress.distillation import Way
    from kaoken.compress.training import Schedule

Command = Callable[[Any, str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]

_SPARSE = 0.95  # the share of zeros from which matrices as code decode faster: benchmarks/NOTES.md

_TRAIN = """\
Train a GPT-2 on a text from random weights, into the new directory OUT. Needs `pip install "kaoken[distill]"`.

The end of the text (--holdout) is not trained on; the loss on it is shown at the end. A run that was stopped goes on
when the same command is repeated: until it has finished, its state is in OUT.work.

  kaoken train --text corpus.txt --preset gptlite -o teacher/
  kaoken train --text corpus.txt --config config.json --tokenizer ./gpt2 --epochs 3 -o teacher/
"""

_DISTILL = """\
Teach a smaller GPT-2 what TEACHER (a directory or a hub id; several are an ensemble) makes of a text, into the new
directory OUT. Needs `pip install "kaoken[distill]"`. The teacher's probabilities are written down first, which
takes disk space that is stated, unless --online runs the teacher beside the student.

--scale multiplies the teacher's layers, width, heads and context (--axes takes some of them): 0.5 of layers and
of width leaves an eighth of the blocks' parameters. With --of-parameters it is the share of parameters that is left.
--steps goes there in steps, each of which teaches the next. Stopped runs go on as those of `kaoken train`.

  kaoken distill teacher/ --text corpus.txt --scale 0.5 --epochs 3 -o student/
  kaoken distill teacher/ --text corpus.txt --scale 0.5 --steps 0.9,0.8,0.7,0.6,0.5 --max-steps 500 -o student/
  kaoken distill teacher/ --text corpus.txt --scale 0.5 --axes layers --temperature 2 --hard-weight 0.1 -o student/
  kaoken distill teacher/ --text corpus.txt --student config-directory/ -o student/
"""

_PRUNE = """\
Cut out of TEACHER, a GPT-2, what matters least on a text, let the rest recover by distillation, and write it into the
new directory OUT. Needs `pip install "kaoken[distill]"`. Each block keeps what is important there, so blocks end up
with sizes of their own: Kaoken bakes such models, and `kaoken.compress.load_model` loads them into transformers.
--max-steps 0 leaves out the recovery.

  kaoken prune teacher/ --heads 0.25 --mlp 0.5 --layers 1 --text corpus.txt -o pruned/
  kaoken prune teacher/ --parameters 0.5 --text corpus.txt --epochs 3 -o pruned/
  kaoken prune teacher/ --sparsity 2:4 --text corpus.txt -o pruned/
"""


def add_commands(commands: Any, command: Command) -> None:
    """Adds the three to kaoken's subcommands."""
    _add_train(command(commands, "train", _train, _TRAIN, "train a model on a text"))
    _add_distill(command(commands, "distill", _distill, _DISTILL, "teach a smaller model what a model knows"))
    _add_prune(command(commands, "prune", _prune, _PRUNE, "cut the least important parts out of a model"))


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help="a model and its schedule: gptlite (default), gptlite-deep")
    parser.add_argument(
        "--config", metavar="FILE", help="in place of a preset: a GPT-2's config.json, or its directory"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="a checkpoint whose tokenizer is used (default: bytes)")
    parser.add_argument("--scale", type=float, metavar="F", help="train it at this factor of its sizes")
    _add_axes(parser)
    _add_text(parser)
    _add_schedule(parser)


def _add_distill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teachers", nargs="+", metavar="TEACHER", help="a directory, or a hub id such as gpt2")
    parser.add_argument("--scale", type=float, metavar="F", help="the student's sizes, as a factor of the teacher's")
    parser.add_argument("--steps", metavar="F,F,...", help="falling factors, each a student that teaches the next")
    _add_axes(parser)
    parser.add_argument("--student", metavar="DIR", help="in place of a scale: a model, or only its config.json")
    _add_text(parser)
    _add_schedule(parser)
    _add_way(parser)


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", metavar="TEACHER", help="a directory, or a hub id such as gpt2")
    parts = parser.add_argument_group("what goes")
    parts.add_argument("--heads", type=float, default=0.0, metavar="F", help="share of all attention heads")
    parts.add_argument("--mlp", type=float, default=0.0, metavar="F", help="share of all MLP neurons")
    parts.add_argument("--layers", type=int, default=0, metavar="N", help="whole layers")
    parts.add_argument("--width", type=float, default=0.0, metavar="F", help="share of the channels between layers")
    parts.add_argument("--parameters", type=float, metavar="F", help="instead: the share of parameters that stays")
    parts.add_argument("--sparsity", metavar="F", help="instead: the share of weights that become zero, or 2:4")
    _add_text(parser)
    _add_schedule(parser, "recovery")
    _add_way(parser)


def _add_axes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--axes", metavar="A,A", help="what is scaled (default: layers,width,heads,context)")
    parser.add_argument("--of-parameters", action="store_true", help="factors are shares of the parameters")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="the directory to write")
    parser.add_argument("--holdout", type=float, default=0.1, metavar="F", help="its end, to evaluate (default: 0.1)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens from sample to sample (default: the context)")


def _add_schedule(parser: argparse.ArgumentParser, title: str = "training") -> None:
    group = parser.add_argument_group(title)
    group.add_argument("--epochs", type=float, metavar="N", help="times through the text; of each step of a chain")
    group.add_argument(
        "--max-steps", type=int, metavar="N", help="or so many steps of the optimizer (default: 1 epoch)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="samples at a time (default: 16)")
    group.add_argument("--accumulate", type=int, metavar="N", help="batches a step (default: 1)")
    group.add_argument("--learning-rate", type=float, metavar="F", help="at its highest (default: 1e-3)")
    group.add_argument("--warmup-steps", type=int, metavar="N", help="steps until then (default: 50)")
    group.add_argument("--weight-decay", type=float, metavar="F", help="of matrices (default: 0.1)")
    group.add_argument("--seed", type=int, metavar="N", help="the same gives the same model (default: 0)")
    group.add_argument("--bf16", action="store_true", default=None, help="products in bfloat16")
    group.add_argument("--gradient-checkpointing", action="store_true", default=None, help="less memory, more time")


def _add_way(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument("--loss", metavar="NAME", help="kl (default), reverse-kl, or mse of the logits")
    group.add_argument("--temperature", type=float, metavar="T", help="divides the logits (default: 1)")
    group.add_argument("--hard-weight", type=float, metavar="F", help="share of the text's own tokens (default: 0)")
    group.add_argument("--hidden-weight", type=float, metavar="F", help="of hidden states (default: 0; needs --online)")
    group.add_argument("--attention-weight", type=float, metavar="F", help="of attention (default: 0; needs --online)")
    group.add_argument("--start", metavar="FROM", help="teacher (default): its most important parts; or random")
    group.add_argument("--online", action="store_true", help="run the teacher beside the student, without labels")
    group.add_argument("--top-k", type=int, metavar="K", help="tokens of a label (default: all of up to 1024, else 64)")
    group.add_argument("--labels", metavar="DIR", help="keep the teacher's labels there, and use them again")
    group.add_argument("--labels-from", metavar="LIBRARY", help="a baked library that makes the labels")
    group.add_argument("--dropout", type=float, metavar="F", help="of the student (default: 0)")


def _resumable(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A command that needs torch, and says that it goes on when a signal has ended it."""

    def resumable(options: argparse.Namespace) -> None:
        _require("distillation")
        try:
            run(options)
        except (KeyboardInterrupt, SystemExit):
            work = f"{os.path.abspath(options.out)}.work"
            if os.path.isdir(work):
                _say(f"kaoken: stopped; the same command goes on from {work}")
            raise

    return resumable


@_resumable
def _train(options: argparse.Namespace) -> None:
    from kaoken.compress import distillation, gpt2, models, presets, students
    from kaoken.compress.scaling import resolve

    if options.preset is not None and options.config is not None:
        raise InputError("--preset and --config both name a model: leave one out")
    if options.config is not None:
        preset = presets.Preset(models.read_gpt2_config(options.config))
    else:
        preset = presets.find(options.preset or "gptlite")
    config = preset.config
    if options.scale is not None:
        model = gpt2.new(config, None)
        shape = resolve(
            students.shape_of(model),
            options.scale,
            _axes(options),
            options.of_parameters,
            lambda shape: students.parameters_of(shape, model),
        )
        config = students.config_of(shape, model)
    elif options.axes is not None or options.of_parameters:
        raise InputError("--axes and --of-parameters say how --scale is meant: give a scale, or leave them out")
    stride = max(1, int(config.get("n_positions", 1024)) // preset.overlap)
    distillation.train(
        options.out,
        options.text,
        config,
        presets.byte_tokenizer() if options.tokenizer is None else models.read_tokenizer(options.tokenizer),
        _schedule(options, preset.schedule),
        stride=stride if options.stride is None else options.stride,
        holdout=options.holdout,
        tokenizer_from=options.tokenizer,
        say=_say,
    )


@_resumable
def _distill(options: argparse.Namespace) -> None:
    from kaoken.compress import distillation
    from kaoken.compress.scaling import check_steps

    smaller = None
    if options.student is None:
        factors = check_steps(_factors(options.steps), options.scale)
        smaller = distillation.Smaller(factors, _axes(options), options.of_parameters)
    elif options.scale is not None or options.steps is not None:
        raise InputError("--student and a scale both say how large the student is: leave one out")
    distillation.distill(
        options.out,
        options.text,
        options.teachers,
        _schedule(options),
        smaller=smaller,
        student=options.student,
        way=_way(options),
        stride=options.stride,
        holdout=options.holdout,
        say=_say,
    )


@_resumable
def _prune(options: argparse.Namespace) -> None:
    from kaoken.compress import distillation

    sparsity = _sparsity(options.sparsity)
    recovers = 0 not in (options.epochs, options.max_steps)
    distillation.prune(
        options.out,
        options.text,
        options.teacher,
        _schedule(options) if recovers else None,
        heads=options.heads,
        mlp=options.mlp,
        layers=options.layers,
        width=options.width,
        parameters=options.parameters,
        sparsity=sparsity,
        way=_way(options),
        stride=options.stride,
        holdout=options.holdout,
        say=_say,
    )
    if isinstance(sparsity, float) and sparsity >= _SPARSE:
        _say(f"so many zeros may be faster as code: kaoken bake {options.out} --kernels fastest")


def _require(module: str) -> None:
    """Loads a module of this package; KaokenError where what it needs is not installed."""
    try:
        importlib.import_module(f"kaoken.compress.{module}")
    except ModuleNotFoundError as error:
        raise KaokenError(f'{error.name} is not installed: pip install "kaoken[distill]"') from error


def _schedule(options: argparse.Namespace, preset: Schedule | None = None) -> Schedule:
    """Of the options that were given, over those of a preset."""
    from dataclasses import asdict

    from kaoken.compress.training import Schedule

    given = _given(options, Schedule)
    if "learning_rate" in given:
        given["min_learning_rate"] = given["learning_rate"] / 10
    values = {} if preset is None else asdict(preset)
    if {"epochs", "max_steps"} & given.keys():
        values |= {"epochs": None, "max_steps": None}
    elif preset is None:
        values["epochs"] = 1.0
    return Schedule(**values | given)


def _way(options: argparse.Namespace) -> Way:
    from kaoken.compress.distillation import Way
    from kaoken.compress.losses import Objective

    return Way(objective=Objective(**_given(options, Objective)), **_given(options, Way))


def _given(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that have an option of their name which was given."""
    from dataclasses import fields

    values = {each.name: getattr(options, each.name, None) for each in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def _axes(options: argparse.Namespace) -> tuple[str, ...]:
    from kaoken.compress.scaling import AXES

    return AXES if options.axes is None else tuple(options.axes.split(","))


def _factors(text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--steps is {text!r}; expected factors with commas, such as 0.9,0.7,0.5") from None


def _sparsity(text: str | None) -> float | str | None:
    if text is None or text == "2:4":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--sparsity is {text!r}; expected a share such as 0.9, or 2:4") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr)

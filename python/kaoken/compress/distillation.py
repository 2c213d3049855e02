"""Students that learn from teachers, at once or by steps, each of which teaches the next; stopped runs go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from kaoken.codegen.checkpoint import TOKENIZER
from kaoken.codegen.hub import resolve_model
from kaoken.compress import gpt2, models, pruning, students
from kaoken.compress.corpus import Corpus, Samples, read_corpus
from kaoken.compress.labels import (
    LabelFile,
    Teacher,
    baked_teacher,
    ensemble_teacher,
    plan_labels,
    torch_teacher,
    write_labels,
)
from kaoken.compress.losses import Objective, attention_loss, distillation_loss, ensemble, hidden_loss, whole_labels
from kaoken.compress.run import finish, open_run, write_json
from kaoken.compress.scaling import AXES, Shape, check_steps, resolve
from kaoken.compress.training import (
    TOKENS_AT_ONCE,
    Collate,
    Loss,
    Schedule,
    Trained,
    collate,
    evaluate,
    plain_loss,
    train_model,
)
from kaoken.errors import InputError

REPORT = "training.json"
IMPORTANCE_SAMPLES = 64  # that decide which parts of a teacher matter

Say = Callable[[str], None]


@dataclass(frozen=True)
class Smaller:
    """The sizes of the student: `factors` of the teacher's, the last of them the student's own, by `axes`.

    With `of_parameters` they are shares of the teacher's parameters instead of factors of its sizes.
    """

    factors: tuple[float, ...]
    axes: tuple[str, ...] = AXES
    of_parameters: bool = False


@dataclass(frozen=True)
class Way:
    """How a student begins and what it learns from.

    start: "teacher", whose most important parts it takes, or "random".
    online: The teacher runs beside the student in place of labels that were made before. Matching hidden states or
        attention needs that.
    top_k: Of the labels' tokens; None for all of a small vocabulary, 0 for all.
    labels: A directory where the labels of the given teachers stay, to be reused; else they are removed in the end.
    labels_from: A baked library that makes the first student's labels in the teacher's place.
    dropout: Of the student.
    """

    objective: Objective = field(default_factory=Objective)
    start: str = "teacher"
    online: bool = False
    top_k: int | None = None
    labels: str | None = None
    labels_from: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.start not in ("teacher", "random"):
            raise InputError(f"start is {self.start!r}; expected 'teacher' or 'random'")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected a share from 0 to below 1")
        matched = self.objective.hidden_weight > 0 or self.objective.attention_weight > 0
        if matched and not self.online:
            raise InputError("labels have no hidden states or attention: match those with an online teacher")
        if self.online and (self.labels, self.labels_from) != (None, None):
            raise InputError("an online teacher makes no labels: leave out online, or what says where labels are")

    def recipe(self) -> dict[str, Any]:
        """All that decides the result."""
        return {name: value for name, value in asdict(self).items() if name != "labels"}


def train(
    out: str | Path,
    text: str | Path,
    config: Mapping[str, Any],
    tokenizer: Any,
    schedule: Schedule,
    *,
    stride: int | None = None,
    holdout: float = 0.1,
    tokenizer_from: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Trains a GPT-2 from random weights on a text, into a new checkpoint directory; returns its report.

    `config` has fields of GPT2Config, `tokenizer` is a `tokenizers.Tokenizer`, saved with the model unless it is copied
    from the checkpoint `tokenizer_from`. Raises InputError for a text that is too short, and what `open_run` raises.
    """
    model = gpt2.new(config, schedule.seed)
    corpus, held_out = read_corpus(text, tokenizer, model.config.vocab_size, holdout)
    samples = corpus.samples(model.config.n_positions, stride)
    recipe = {"command": "train", "config": dict(config), "samples": samples.digest, "schedule": asdict(schedule)}
    with open_run(out, recipe) as work:
        trained = train_model(model, samples, schedule, work / "training")
        stage = _report_stage("student", model, trained, held_out)
        _save(model, work / "result", tokenizer_from)
        if tokenizer_from is None:
            (work / "result" / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        return _finish(work, recipe, [stage], say)


def _directory(teacher: str) -> Path:
    """Of a teacher. Raises InputError for a GGUF file, which transformers would not train in full precision."""
    path = resolve_model(teacher, revision=None, root=Path.cwd()).path
    if not path.is_dir():
        raise InputError(f"{teacher} is a GGUF file; expected a checkpoint with config.json and safetensors: pass one")
    return path


def distill(
    out: str | Path,
    text: str | Path,
    teachers: Sequence[str],
    schedule: Schedule,
    *,
    smaller: Smaller | None = None,
    student: str | Path | None = None,
    way: Way | None = None,
    stride: int | None = None,
    holdout: float = 0.1,
    say: Say = print,
) -> dict[str, Any]:
    """Teaches a student, or a chain of ever smaller ones, into a new checkpoint directory; returns its report.

    Of `teachers` (directories or hub ids) the first gives the student its tokenizer, sizes and beginning; several are
    an ensemble. `smaller` says the student's sizes, or `student` names a checkpoint, perhaps without weights, of any
    architecture of transformers with the same vocabulary. Each step of a chain trains by `schedule`; the steps before
    the last are kept in `stages` of the result.

    Raises InputError for options that do not fit each other or the text, KaokenError for a full disk, and what
    `open_run` raises. What is done by then is gone on from by the next call of the same arguments.
    """
    way = way or Way()
    if (smaller is None) == (student is None):
        raise InputError("expected either a scale or a student: say in one way how large the student is")
    directories = [_directory(teacher) for teacher in teachers]
    loaded = [models.load(directory) for directory in directories]
    for other in loaded[1:]:
        models.check_vocabulary(loaded[0], other)
    shapes = {} if smaller is None else _shapes(loaded[0], smaller, way.start)
    corpora = read_corpus(text, models.read_tokenizer(directories[0]), loaded[0].config.vocab_size, holdout)
    model = None if student is None else models.load_or_new(student, schedule.seed)
    recipe = {
        "command": "distill",
        "teachers": [models.digest(model) for model in loaded],
        "smaller": None if smaller is None else asdict(smaller),
        "student": None if model is None else models.digest(model),
        **_common_recipe(corpora[0], stride, schedule, way),
    }
    with open_run(out, recipe) as work:
        run = _Run(work, directories[0], loaded, corpora, stride, schedule, way, say)
        stages = run.chain(shapes) if model is None else [run.stage("student", lambda: model, run.originals)]
        run.keep(stages)
        return _finish(work, recipe, stages, say)


def prune(
    out: str | Path,
    text: str | Path,
    teacher: str,
    schedule: Schedule | None,
    *,
    heads: float = 0.0,
    mlp: float = 0.0,
    layers: int = 0,
    width: float = 0.0,
    parameters: float | None = None,
    sparsity: float | str | None = None,
    way: Way | None = None,
    stride: int | None = None,
    holdout: float = 0.1,
    say: Say = print,
) -> dict[str, Any]:
    """Cuts the least important parts out of a GPT-2 and lets it recover by distillation; returns its report.

    The shares of heads, MLP neurons and channels (`width`) that go, and the number of layers; or the share of
    `parameters` that stays; or, instead of parts, the share of zeros in every matrix, or "2:4" (`sparsity`). Without a
    schedule nothing is trained. Raises what `distill` raises.
    """
    way = way or Way()
    parts: dict[str, Any] = {"heads": heads, "mlp": mlp, "layers": layers, "width": width}
    if sum([any(parts.values()), parameters is not None, sparsity is not None]) != 1:
        raise InputError("expected heads, mlp, layers and width, or parameters, or sparsity: say in one way what goes")
    directory = _directory(teacher)
    if not models.is_gpt2(directory):
        found = models.read_config(directory)["model_type"]
        raise InputError(f"{teacher} is a {found}; expected a GPT-2: only that is pruned")
    model = gpt2.load(directory)
    corpora = read_corpus(text, models.read_tokenizer(directory), model.config.vocab_size, holdout)
    recipe = {
        "command": "prune",
        "teachers": [models.digest(model)],
        **parts,
        "parameters": parameters,
        "sparsity": sparsity,
        **_common_recipe(corpora[0], stride, schedule, way),
    }
    with open_run(out, recipe) as work:
        run = _Run(work, directory, [gpt2.load(directory)], corpora, stride, schedule, way, say)
        batches = run.batches(model.config.n_positions)
        masks: dict[str, Tensor] = {}

        def pruned() -> PreTrainedModel:
            if sparsity is not None:
                share, pattern = (None, sparsity) if isinstance(sparsity, str) else (sparsity, None)
                masks.update(pruning.mask(model, share, pattern, batches))
                return model
            if parameters is not None:
                return pruning.prune(model, batches, parameters)
            measured = pruning.importance(model, batches)
            return pruning.carve(model, pruning.choose(measured, **parts), measured)

        stage = run.stage("student", pruned, run.originals, masks)
        run.keep([stage])
        return _finish(work, recipe, [stage], say)


def _common_recipe(corpus: Corpus, stride: int | None, schedule: Schedule | None, way: Way) -> dict[str, Any]:
    return {
        "way": way.recipe(),
        "text": corpus.samples(1).digest,
        "stride": stride,
        "schedule": None if schedule is None else asdict(schedule),
    }


@dataclass
class _Run:
    """What the stages of one run share."""

    work: Path
    tokenizer_from: Path
    originals: Sequence[PreTrainedModel]  # the teachers that were given
    corpora: tuple[Corpus, Corpus]
    stride: int | None
    schedule: Schedule | None
    way: Way
    say: Say

    def chain(self, shapes: Mapping[str, Shape]) -> list[dict[str, Any]]:
        """One student for each shape; each is the next one's teacher."""
        teachers, stages = self.originals, []
        for name, shape in shapes.items():
            stages.append(self.stage(name, partial(self._begin, teachers[0], shape), teachers))
            teachers = [gpt2.load(self.work / "stages" / name)]
        return stages

    def _begin(self, teacher: gpt2.GPT2LMHeadModel, shape: Shape) -> PreTrainedModel:
        """A student of this shape."""
        assert self.schedule is not None
        if self.way.start == "random":
            return students.random_student(teacher, shape, self.schedule.seed)
        importance = pruning.importance(teacher, self.batches(teacher.config.n_positions))
        return students.carved_student(teacher, shape, importance)

    def batches(self, context: int) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of samples from all over the text."""
        samples = self.corpora[0].samples(context)
        numbers = torch.linspace(0, len(samples) - 1, min(IMPORTANCE_SAMPLES, len(samples))).long()
        pairs = (samples.gather(part.numpy()) for part in numbers.split(max(1, TOKENS_AT_ONCE // context)))
        return [(torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())) for inputs, targets in pairs]

    def stage(
        self,
        name: str,
        begin: Callable[[], PreTrainedModel],
        teachers: Sequence[PreTrainedModel],
        masks: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Trains the student that `begin` makes and saves it as a stage; its report, at once where that is there."""
        saved, report = self.work / "stages" / name, self.work / f"{name}.json"
        if report.exists():
            return dict(json.loads(report.read_text(encoding="utf-8")))
        student = begin()
        models.check_vocabulary(student, teachers[0])
        trained, size = None, 0
        if self.schedule is not None:
            if isinstance(student, gpt2.GPT2LMHeadModel):
                gpt2.set_dropout(student, self.way.dropout)
            samples = self.corpora[0].samples(models.context(student), self.stride)
            torch.manual_seed(self.schedule.seed)  # of a projection
            loss, batches, size = self._lessons(name, student, teachers, samples)
            callbacks = [_KeepZeros(masks)] if masks else []
            work = self.work / f"training-{name}"
            trained = train_model(student, samples, self.schedule, work, loss, batches, callbacks, name)
            if hasattr(student, _PROJECTION):
                delattr(student, _PROJECTION)
        result = _report_stage(name, student, trained, self.corpora[1])
        result["label_bytes"] = size
        _save(student, saved, self.tokenizer_from)
        write_json(report, result)
        shutil.rmtree(self.work / f"training-{name}", ignore_errors=True)
        shutil.rmtree(self.work / f"labels-{name}", ignore_errors=True)
        return result

    def _lessons(
        self, name: str, student: PreTrainedModel, teachers: Sequence[PreTrainedModel], samples: Samples
    ) -> tuple[Loss, Collate, int]:
        """The loss, what makes batches for it, and how many bytes of labels were written."""
        objective = self.way.objective
        if objective.hard_weight == 1:
            return plain_loss, collate(samples), 0
        if self.way.online:
            shortest = min(map(models.context, teachers))
            if samples.context > shortest:
                raise InputError(
                    f"the student has {samples.context} positions, but a teacher has {shortest}; expected no more: "
                    "choose a student of a shorter context"
                )
            return _OnlineLoss(student, teachers, objective), collate(samples), 0
        teacher = self._teacher(teachers)
        top_k, temperature = self.way.top_k, objective.temperature
        keep = self.way.labels is not None and teachers is self.originals
        directory = Path(str(self.way.labels)) if keep else self.work / f"labels-{name}"
        plan = plan_labels(samples, teacher, top_k=top_k, temperature=temperature)
        self.say(f"soft labels of {plan.count} samples: {plan.nbytes / 1e6:.1f} MB in {directory}")
        labels = write_labels(directory, samples, teacher, top_k=top_k, temperature=temperature)
        return _labelled_loss(objective), _labelled_batches(samples, labels), plan.nbytes

    def _teacher(self, teachers: Sequence[PreTrainedModel]) -> Teacher:
        if self.way.labels_from is not None and teachers is self.originals:
            return baked_teacher(self.way.labels_from)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        each = [torch_teacher(model.to(device), models.digest(model)) for model in teachers]
        return each[0] if len(each) == 1 else ensemble_teacher(each)

    def keep(self, stages: Sequence[Mapping[str, Any]]) -> None:
        """The result: the last stage, with those before it beneath."""
        result = self.work / "result"
        if result.exists():
            shutil.rmtree(result)
        for stage in stages:
            target = result if stage is stages[-1] else result / "stages" / stage["name"]
            target.mkdir(parents=True, exist_ok=True)
            for file in (self.work / "stages" / stage["name"]).iterdir():
                shutil.copyfile(file, target / file.name)


def _shapes(model: PreTrainedModel, smaller: Smaller, start: str) -> dict[str, Shape]:
    """Of each step by its name, all checked before the first is trained."""
    if not isinstance(model, gpt2.GPT2LMHeadModel):
        raise InputError("only a GPT-2 is scaled; expected a student for a teacher of another family: name one")
    shapes = {}
    for factor in check_steps(smaller.factors, None):
        count = partial(students.parameters_of, model=model)
        shape = resolve(students.shape_of(model), factor, smaller.axes, smaller.of_parameters, count)
        if start == "teacher":
            students.check_carvable(model, shape)
        shapes[f"{factor:g}"] = shape
    return shapes


def _labelled_loss(objective: Objective) -> Loss:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        return distillation_loss(logits, batch["targets"], batch["labels"].to(logits.device), objective)

    return loss


def _labelled_batches(samples: Samples, labels: LabelFile) -> Collate:
    plain = collate(samples)
    return lambda indices: {**plain(indices), "labels": labels[indices]}


_PROJECTION = "kaoken_projection"


class _OnlineLoss:
    """The teachers run beside the student. Hidden states of another width pass a projection that learns with it."""

    def __init__(self, student: PreTrainedModel, teachers: Sequence[PreTrainedModel], objective: Objective) -> None:
        self._teachers, self._objective = teachers, objective
        self._more = {"output_hidden_states": objective.hidden_weight > 0}
        if objective.attention_weight > 0:
            self._more["output_attentions"] = True
            for model in (student, *teachers):
                model.set_attn_implementation("eager")
        widths = student.config.hidden_size, teachers[0].config.hidden_size
        if objective.hidden_weight > 0 and widths[0] != widths[1]:
            setattr(student, _PROJECTION, nn.Linear(*widths, bias=False))
        for teacher in teachers:
            teacher.requires_grad_(False)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        ids, objective = batch["input_ids"], self._objective
        with torch.no_grad():
            lessons = [
                teacher.to(ids.device)(input_ids=ids, use_cache=False, **self._more) for teacher in self._teachers
            ]
            labels = whole_labels(ensemble([lesson.logits for lesson in lessons]))
        learned = model(input_ids=ids, use_cache=False, **self._more)
        total = distillation_loss(learned.logits, batch["targets"], labels, objective)
        if objective.hidden_weight > 0:
            states = learned.hidden_states[1:], lessons[0].hidden_states[1:]
            total = total + objective.hidden_weight * hidden_loss(*states, getattr(model, _PROJECTION, None))
        if objective.attention_weight > 0:
            total = total + objective.attention_weight * attention_loss(learned.attentions, lessons[0].attentions)
        return total


class _KeepZeros(TrainerCallback):
    """What was pruned stays zero."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self._masks = masks

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        pruning.keep_zero(model, self._masks)


def _report_stage(name: str, model: PreTrainedModel, trained: Trained | None, held_out: Corpus) -> dict[str, Any]:
    context = models.context(model)
    quality = evaluate(model, held_out, context) if len(held_out.tokens) > context else None
    return {
        "name": name,
        "parameters": models.parameters(model),
        "sizes": gpt2.describe(model) if isinstance(model, gpt2.GPT2LMHeadModel) else model.config.model_type,
        "evaluation": None if quality is None else asdict(quality),
        "training": None if trained is None else asdict(trained),
    }


def _save(model: PreTrainedModel, directory: Path, tokenizer_from: Path | None) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    models.save(model, directory, tokenizer_from)


def _finish(work: Path, recipe: Mapping[str, Any], stages: list[dict[str, Any]], say: Say) -> dict[str, Any]:
    report = {"recipe": dict(recipe), "stages": stages}
    write_json(work / "result" / REPORT, report)
    finish(work)
    for line in _lines(stages):
        say(line)
    return report


def _lines(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for stage in stages:
        line = f"{stage['name']:>8}  {stage['parameters']:>12,} parameters"
        quality = stage["evaluation"]
        if quality is not None:
            line += f"  loss {quality['loss']:.4f}, {quality['bits_per_byte']:.3f} bits a byte"
        yield line

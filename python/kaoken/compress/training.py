"""Training by transformers' Trainer, with the losses of distillation, from where a killed run has left off."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 (the Trainer needs it, and says so late)
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from kaoken.compress.corpus import Corpus, Samples
from kaoken.compress.run import write_json
from kaoken.errors import InputError, KaokenError

# What computes a batch's loss: (the model, its inputs [B, T], targets [B, T] and whatever else the collator added).
Loss = Callable[[nn.Module, dict[str, Any]], Tensor]
Collate = Callable[[list[int]], dict[str, Any]]

# That go through a model together where nothing is learned: a large vocabulary's logits of 2048 take 0.4 GB.
TOKENS_AT_ONCE = 2048

_STATE = "trainer_state.json"

# The option's name from transformers 5.20 on, and before.
_NAMES = ("activation_checkpointing", "gradient_checkpointing")
_CHECKPOINTING = next(name for name in _NAMES if hasattr(TrainingArguments, name))


@dataclass(frozen=True)
class Schedule:
    """How long to train and how: AdamW with a linear warm-up and a cosine, clipped at a gradient norm of 1.

    Exactly one of `epochs` and `max_steps` counts; steps are of the optimizer. The learning rate ends at
    `min_learning_rate`. Matrices decay by `weight_decay`. `bf16` computes products in bfloat16.
    """

    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 16  # samples that go through the model together
    accumulate: int = 1  # such batches a step
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta2: float = 0.99
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.max_steps is None):
            raise InputError("expected one of epochs and max_steps: say how long to train in one way")
        limits = {
            "epochs": (self.epochs is None or 0 < self.epochs < math.inf, "above 0"),
            "max_steps": (self.max_steps is None or self.max_steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "min_learning_rate": (0 <= self.min_learning_rate <= self.learning_rate, "from 0 to learning_rate"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "beta2": (0 < self.beta2 < 1, "between 0 and 1"),
            "seed": (0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
        }
        for name, (holds, expected) in limits.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number {expected}")

    def steps(self, samples: int) -> int:
        """Steps of the optimizer over so many samples."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * samples / (self.batch_size * self.accumulate)))


@dataclass(frozen=True)
class Trained:
    """What a training took."""

    steps: int
    tokens: int  # that went through the model
    seconds: float  # over all runs, when it was interrupted
    loss: float  # the mean of the last steps that were logged


@dataclass(frozen=True)
class Evaluation:
    """Of a model on a text it has not seen, in windows that do not overlap."""

    loss: float  # mean, in nats a token
    bits_per_byte: float
    accuracy: float  # share of tokens that were the likeliest
    tokens: int


def plain_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy with the text: training without a teacher."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())


def collate(samples: Samples) -> Collate:
    """Makes a batch of the samples' numbers: input_ids and targets, int64 [B, T]."""

    def batch(indices: list[int]) -> dict[str, Any]:
        inputs, targets = samples.gather(np.asarray(indices, np.int64))
        return {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    return batch


def train_model(
    model: nn.Module,
    samples: Samples,
    schedule: Schedule,
    work: Path,
    loss: Loss = plain_loss,
    batches: Collate | None = None,
    callbacks: list[TrainerCallback] | None = None,
    what: str = "training",
) -> Trained:
    """Trains `model` in place (it ends on the CPU, in eval mode), or loads what an earlier call has left in `work`.

    The same seed, machine and number of threads give the same weights, also after a kill. `work` holds checkpoints, of
    which the last whole one is gone on from; it stays the caller's.

    Raises KaokenError where the loss is not finite, and where a checkpoint cannot be written.
    """
    arguments = _arguments(schedule, len(samples), work)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of writing a file; the Trainer's own stays
    progress, clock = _Progress(what), _Clock(work)
    every = [*(callbacks or []), progress, clock]
    trainer = _Trainer(model, arguments, _Numbers(len(samples)), loss, batches or collate(samples), every)
    checkpoint = _last_checkpoint(work)
    if checkpoint is not None and _step(checkpoint) >= arguments.max_steps:  # from there the Trainer would step on
        load_model(model, checkpoint / "model.safetensors")
        trainer.state = TrainerState.load_from_json(str(checkpoint / _STATE))
        clock.load(trainer.state.global_step)
    else:
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            progress.close()
    steps = trainer.state.global_step
    tokens = steps * min(schedule.batch_size, len(samples)) * schedule.accumulate * samples.context
    result = Trained(steps, tokens, clock.seconds, trainer.last_loss())
    model.to("cpu").eval()
    return result


def evaluate(model: nn.Module, corpus: Corpus, context: int) -> Evaluation:
    """The model on every whole window of `context` tokens of a text. InputError where the text is shorter."""
    samples = corpus.samples(context)
    model.eval()
    device = next(model.parameters()).device
    total, right, count = 0.0, 0, 0
    batch_size = max(1, TOKENS_AT_ONCE // context)
    for start in range(0, len(samples), batch_size):
        indices = np.arange(start, min(start + batch_size, len(samples)))
        inputs, targets = (torch.from_numpy(array).to(device) for array in samples.gather(indices))
        with torch.no_grad():
            logits = model(input_ids=inputs, use_cache=False).logits.float()
        total += float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        right += int((logits.argmax(-1) == targets).sum())
        count += targets.numel()
    nats = total / count
    return Evaluation(nats, nats / math.log(2) * len(corpus.tokens) / corpus.size, right / count, count)


class _Trainer(Trainer):
    """Trainer over numbers of samples, which the collator turns into batches, with a loss of ours."""

    # The loss is a mean over the batch, so the Trainer divides it by the batches of a step.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        numbers: Dataset[int],
        loss: Loss,
        batches: Collate,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model, arguments, data_collator=batches, train_dataset=numbers, callbacks=callbacks)
        self.model_accepts_loss_kwargs = False
        self._loss = loss
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        loss = self._loss(model, inputs)
        if not torch.isfinite(loss):
            raise KaokenError(
                f"the loss is {loss.item()} after {self.state.global_step} steps; expected a finite one: lower the "
                "learning rate, and start again in another directory"
            )
        return loss

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        try:
            super()._save_checkpoint(*arguments, **options)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises a RuntimeError for a full disk
            raise KaokenError(
                f"a checkpoint cannot be written to {self.args.output_dir} ({str(error).splitlines()[0]}): free some "
                "space; the same command goes on from the checkpoint before"
            ) from error

    def last_loss(self) -> float:
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return float(losses[-1]) if losses else math.nan


class _Numbers(Dataset[int]):
    """The numbers of all samples."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return int(index)


class _Progress(TrainerCallback):
    """A bar with the loss and the time left; where stderr is no terminal it is drawn twice a minute."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interval = 0.1 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._what,
            unit="step",
            mininterval=interval,
            maxinterval=max(10, interval),
            dynamic_ncols=True,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Clock(TrainerCallback):
    """Seconds of training, over all runs: those up to each checkpoint are kept beside the checkpoints."""

    def __init__(self, work: Path) -> None:
        self._file = work / "seconds.json"
        self._before = 0.0
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.load(state.global_step)

    def load(self, step: int) -> None:
        """Goes on from the seconds of this step."""
        if step and self._file.exists():
            self._before = json.loads(self._file.read_text(encoding="utf-8")).get(str(step), 0.0)
        self._begin = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_json(self._file, {str(state.global_step): self.seconds})


def _arguments(schedule: Schedule, samples: int, work: Path) -> TrainingArguments:
    steps = schedule.steps(samples)
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulate,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": schedule.min_learning_rate},
        warmup_steps=min(schedule.warmup_steps, steps // 2),
        weight_decay=schedule.weight_decay,
        adam_beta1=0.9,
        adam_beta2=schedule.beta2,
        max_grad_norm=1.0,
        seed=schedule.seed,
        data_seed=schedule.seed,
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused there
        bf16=schedule.bf16,
        **{_CHECKPOINTING: schedule.gradient_checkpointing},
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=max(1, min(20, steps // 10)),
        save_strategy="steps",
        save_steps=max(1, min(500, steps // 2)),
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_drop_last=samples >= schedule.batch_size,
        report_to="none",
    )


def _last_checkpoint(work: Path) -> Path | None:
    """The last checkpoint that was written to its end, which is the state of the Trainer."""
    return max(_whole_checkpoints(work), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-")[-1])


def _whole_checkpoints(work: Path) -> Iterator[Path]:
    for state in work.glob(f"checkpoint-*/{_STATE}"):
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except ValueError:
            continue
        yield state.parent

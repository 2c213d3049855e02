"""`kaoken eval`: what a baked model makes of a text, alone and beside the checkpoint or the library it should equal."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaoken.causal import BakedCausalLM
from kaoken.encoder import BakedEncoder
from kaoken.errors import InputError
from kaoken.model import BakedModel, load
from kaoken.progress import Bar
from kaoken.windows import cut

CONTEXT = 512  # positions of a window, where the model has so many
LINES = 2000  # of texts, whose similarities in pairs are ranked

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class DecoderEvaluation:
    """Of the tokens that were predicted: all but the first eighth of each window, which gives them a context."""

    model: str
    dtype: str
    context: int  # tokens of a window
    windows: int
    tokens: int  # that were predicted
    perplexity: float  # e to the mean of -log p
    bits_per_byte: float  # of the text in UTF-8
    tokens_per_second: float  # read, with the logits of every position
    against: str | None = None
    against_perplexity: float | None = None
    kl_divergence: float | None = None  # mean over tokens, in nats, of this model from the other
    top1_agreement: float | None = None  # share of positions whose likeliest token is the other's


@dataclass(frozen=True)
class EncoderEvaluation:
    """Of the vectors of a text's lines, beside those of another model."""

    model: str
    dtype: str
    lines: int
    against: str
    least_cosine: float
    mean_cosine: float
    rank_correlation: float  # Spearman's, of the similarities of all pairs of lines


def evaluate(
    model: BakedModel,
    text: str,
    *,
    against: str | os.PathLike[str] | None = None,
    context: int | None = None,
    show_progress_bar: bool = False,
) -> DecoderEvaluation | EncoderEvaluation:
    """What `model` makes of `text`.

    Args:
        model: A decoder, or an encoder that has `encode`.
        text: For a decoder cut into windows; for an encoder one text a line, of which the first 2000 count.
        against: What the model should equal: a checkpoint, which is baked in float32 (`kaoken.bake` keeps it), or a
            baked library. An encoder needs one.
        context: Tokens of a window (default: 512, or the model's context where that is less).
        show_progress_bar: On standard error.

    Raises:
        InputError: The model is of another kind, has no tokenizer or no `encode`, `against` is of another shape, or the
            text is too short.
    """
    if isinstance(model, BakedCausalLM):
        return _evaluate_decoder(model, text, against, context, show_progress_bar)
    if isinstance(model, BakedEncoder) and model.config.task == "sentence-similarity":
        if context is not None:
            raise InputError("context is for decoders: an encoder reads a line at a time")
        return _evaluate_encoder(model, text, against, show_progress_bar)
    raise InputError(
        f"{model.info.name} is for {model.config.task}; expected a decoder, or an encoder with a modules.json, whose "
        "vectors can be compared"
    )


def _evaluate_decoder(
    model: BakedCausalLM, text: str, against: str | os.PathLike[str] | None, context: int | None, show: bool
) -> DecoderEvaluation:
    context = min(CONTEXT, model.config.n_positions) if context is None else context
    if not 2 <= context <= model.config.n_positions:
        raise InputError(f"context is {context}; expected 2 to the model's {model.config.n_positions}")
    windows, first, size = cut(model.tokenizer, text, context)
    other = None if against is None else _other(against, model)
    seconds = nats = their_nats = divergence = 0.0
    agreeing = 0
    with Bar(len(windows), "window", show) as bar:
        for window in windows:
            begin = time.perf_counter()
            logits = model.logits(window[None])[0, first - 1 : -1]
            seconds += time.perf_counter() - begin
            targets = window[first:]
            ours = _log_probabilities(logits)
            nats -= _chosen(ours, targets)
            if other is not None:
                theirs = _log_probabilities(other.logits(window[None])[0, first - 1 : -1])
                their_nats -= _chosen(theirs, targets)
                divergence += float((np.exp(theirs) * (theirs - ours)).sum(dtype=np.float64))
                agreeing += int((theirs.argmax(axis=-1) == ours.argmax(axis=-1)).sum())
            bar.advance(1)
    tokens = len(windows) * (context - first)
    beside: dict[str, Any] = {}
    if other is not None:
        beside = {
            "against": f"{other.info.name} in {other.info.dtype}",
            "against_perplexity": math.exp(their_nats / tokens),
            "kl_divergence": divergence / tokens,
            "top1_agreement": agreeing / tokens,
        }
    return DecoderEvaluation(
        model=model.info.name,
        dtype=model.info.dtype,
        context=context,
        windows=len(windows),
        tokens=tokens,
        perplexity=math.exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / size,
        tokens_per_second=windows.size / seconds,
        **beside,
    )


def _log_probabilities(logits: Logits) -> Logits:
    shifted: Logits = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _chosen(log_probabilities: Logits, targets: NDArray[np.int64]) -> float:
    return float(np.take_along_axis(log_probabilities, targets[:, None], axis=-1).sum(dtype=np.float64))


def _evaluate_encoder(
    model: BakedEncoder, text: str, against: str | os.PathLike[str] | None, show: bool
) -> EncoderEvaluation:
    if against is None:
        raise InputError("an encoder is evaluated against another model: name its checkpoint or a float32 library")
    lines = [line for line in text.splitlines() if line.strip()][:LINES]
    if len(lines) < 3:
        raise InputError(f"the text has {len(lines)} lines that are not empty; expected at least 3, a text each")
    other = _other(against, model)
    ours, theirs = (_unit(each.encode(lines, show_progress_bar=show)) for each in (model, other))
    cosines = (ours * theirs).sum(axis=1)
    pairs = np.triu_indices(len(lines), 1)
    ranks, their_ranks = (_ranks((vectors @ vectors.T)[pairs]) for vectors in (ours, theirs))
    return EncoderEvaluation(
        model=model.info.name,
        dtype=model.info.dtype,
        lines=len(lines),
        against=f"{other.info.name} in {other.info.dtype}",
        least_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        rank_correlation=float(np.corrcoef(ranks, their_ranks)[0, 1]),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.maximum(lengths, np.finfo(np.float64).tiny)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each value among all; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    places: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return places


def _other(against: str | os.PathLike[str], model: BakedModel) -> Any:
    """The model of a library or of a checkpoint in float32, which must take and give what `model` does."""
    from kaoken.baking import bake
    from kaoken.codegen.model_names import is_gguf

    path = Path(against)
    library = path.is_file() and not is_gguf(path)
    other = load(path if library else bake(against, dtype="float32"))
    if _shape(other) != _shape(model):
        raise InputError(
            f"{os.fspath(against)} is another kind of model than {model.info.name}, or has another vocabulary or width "
            "of vectors: name what it was made of"
        )
    return other


def _shape(model: BakedModel) -> tuple[object, ...]:
    config = model.config
    return (config.kind, config.task, config.vocab_size, config.output_width if config.kind == "encoder" else None)


def lines(result: DecoderEvaluation | EncoderEvaluation) -> Iterator[str]:
    """For people."""
    yield f"{result.model} in {result.dtype}"
    if isinstance(result, EncoderEvaluation):
        yield f"{result.lines} lines against {result.against}"
        yield f"least cosine      {result.least_cosine:.6f}"
        yield f"mean cosine       {result.mean_cosine:.6f}"
        yield f"rank correlation  {result.rank_correlation:.6f} (of the similarities of all pairs)"
        return
    yield f"{result.windows} windows of {result.context} tokens, {result.tokens} of them predicted"
    yield f"perplexity     {result.perplexity:.4f}"
    yield f"bits per byte  {result.bits_per_byte:.4f}"
    yield f"tokens/s       {result.tokens_per_second:.0f} (read, with all logits)"
    if result.against_perplexity is not None:
        change = 100 * (result.perplexity / result.against_perplexity - 1)
        yield f"against {result.against}, whose perplexity is {result.against_perplexity:.4f}: {change:+.2f} %"
        yield f"KL divergence  {result.kl_divergence:.5f} nats"
        yield f"top-1 agreed   {100 * (result.top1_agreement or 0):.2f} %"

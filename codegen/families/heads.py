"""The heads of encoders as transformers has them: which one a config asks for, its tensors, labels and scores.

Families give the names of their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import UnsupportedModelError
from ..graph import Head, Layer, Linear, Task, Tensor
from .fields import Fields
from .weights import Weights

MAX_LABELS = 1 << 16

# What makes scores of a classifier's logits, as torch's modules are named in the configs of rerankers.
SCORES = {
    f"{package}.{name}": function
    for name, function in {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}.items()
    for package in ("torch.nn", "torch.nn.modules", "torch.nn.modules.activation", "torch.nn.modules.linear")
}

Read = tuple[Head, Task]


def read_head(fields: Fields, readers: Mapping[str, Callable[[], Read] | None]) -> tuple[Head | None, Task]:
    """What the reader of the config's architecture reads; the first is the default, None an encoder without a head."""
    found = fields.get("architectures") or [next(iter(readers))]
    reader = readers[found if isinstance(found, str) else found[0]]
    return (None, Task("")) if reader is None else reader()


def architectures(prefix: str) -> tuple[str, ...]:
    """The five classes that most families have."""
    tasks = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    return tuple(prefix + task for task in tasks)


def readers(
    classes: tuple[str, ...],
    fields: Fields,
    weights: Weights,
    width: int,
    masked: Callable[[], Read],
    layer: Callable[[], Layer],
    output: str = "classifier",
) -> dict[str, Callable[[], Read] | None]:
    """For `read_head`, of `architectures`; `output` classifies texts, behind a layer of their first position."""

    def of_text() -> Read:
        return sequence(fields, weights, output, layer())

    def of_tokens() -> Read:
        return token(fields, weights, "classifier", width)

    def of_answers() -> Read:
        return answers(weights, "qa_outputs", width)

    return dict(zip(classes, (None, masked, of_text, of_tokens, of_answers), strict=True))


def masked(
    fields: Fields, tokens: Tensor, layer: Layer, weights: Weights, table: str, bias: str, copy: str | None = None
) -> Read:
    """Logits of the vocabulary: `table` is the matrix's name, `bias` that of its bias, `copy` what else that is called.

    Where they are tied the matrix is the table of `tokens`.
    """
    matrix = weights.head(table, tokens, fields.boolean("tie_word_embeddings", True))
    vector = weights.tensor(bias, tokens.shape[:1])
    vector = vector if copy is None else weights.copy(copy, vector)
    return Head(Linear(matrix, vector), (layer,)), Task("fill-mask")


def sequence(fields: Fields, weights: Weights, output: str, layer: Layer, pooling: str = "first") -> Read:
    """Logits of a text's labels, from a layer behind what its positions are pooled to."""
    labels = read_labels(fields)
    classifier = weights.linear(output, len(labels.names), layer.linear.weight.shape[0])
    return Head(classifier, (layer,), (pooling,)), labels.task("text-classification")


def token(fields: Fields, weights: Weights, output: str, width: int, *layers: Layer) -> Read:
    """Logits of each position's labels."""
    labels = read_labels(fields)
    return Head(weights.linear(output, len(labels.names), width), layers), labels.task("token-classification")


def answers(weights: Weights, output: str, width: int, *layers: Layer) -> Read:
    """How well an answer begins, and how well it ends, at each position."""
    return Head(weights.linear(output, 2, width), layers), Task("question-answering", ("start", "end"))


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier, one an output."""

    names: tuple[str, ...]
    function: str  # of transformers' text-classification pipeline
    score: str  # of sentence-transformers' CrossEncoder

    def task(self, name: str) -> Task:
        return Task(name, self.names, self.function, self.score)


def read_labels(fields: Fields) -> Labels:
    """From id2label, or num_labels where that is missing; transformers' default are two."""
    labels = _names(fields)
    kinds = {
        "regression": "none",
        "single_label_classification": "softmax",
        "multi_label_classification": "sigmoid",
    }
    usual = "sigmoid" if len(labels) == 1 else "softmax"
    problem = fields.get("problem_type")
    function = usual if problem is None else fields.choice("problem_type", "", kinds)
    if len(labels) == 1 and function == "softmax":
        function = "sigmoid"
    return Labels(labels, function, _score_function(fields) or ("sigmoid" if len(labels) == 1 else "none"))


def _names(fields: Fields) -> tuple[str, ...]:
    given = fields.get("id2label")
    if given is None:
        count = fields.integer("num_labels", 2, MAX_LABELS)
        return tuple(f"LABEL_{index}" for index in range(count))
    expected = "an object with a name for each of 0, 1, 2 ..."
    if not isinstance(given, dict) or not 1 <= len(given) <= MAX_LABELS:
        raise fields.fail("id2label", expected)
    labels = [given.get(str(index)) for index in range(len(given))]
    if not all(isinstance(label, str) for label in labels):
        raise fields.fail("id2label", expected)
    if fields.get("num_labels", len(labels)) != len(labels):
        raise fields.fail("num_labels", f"{len(labels)}, as many as id2label names")
    return tuple(map(str, labels))


def _score_function(fields: Fields) -> str | None:
    """The function that a reranker's config names, in its new place or in its old one."""
    new, old = fields.get("sentence_transformers"), fields.get("sbert_ce_default_activation_function")
    named = new.get("activation_fn") if isinstance(new, dict) else None
    named = old if named is None else named
    if named is None:
        return None
    if not isinstance(named, str) or named not in SCORES:
        raise UnsupportedModelError(
            f"{fields.where}: the activation function of scores is {str(named)[:80]!r}; expected one of "
            f"{', '.join(SCORES)}: choose a checkpoint with one of these"
        )
    return SCORES[named]

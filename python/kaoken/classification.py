"""Baked classifiers and rerankers: `BakedClassifier`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken.arguments import TokenIds, integer
from kaoken.encoder import BATCH_SIZE, BakedEncoder, count_of, gathered, is_flat, is_texts
from kaoken.errors import InputError
from kaoken.text import Text, is_one_text

Label: TypeAlias = dict[str, Any]  # label: str, score: float

FUNCTIONS = ("softmax", "sigmoid", "none")


class BakedClassifier(BakedEncoder):
    """A baked classifier of texts or of pairs. Arguments, attributes and errors are those of `BakedModel`."""

    task = "text-classification"
    calls = "classify(texts), score(pairs) or logits(ids)"

    def classify(
        self,
        texts: Text | Iterable[Text | list[str]] | TokenIds,
        top_k: int | None = 1,
        *,
        token_type_ids: ArrayLike | None = None,
        function_to_apply: str | None = None,
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool | None = None,
    ) -> list[Label] | list[list[Label]]:
        """The likeliest label of each text as {"label": str, "score": float}, as transformers' pipeline gives it.

        texts: a str, or a pair as a tuple of two; or an iterable of them, in which a pair may be a list too; or token
            ids as for `hidden_states`, of which a flat list is a single text.
        top_k: so many labels of each text, the likeliest first, as a list for each text, or for a single text one list;
            None is all of them.
        function_to_apply: "softmax", "sigmoid" or "none", which makes scores of logits; by default as the checkpoint's
            problem_type says, else sigmoid for one label and softmax for several.
        Longer texts than the checkpoint's tokenizer takes are cut; where it sets no limit, they are an InputError, as
        are other wrong arguments.
        """
        count = None if top_k is None else integer("top_k", top_k, minimum=1)
        apply = _function("function_to_apply", function_to_apply, self.config.function)
        logits = self._all_logits(texts, token_type_ids, batch_size, show_progress_bar)
        scores = applied(logits, apply)
        if count == 1:
            best = scores.argmax(1)
            return [self._label(int(index), row) for index, row in zip(best, scores, strict=True)]
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        labels = [[self._label(int(index), row) for index in order] for order, row in zip(ranked, scores, strict=True)]
        return labels[0] if _is_single(texts) else labels

    def score(
        self,
        pairs: Text | Iterable[Text | list[str]] | TokenIds,
        *,
        token_type_ids: ArrayLike | None = None,
        activation: str | None = None,
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32]:
        """How well the texts of each pair fit, as sentence_transformers.CrossEncoder.predict gives it.

        float32 [pairs] of a model with one output, else [pairs, labels]; of a single pair the same without the first.

        pairs: as texts of `classify`.
        activation: "sigmoid", "softmax" or "none"; by default as the checkpoint says, else sigmoid for one output and
            none for several.
        """
        apply = _function("activation", activation, self.config.score_function)
        scores = applied(self._all_logits(pairs, token_type_ids, batch_size, show_progress_bar, cut=True), apply)
        scores = scores[:, 0] if scores.shape[1] == 1 else scores
        return np.asarray(scores[0]) if _is_single(pairs) else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """The documents that fit a query, the best first, as sentence_transformers.CrossEncoder.rank gives them.

        A list of {"corpus_id": int, "score": float}, with "text" where return_documents is set; at most top_k of them.
        Raises InputError where the model has more than one output.
        """
        if self.config.output_width != 1:
            raise InputError(
                f"the model {self.info.name} has {self.config.output_width} outputs, and ranking takes one: use score"
            )
        if not isinstance(query, str) or isinstance(documents, (str, Mapping)):
            raise InputError("rank takes one query, a str, and a list of documents")
        count = None if top_k is None else integer("top_k", top_k, minimum=1)
        texts = list(documents)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"document {index} must be a str, not {type(text).__name__}")
        scores = self.score(
            [(query, text) for text in texts], batch_size=batch_size, show_progress_bar=show_progress_bar
        )
        order = np.argsort(-scores, kind="stable")[:count].tolist()
        found = [{"corpus_id": index, "score": float(scores[index])} for index in order]
        return [{**each, "text": texts[each["corpus_id"]]} for each in found] if return_documents else found

    def _label(self, index: int, scores: NDArray[np.float32]) -> Label:
        return {"label": self.config.labels[index], "score": float(scores[index])}

    def _all_logits(
        self,
        texts: Any,
        token_type_ids: ArrayLike | None,
        batch_size: int,
        show_progress_bar: bool | None,
        cut: bool = False,
    ) -> NDArray[np.float32]:
        """Of each text [texts, outputs]; `cut` cuts at what the model takes where the checkpoint sets no limit."""
        if not is_texts(texts):
            return np.asarray(self.logits(texts, token_type_ids))
        if token_type_ids is not None:
            raise InputError("token_type_ids go with ids; texts have those that the tokenizer gives: leave them out")
        given = [texts] if is_one_text(texts) else texts
        reader = self._cutting_reader if cut else self._reader
        passes = self._passes(given, count_of(given), batch_size, show_progress_bar, reader, pairs=True)
        return gathered((outputs for _, _, outputs in passes), count_of(given), self.config.output_width)


def _is_single(texts: Any) -> bool:
    """Whether these are a text, a pair, or the ids of one."""
    return is_one_text(texts) or (not is_texts(texts) and is_flat(texts))


def _function(argument: str, given: str | None, own: str) -> str:
    """What makes scores of logits: what is given, or the model's own."""
    if given is not None and given not in FUNCTIONS:
        raise InputError(f"{argument} is {given!r}: expected one of {', '.join(FUNCTIONS)}")
    return own if given is None else given


def applied(logits: NDArray[np.float32], function: str) -> NDArray[np.float32]:
    """Scores [texts, labels] of logits, by one of FUNCTIONS."""
    if function == "softmax":
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(-1, keepdims=True), np.float32)
    if function == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    return logits

"""Baked models that find the answer to a question in a text: `BakedQuestionAnswering`.

The algorithm is the QuestionAnsweringPipeline's of transformers 4, which version 5 no longer has:
https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/pipelines/question_answering.py
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaoken.arguments import integer
from kaoken.encoder import BakedEncoder
from kaoken.errors import InputError
from kaoken.text import check_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Answer: TypeAlias = dict[str, Any]

_MAX_SEQ_LEN = 384
_HIDDEN = -10000.0  # the logit of a token that cannot be in an answer


class BakedQuestionAnswering(BakedEncoder):
    """A baked model that answers questions about a text. Arguments, attributes and errors are those of `BakedModel`."""

    task = "question-answering"
    calls = "answer(question, context) or logits(ids)"

    def answer(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        *,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Answer | list[Answer]:
        """The part of the context that answers the question, {"score", "start", "end", "answer"}.

        With top_k above 1 a list of so many, the likeliest first. start and end count characters of the context.
        Spans with the same text but for capitals, in windows that overlap or elsewhere in the context, are one answer
        with the sum of their scores, which may pass 1.

        doc_stride: tokens that windows of a long context share; by default 128, or half of max_seq_len.
        max_answer_len: tokens of an answer at most.
        max_seq_len: tokens of the question and a window; by default 384, or what the model takes.
        handle_impossible_answer: whether "" may be the answer, with the score that there is none.
        align_to_words: whether an answer begins and ends with whole words.
        Raises InputError for an empty question or context, and for a question that leaves no room.
        """
        count = integer("top_k", top_k, minimum=1)
        longest = integer("max_answer_len", max_answer_len, minimum=1)
        for index, text in enumerate((question, context)):
            check_text(text, index)
            if not isinstance(text, str) or not text:
                raise InputError(f"the {('question', 'context')[index]} must be a text that is not empty")
        windows = self._windows(question, context, max_seq_len, doc_stride)
        texts, types = self._sequences(windows)
        none = 1.0
        answers: dict[str, Answer] = {}
        spans = 2 * count + 10 if align_to_words else count  # several may lie in the same words
        for window, logits in zip(windows, texts.split(self._encode(texts, types)), strict=True):
            starts, ends = self._probabilities(window, logits)
            none = min(none, float(starts[0] * ends[0]))
            starts[0] = ends[0] = 0.0
            for first, last, score in _spans(starts, ends, spans, longest, self._allowed(window)):
                begin, end = _characters(window, first, last, align_to_words)
                answer = {"score": 0.0, "start": begin, "end": end, "answer": context[begin:end]}
                answers.setdefault(context[begin:end].lower(), answer)["score"] += score
        found = [*answers.values()]
        if handle_impossible_answer:
            found.append({"score": none, "start": 0, "end": 0, "answer": ""})
        found.sort(key=lambda each: -float(each["score"]))
        return found[0] if count == 1 and found else found[:count]

    def _windows(self, question: str, context: str, max_seq_len: int | None, doc_stride: int | None) -> list[Encoding]:
        """The question with each part of the context that fits beside it."""
        limit = self.config.n_positions if self._own_limit is None else self._own_limit
        length = min(limit, _MAX_SEQ_LEN if max_seq_len is None else integer("max_seq_len", max_seq_len, minimum=1))
        stride = min(length // 2, 128) if doc_stride is None else integer("doc_stride", doc_stride, minimum=0)
        tokenizer = self._untruncated
        asked = tokenizer.encode(question, add_special_tokens=False)
        room = length - len(asked) - tokenizer.num_special_tokens_to_add(True)
        if room <= stride:
            raise InputError(
                f"the question has {len(asked)} tokens and leaves {max(room, 0)} of {length} for the context, of which "
                f"windows share {stride}: shorten it, or pass a smaller doc_stride"
            )
        given = tokenizer.encode(context, add_special_tokens=False)
        given.truncate(room, stride=stride)
        return [tokenizer.post_process(asked, part) for part in (given, *given.overflowing)]

    @cached_property
    def _untruncated(self) -> Tokenizer:
        return self._make_reader(None).tokenizer

    def _allowed(self, window: Encoding) -> NDArray[np.bool_]:
        """The tokens of the context, and the first special token, which may say that there is no answer."""
        first = window.ids[0]
        own = [part == 1 or token == first for part, token in zip(window.sequence_ids, window.ids, strict=True)]
        return np.array(own)

    def _probabilities(
        self, window: Encoding, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """That an answer starts and ends at each token."""
        shown = np.where(self._allowed(window)[:, None], logits.astype(np.float64), _HIDDEN)
        exponentials = np.exp(shown - shown.max(0))
        both = exponentials / exponentials.sum(0)
        return both[:, 0].copy(), both[:, 1].copy()


def _spans(
    starts: NDArray[np.float64], ends: NDArray[np.float64], count: int, longest: int, allowed: NDArray[np.bool_]
) -> Iterator[tuple[int, int, float]]:
    """The likeliest spans: first and last token, and the product of the two probabilities."""
    scores = np.tril(np.triu(np.outer(starts, ends)), longest - 1)
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")[:count]
    for first, last in zip(*np.unravel_index(order, scores.shape), strict=True):
        if allowed[first] and allowed[last]:
            yield int(first), int(last), float(scores[first, last])


def _characters(window: Encoding, first: int, last: int, whole_words: bool) -> tuple[int, int]:
    """Where a span begins and ends in the context."""
    begin, end = window.offsets[first][0], window.offsets[last][1]
    if not whole_words:
        return begin, end
    words = (_word(window, first), _word(window, last))
    return (begin, end) if None in words else (words[0][0], words[1][1])  # type: ignore[index]


def _word(window: Encoding, token: int) -> tuple[int, int] | None:
    """Where the word of a token stands."""
    word = window.token_to_word(token)
    return None if word is None else window.word_to_chars(word, 1)

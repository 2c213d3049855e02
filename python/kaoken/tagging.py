"""Baked token classifiers: `BakedTokenClassifier`.

Entities are put together as transformers' TokenClassificationPipeline does it:
https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/token_classification.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaoken.classification import applied
from kaoken.encoder import BATCH_SIZE, BakedEncoder, count_of, is_texts
from kaoken.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding

Entity: TypeAlias = dict[str, Any]

STRATEGIES = ("none", "simple", "first", "average", "max")


class BakedTokenClassifier(BakedEncoder):
    """A baked classifier of tokens, such as a tagger of names. Arguments, attributes and errors are `BakedModel`'s."""

    task = "token-classification"
    calls = "tag(text) or logits(ids)"

    def tag(
        self,
        texts: str | Iterable[str],
        aggregation_strategy: str = "none",
        *,
        ignore_labels: Sequence[str] = ("O",),
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool | None = None,
    ) -> list[Entity] | list[list[Entity]]:
        """The entities of a text, or a list of them for each of several, as transformers' pipeline gives them.

        With "none" there is one for each token, {"entity", "score", "index", "word", "start", "end"}. Other strategies
        join neighbours of the same label, {"entity_group", "score", "word", "start", "end"}: "simple" those that differ
        in B- and I- alone, "first", "average" and "max" give all parts of a word one label, that of its first part, of
        the average of its scores, or of its highest score.

        start and end count characters of the text. Longer texts than the checkpoint's tokenizer takes are cut; where it
        sets no limit, they are an InputError, as are other wrong arguments. Of token ids use `logits`.
        """
        if aggregation_strategy not in STRATEGIES:
            raise InputError(
                f"aggregation_strategy is {aggregation_strategy!r}: expected one of {', '.join(STRATEGIES)}"
            )
        if not is_texts(texts):
            raise InputError("tag takes texts, as entities are places in them: of token ids use logits")
        given = [texts] if isinstance(texts, str) else texts
        found: list[list[Entity]] = []
        passes = self._passes(
            given, count_of(given), batch_size, show_progress_bar, self._reader, pairs=False, offsets=True
        )
        for batch, read, logits in passes:
            ends = np.cumsum([len(tokens) for tokens in read])
            scores = np.split(applied(logits, "softmax"), ends[:-1])
            for text, tokens, rows in zip(batch, read, scores, strict=True):
                entities = self._aggregate(list(self._tokens(text, tokens, rows)), aggregation_strategy)
                found.append([each for each in entities if _label_of(each) not in ignore_labels])
        return found[0] if isinstance(texts, str) else found

    def _tokens(self, text: str, read: Encoding, scores: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
        """Of each token that is not special: its word, scores, place, and whether it goes on with a word."""
        whole_words = bool(getattr(self._reader.tokenizer.model, "continuing_subword_prefix", None))
        unknown = self._text.get("unk_token")
        rows = zip(read.tokens, read.offsets, read.special_tokens_mask, scores, strict=True)
        for index, (word, (start, end), special, row) in enumerate(rows):
            if special:
                continue
            part = text[start:end]
            inside = start > 0 and " " not in text[start - 1 : start + 1]
            continues = len(word) != len(part) if whole_words else inside
            if word == unknown:
                word, continues = part, False
            yield {"word": word, "scores": row, "start": start, "end": end, "index": index, "continues": continues}

    def _aggregate(self, tokens: list[dict[str, Any]], strategy: str) -> list[Entity]:
        if strategy in ("none", "simple"):
            entities = [self._entity(token) for token in tokens]
        else:
            entities = [self._word_entity(word, strategy) for word in _words(tokens)]
        return entities if strategy == "none" else [self._group(group) for group in _groups(entities)]

    def _entity(self, token: dict[str, Any]) -> Entity:
        best = int(token["scores"].argmax())
        entity = {"entity": self.config.labels[best], "score": float(token["scores"][best])}
        return {**entity, **{name: token[name] for name in ("index", "word", "start", "end")}}

    def _word_entity(self, tokens: list[dict[str, Any]], strategy: str) -> Entity:
        """One label for the parts of a word."""
        if strategy == "average":
            scores = np.stack([token["scores"] for token in tokens]).mean(0)
        elif strategy == "max":
            scores = max((token["scores"] for token in tokens), key=lambda row: float(row.max()))
        else:
            scores = tokens[0]["scores"]
        best = int(scores.argmax())
        return {
            "entity": self.config.labels[best],
            "score": float(scores[best]),
            "word": self._joined([token["word"] for token in tokens]),
            "start": tokens[0]["start"],
            "end": tokens[-1]["end"],
        }

    def _group(self, entities: list[Entity]) -> Entity:
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in entities])),
            "word": self._joined([entity["word"] for entity in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }

    def _joined(self, words: list[str]) -> str:
        decoder = self._reader.tokenizer.decoder
        return " ".join(words) if decoder is None else str(decoder.decode(words))


def _words(tokens: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The tokens of each word."""
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if words and token["continues"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(entities: list[Entity]) -> list[list[Entity]]:
    """Neighbours of the same label; B- begins a new one."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, tag = _tag(entity["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _label_of(entity: Entity) -> str:
    return str(entity.get("entity", entity.get("entity_group")))

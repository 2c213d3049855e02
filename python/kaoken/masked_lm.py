"""Baked masked language models: `BakedMaskedLM`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaoken.arguments import Sequences, TokenIds, integer
from kaoken.classification import applied
from kaoken.encoder import BakedEncoder, batches, is_flat, is_texts, refuse_pairs
from kaoken.errors import InputError, KaokenError

Filling: TypeAlias = dict[str, Any]

TEXTS_AT_ONCE = 32


class BakedMaskedLM(BakedEncoder):
    """A baked masked language model. Arguments, attributes and errors are those of `BakedModel`."""

    task = "fill-mask"
    calls = "fill_mask(text) or logits(ids)"

    def fill_mask(
        self, texts: str | Iterable[str] | TokenIds, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> list[Any]:
        """What the mask of a text likely stands for, the likeliest first, as transformers' pipeline gives it.

        Of one text with one mask a list of {"score", "token", "token_str", "sequence"}; with several masks a list of
        such lists; of several texts a list of those.

        texts: a str with the tokenizer's mask token in it, an iterable of them, or token ids with its id.
        targets: words to choose from, each a token of the vocabulary, or the first token of what it is cut into.
        Raises InputError for a text without a mask.
        """
        masked = self._mask_id()
        count = integer("top_k", top_k, minimum=1)
        chosen = None if targets is None else self._target_ids(targets)
        filled: list[Any] = []
        for sequences, types in self._read(texts):
            rows = sequences.split(sequences.ids)
            places = [np.flatnonzero(row == masked) for row in rows]
            for index, found in enumerate(places, len(filled)):
                if not len(found):
                    raise InputError(f"text {index} has no mask: write {self.mask_token} where a word is missing")
            counts = np.array([len(found) for found in places], np.int64)
            logits = self._encode(sequences, types, False, counts, np.concatenate(places).astype(np.int64))
            each_logits = np.split(logits, np.cumsum(counts)[:-1])
            filled += [
                self._fill(row, found, applied(own, "softmax"), count, chosen)
                for row, found, own in zip(rows, places, each_logits, strict=True)
            ]
        if not filled:
            raise InputError("there are no texts: pass at least one")
        return filled[0] if isinstance(texts, str) or (not is_texts(texts) and is_flat(texts)) else filled

    def _read(self, texts: Any) -> Iterator[tuple[Sequences, NDArray[np.int64] | None]]:
        """Some at a time, as the logits of a mask are as many as the vocabulary."""
        if not is_texts(texts):
            sequences = self._texts(texts, None)
            yield sequences, self._types(texts, None, None, sequences)
            return
        first = 0
        for batch in batches([texts] if isinstance(texts, str) else texts, TEXTS_AT_ONCE):
            refuse_pairs(batch, first)
            yield self._sequences(self._reader.read(batch, first=first), first)
            first += len(batch)

    def _mask_id(self) -> int:
        token = self.mask_token
        index = None if token is None else self._reader.tokenizer.token_to_id(token)
        if index is None:
            raise KaokenError(f"the tokenizer of the model {self.info.name} has no mask token: use logits(ids)")
        return int(index)

    @property
    def mask_token(self) -> str | None:
        """That stands for a missing word, "[MASK]" in BERT."""
        token: str | None = self._text.get("mask_token")
        return token

    def _fill(
        self,
        ids: NDArray[np.int64],
        places: NDArray[np.int64],
        scores: NDArray[np.float32],
        count: int,
        chosen: NDArray[np.int64] | None,
    ) -> list[Any]:
        """Of each mask of a text, whose probabilities are scores [masks, vocabulary]."""
        candidates = np.arange(scores.shape[1]) if chosen is None else chosen
        rows: list[list[Filling]] = []
        for place, row in zip(places, scores[:, candidates], strict=True):
            order = np.argsort(-row, kind="stable")[:count]
            rows.append([])
            for at in order:
                filled = ids.copy()
                filled[place] = candidates[at]
                rows[-1].append(self._filling(filled, int(candidates[at]), float(row[at]), len(places) == 1))
        return rows[0] if len(rows) == 1 else rows

    def _filling(self, filled: NDArray[np.int64], token: int, score: float, alone: bool) -> Filling:
        """With several masks the others stay in the text, as its special tokens do."""
        tokenizer = self._reader.tokenizer
        sequence = tokenizer.decode(filled.tolist(), skip_special_tokens=alone)
        word = tokenizer.decode([token], skip_special_tokens=False)
        return {"score": score, "token": token, "token_str": word, "sequence": sequence}

    def _target_ids(self, targets: str | Sequence[str]) -> NDArray[np.int64]:
        tokenizer = self._reader.tokenizer
        ids = []
        for target in [targets] if isinstance(targets, str) else targets:
            if not isinstance(target, str):
                raise InputError(f"targets must be words as str, not {target!r}")
            known = tokenizer.token_to_id(target)
            cut = [known] if known is not None else tokenizer.encode(target, add_special_tokens=False).ids
            if not cut:
                raise InputError(f"the target {target!r} is no token of the model: leave it out")
            ids.append(cut[0])
        if not ids:
            raise InputError("targets are empty: pass a word, or leave them out")
        return np.array(sorted(set(ids)), np.int64)

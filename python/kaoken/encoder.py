"""Baked encoders: `BakedEncoder`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken.arguments import Sequences, TokenIds, check_length, token_ids, token_types
from kaoken.errors import InputError
from kaoken.model import BakedModel


class BakedEncoder(BakedModel):
    """A baked encoder, such as BERT. Arguments, attributes and errors are those of `BakedModel`."""

    kind = "encoder"
    calls = "hidden_states(ids) or logits(ids)"

    def hidden_states(
        self, ids: TokenIds, token_type_ids: ArrayLike | None = None, attention_mask: ArrayLike | None = None
    ) -> list[NDArray[np.float32]]:
        """The vectors of the last layer at every position, a float32 [length, d] for each text.

        Texts need not be equally long, and what stands beside a text does not change a bit of its vectors.

        ids: integers as lists, NumPy arrays or torch tensors, or a BatchEncoding of them; one flat text is a batch of
            one.
        token_type_ids: in the shape of ids; by default 0, or what the BatchEncoding has.
        attention_mask: in the shape of ids, 0 for padding in front or behind, which is left out.
        Raises InputError for ids that are empty, outside the vocabulary, or longer than n_positions, and for token
        types that the model does not have.
        """
        texts = self._texts(ids, attention_mask)
        return texts.split(self._encode(texts, self._types(ids, token_type_ids, attention_mask, texts), True))

    def logits(
        self, ids: TokenIds, token_type_ids: ArrayLike | None = None, attention_mask: ArrayLike | None = None
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """What the model's head gives: float32 [batch, outputs], or of a head that reads each position a list of
        float32 [length, outputs].

        Arguments and errors are those of `hidden_states`, and InputError where the model has no head.
        """
        if not self.config.has_head:
            raise InputError(f"the model {self.info.name} has no head: use hidden_states")
        texts = self._texts(ids, attention_mask)
        outputs = self._encode(texts, self._types(ids, token_type_ids, attention_mask, texts))
        return outputs if self.config.pools else texts.split(outputs)

    def _encode(
        self,
        texts: Sequences,
        types: NDArray[np.int64] | None = None,
        hidden_states: bool = False,
        counts: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """What `_core.Session.encode` says."""
        outputs = self._session(1).encode(texts.lengths, texts.ids, types, hidden_states, counts, positions)
        assert outputs is not None
        return outputs

    def _types(
        self, ids: TokenIds, token_type_ids: ArrayLike | None, attention_mask: ArrayLike | None, texts: Sequences
    ) -> NDArray[np.int64] | None:
        return token_types(ids, token_type_ids, attention_mask, texts, self.config.type_vocab_size)

    def _texts(self, ids: TokenIds, attention_mask: ArrayLike | None) -> Sequences:
        texts = token_ids(ids, self.config.vocab_size, attention_mask)
        check_length(texts.longest, self.config.n_positions, "text")
        return texts

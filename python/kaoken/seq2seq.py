"""Baked encoder-decoders: `BakedSeq2SeqLM`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken import _core
from kaoken.arguments import (
    GenerationOptions,
    Sequences,
    TokenIds,
    check_length,
    explains_options,
    token_ids,
)
from kaoken.causal import GenerateOptions, generation_options_of, new_tokens
from kaoken.errors import InputError
from kaoken.model import BakedModel
from kaoken.text import decode_stream, encode_prompt

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BakedSeq2SeqLM(BakedModel):
    """A baked encoder-decoder, such as T5. Arguments, attributes and errors are those of `BakedModel`."""

    kind = "encoder-decoder"
    calls = "generate(ids) or logits(ids, decoder_ids)"

    def logits(
        self, ids: TokenIds, decoder_ids: TokenIds, attention_mask: ArrayLike | None = None
    ) -> NDArray[np.float32] | Any:
        """Logits at every position of the decoder: float32 [batch, length of decoder_ids, vocab_size].

        Of decoder_ids of different lengths, a list of float32 [length, vocab_size].

        ids: the sources, as for `BakedCausalLM.logits`; they may have any lengths.
        decoder_ids: what the decoder reads of each, its start token first.
        attention_mask: in the shape of ids, 0 for padding in front or behind, which is left out.
        Raises InputError for ids that are empty, outside the vocabulary or too long, and for another number of
        sequences.
        """
        sources = self._sources(ids, attention_mask)
        read = token_ids(decoder_ids, self.config.vocab_size)
        if len(read) != len(sources):
            raise InputError(f"ids hold {len(sources)} sequences and decoder_ids {len(read)}: pass one for each")
        check_length(read.longest, self.config.n_positions)
        logits = self._encoded(sources).step(np.arange(len(read)), read.lengths, read.ids, all=True)
        return read.split(logits) if read.ragged else logits.reshape(len(read), read.longest, -1)

    @explains_options
    def generate(
        self, ids: TokenIds, attention_mask: ArrayLike | None = None, **options: Unpack[GenerateOptions]
    ) -> NDArray[np.int64]:
        """What the decoder makes of each source: int64 [batch, 1 + new], its start token first.

        Sources may have any lengths; rows that end before others are filled with pad_token_id, as in transformers.
        Options and errors are those of `BakedCausalLM.generate`.
        """
        checked = generation_options_of(self, **options)
        sources = self._sources(ids, attention_mask)
        start = np.full(len(sources), self._start(), np.int64)
        return np.stack([start, *self._steps(sources, checked)], axis=1)

    @explains_options
    def stream(self, ids: TokenIds, **options: Unpack[GenerateOptions]) -> Iterator[int]:
        """Yields the new tokens for one source as they are made, an end token included.

        Options and errors as for `generate`; a batch of several sources is an InputError.
        """
        checked = generation_options_of(self, **options)
        sources = self._sources(ids, None)
        if len(sources) != 1:
            raise InputError(f"stream takes one sequence, not {len(sources)}: use generate, or stream each of them")
        return (int(step[0]) for step in self._steps(sources, checked))

    @explains_options
    def generate_text(self, prompt: str, **options: Unpack[GenerateOptions]) -> str:
        """The text that the model makes of a prompt, without special tokens.

        Options and errors as for `generate`, and KaokenError where the model has no tokenizer.
        """
        return "".join(self.stream_text(prompt, **options))

    @explains_options
    def stream_text(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Yields the text of `generate_text` piece by piece; no piece ends inside a character."""
        ids = encode_prompt(self.tokenizer, prompt, None)
        return decode_stream(self.tokenizer, [], self.stream(ids, **options))

    def _sources(self, ids: TokenIds, attention_mask: ArrayLike | None) -> Sequences:
        sources = token_ids(ids, self.config.vocab_size, attention_mask)
        check_length(sources.longest, self.config.source_positions, "text", "source_positions")
        return sources

    def _encoded(self, sources: Sequences) -> _core.Session:
        """A session whose sequences attend to the sources."""
        session = self._session(len(sources))
        session.encode(sources.lengths, sources.ids)
        return session

    def _start(self) -> int:
        config = self.config
        start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
        if start is None:
            raise InputError("the model has no decoder_start_token_id: add it to its config and bake it again")
        return start

    def _steps(self, sources: Sequences, options: GenerationOptions) -> Iterator[NDArray[np.int64]]:
        """The new tokens, int64 [batch] a step."""
        start = np.full((len(sources), 1), self._start(), np.int64)
        return new_tokens(self._encoded(sources).generate(start, **asdict(options)))

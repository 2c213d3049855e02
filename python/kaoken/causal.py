"""Baked decoders: `BakedCausalLM`, `BakedGPT2`, and `Session` for feeding tokens by hand."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken import _core
from kaoken.arguments import (
    MODEL_DEFAULT,
    EosTokenId,
    GenerationOptions,
    Sequences,
    TokenIds,
    _ModelDefault,
    batch_size,
    check_length,
    explains_options,
    generation_options,
    integer,
    rewind_length,
    token_ids,
)
from kaoken.chat import MAX_NEW_TOKENS, ChatFormat, Messages
from kaoken.errors import ChatWarning, InputError
from kaoken.library import ModelConfig
from kaoken.model import BakedModel
from kaoken.text import decode_stream, encode_prompt

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_TOKEN = -1  # stands for what a sequence that has finished lacks


class GenerateOptions(TypedDict, total=False):
    """The keyword options of `BakedCausalLM.generate`, which documents them."""

    max_new_tokens: int | None
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    eos_token_id: EosTokenId
    pad_token_id: int | None
    seed: int | None


def generation_options_of(model: BakedModel, **options: Any) -> GenerationOptions:
    """Those given, on top of the model's own."""
    given = {name: value for name, value in options.items() if value is not MODEL_DEFAULT}
    return generation_options(model.config, **{**model.info.generation_defaults, **given})


def new_tokens(generation: _core.Generation) -> Iterator[NDArray[np.int64]]:
    """Those of each step, int64 [batch]. The loop is in Python so that signals are seen between steps."""
    done = False
    while not done:
        tokens, done = generation.next()
        yield tokens


class Session:
    """A KV cache for `batch` sequences, fed by hand. Made by `BakedCausalLM.session`.

    One session belongs to one thread at a time; distinct sessions run side by side. How a text is split
    between calls of `append`, and what is beside it, does not change a bit of its logits.
    """

    def __init__(self, native: _core.Session, config: ModelConfig) -> None:
        self._native = native
        self._config = config
        self._ids: list[int] = []  # that a chat left in the cache, while nothing else has changed it
        self._reused = 0

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return self._native.batch

    @property
    def length(self) -> int:
        """Positions in the cache, of the longest sequence."""
        return self._native.length

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each sequence."""
        return tuple(self._native.lengths)

    @property
    def earliest(self) -> tuple[int, ...]:
        """The least length, other than 0, that each sequence can be rewound to.

        It is 0 unless blocks see a window of the text: these keep no more than it and 512 positions more, counted from
        the longest that the sequence was.
        """
        return tuple(map(self._native.earliest, range(self.batch)))

    @property
    def threads(self) -> int:
        """Threads that this session computes with, the caller's included."""
        return self._native.threads

    @property
    def executed_isa(self) -> str:
        """The instruction set that the last `append` really ran, as its code tells; "" before the first."""
        return self._native.executed_isa

    @property
    def reused(self) -> int:
        """Positions that the last chat found in the cache and did not compute again."""
        return self._reused

    def append(self, ids: TokenIds, sequences: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Appends ids to all sequences, or to those that are named; returns float32 [sequences, vocab_size].

        Those are the logits of the last position of each. `ids` are as for `BakedCausalLM.logits`, a row for each
        sequence; one flat sequence is a batch of one here too, and the result keeps its batch dimension. `sequences`
        counts from 0 and ascends.
        Raises InputError for ids out of range, for another batch, past n_positions, or on use from two
        threads at once; the session is then unchanged.
        """
        appended = token_ids(ids, self._config.vocab_size)
        slots = range(self.batch) if sequences is None else self._slots(sequences)
        if len(appended) != len(slots):
            where = f"this session has batch = {self.batch}" if sequences is None else f"{len(slots)} are named"
            raise InputError(f"ids hold {len(appended)} sequences, but {where}")
        lengths = self.lengths
        for slot, count in zip(slots, appended.lengths, strict=True):
            self._check_room(lengths[slot], int(count))
        self._ids = []
        if sequences is None and not appended.ragged:
            logits = self._native.append(appended.array, _core.LOGITS_LAST)
            assert logits is not None
            return logits
        return self._native.step(np.array(slots, np.int64), appended.lengths, appended.ids)

    def rewind(self, length: int, sequence: int | None = None) -> None:
        """Forgets all but the first `length` positions, of every sequence or of one.

        Raises InputError if there are fewer, and if a sequence keeps some but less than its `earliest`: rewind it to 0
        and append its ids again. The session is then unchanged.
        """
        self._ids = []
        if sequence is None:
            self._native.rewind(rewind_length(length, self.length))
        else:
            slot = self._slot(sequence)
            self._native.rewind_slot(slot, rewind_length(length, self.lengths[slot]))

    def fork(self, source: int, target: int) -> None:
        """Makes sequence `target` a copy of sequence `source`; they share memory until one of them goes on."""
        self._ids = []
        self._native.fork(self._slot(source), self._slot(target))

    def _continue(self, ids: list[int], options: GenerationOptions) -> Iterator[int]:
        """Makes the one sequence hold `ids`, of which it keeps what is there already, and yields what follows."""
        shared = _shared_prefix(self._ids, ids[:-1])  # the last one is computed, for its logits
        if shared < self._native.earliest():
            shared = 0
        self._native.rewind(shared)
        self._ids, self._reused = list(ids), shared
        try:
            for step in new_tokens(self._native.generate(np.array([ids[shared:]], np.int64), **asdict(options))):
                self._ids.append(int(step[0]))
                yield int(step[0])
        finally:
            del self._ids[self._native.length :]  # the last token was not read, nor the prompt where that failed

    def _slots(self, sequences: Sequence[int]) -> list[int]:
        if not isinstance(sequences, Iterable):
            raise InputError(f"sequences must be a list of integers, not {sequences!r}")
        return [self._slot(each) for each in sequences]

    def _slot(self, sequence: int) -> int:
        slot = integer("sequence", sequence, minimum=0)
        if slot >= self.batch:
            raise InputError(f"there is no sequence {slot}: this session has batch = {self.batch}, counted from 0")
        return slot

    def _check_room(self, length: int, count: int) -> None:
        n_positions = self._config.n_positions
        if length + count > n_positions:
            raise InputError(
                f"the session holds {length} positions, so {count} more would pass n_positions = "
                f"{n_positions}: rewind it or start another"
            )

    def __repr__(self) -> str:
        return f"<kaoken.Session batch={self.batch} length={self.length}>"


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = zip(left, right, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


class BakedCausalLM(BakedModel):
    """A baked decoder: GPT-2, Llama and their like. Arguments, attributes and errors are those of `BakedModel`."""

    kind = "decoder"
    calls = "logits(ids), generate(ids), or a session()"

    def logits(self, ids: TokenIds, attention_mask: ArrayLike | None = None) -> NDArray[np.float32] | Any:
        """Logits at every position: ids [batch, sequence] to float32 [batch, sequence, vocab_size].

        Of sequences of different lengths, and of padded ones, a list of float32 [length, vocab_size].

        ids: integers as lists, NumPy arrays or torch tensors, or a BatchEncoding of them; one flat sequence is a batch
            of one.
        attention_mask: in the shape of ids, 0 for padding in front or behind, which is left out.
        Raises InputError for ids that are empty, outside the vocabulary, or longer than n_positions.
        """
        prompts = self._prompts(ids, attention_mask)
        if prompts.ragged:
            session = self._session(len(prompts))
            return prompts.split(session.step(np.arange(len(prompts)), prompts.lengths, prompts.ids, all=True))
        logits = self._session(len(prompts)).append(prompts.array, _core.LOGITS_ALL)
        assert logits is not None
        return logits

    @explains_options
    def generate(
        self,
        ids: TokenIds,
        max_new_tokens: int | _ModelDefault | None = MODEL_DEFAULT,
        do_sample: bool | _ModelDefault = MODEL_DEFAULT,
        temperature: float | _ModelDefault | None = MODEL_DEFAULT,
        top_k: int | _ModelDefault | None = MODEL_DEFAULT,
        top_p: float | _ModelDefault | None = MODEL_DEFAULT,
        eos_token_id: EosTokenId = MODEL_DEFAULT,
        pad_token_id: int | None = None,
        seed: int | None = None,
        attention_mask: ArrayLike | None = None,
    ) -> NDArray[np.int64] | Any:
        """Continues each sequence: ids [batch, prompt] to int64 [batch, prompt + new].

        Prompts of different lengths, and padded ones, become a list of int64 [prompt + new], each without padding and
        up to its own end.

        Options mean what they mean in transformers' `GenerationMixin.generate`; greedy results are the same
        tokens, sampled ones have the same distribution from other draws. It ends when every sequence has
        finished, after max_new_tokens, or at n_positions; a prompt that long comes back as it is.
        Options that are not given are the model's own (`info.generation_defaults`), else transformers' defaults: 20 new
        tokens, do_sample False, temperature 1.0, top_k 50, top_p 1.0.

        Args:
            ids: As for `logits`.
            max_new_tokens: At least 1; None is 20, as in transformers, whatever the model's own.
            do_sample: False takes the likeliest token and ignores the next three options, which None turns off, and
                the seed.
            temperature: Divides the logits; greater than 0.
            top_k: Keeps that many of the likeliest tokens; 0 keeps all.
            top_p: Keeps the likeliest tokens that together reach this probability, in (0, 1]; 1 keeps all.
            eos_token_id: One token or several that finish a sequence; None for none; by default the model's,
                if it has one.
            pad_token_id: Fills the rows that have finished; by default the model's, else the first end token.
            seed: Any integer from 0; None draws one. A draw depends on the seed, the row of the batch and the position
                alone: the same call gives the same tokens, and row 1 other ones than the same prompt alone.
            attention_mask: As for `logits`.

        Raises InputError for ids or options outside these ranges. Ctrl-C stops it between two tokens.
        """
        options = generation_options_of(
            self,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            seed=seed,
        )
        prompts = self._prompts(ids, attention_mask)
        if not prompts.ragged:
            return np.concatenate([prompts.array, *(step[:, None] for step in self._steps(prompts, options))], axis=1)
        steps = list(self._steps(prompts, replace(options, pad_token_id=NO_TOKEN)))
        new = np.stack([np.empty(len(prompts), np.int64), *steps], axis=1)[:, 1:]
        rows = zip(prompts.split(prompts.ids), new, strict=True)
        return [np.concatenate([prompt, tokens[tokens != NO_TOKEN]]) for prompt, tokens in rows]

    @explains_options
    def stream(self, ids: TokenIds, **options: Unpack[GenerateOptions]) -> Iterator[int]:
        """Yields the new tokens of one sequence as they are made, an end token included.

        Options and errors as for `generate`; a batch of several sequences is an InputError. Arguments are
        checked at once, before the first token is asked for.
        """
        checked = generation_options_of(self, **options)
        prompts = self._prompts(ids, None)
        if len(prompts) != 1:
            raise InputError(f"stream takes one sequence, not {len(prompts)}: use generate, or stream each of them")
        return (int(step[0]) for step in self._steps(prompts, checked))

    def session(self, batch: int = 1) -> Session:
        """A new, empty KV cache for `batch` sequences; InputError unless that is a positive integer."""
        return Session(self._session(batch_size(batch)), self.config)

    @explains_options
    def generate_text(self, prompt: str, **options: Unpack[GenerateOptions]) -> str:
        """The completion of a prompt, without the prompt and without special tokens.

        Options and errors as for `generate`, and KaokenError where the model has no tokenizer. An empty
        prompt starts from the model's bos token.
        """
        return "".join(self.stream_text(prompt, **options))

    @explains_options
    def stream_text(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Yields the completion of `generate_text` piece by piece; no piece ends inside a character."""
        ids = encode_prompt(self.tokenizer, prompt, self.config.bos_token_id)
        return decode_stream(self.tokenizer, ids, self.stream(ids, **options))

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How the model's chats are written. Raises KaokenError if it has no chat template or no tokenizer."""
        return ChatFormat(self.info, self.tokenizer)

    def apply_chat_template(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> list[int] | str:
        """The prompt of a chat, as token ids or as text, as transformers' `apply_chat_template` with return_dict=False.

        messages: dicts with a role and a content, [{"role": "user", "content": "Hi"}]; None in one counts as absent.
        tools, documents: dicts that the template writes out, where it does.
        add_generation_prompt: whether the assistant is to speak next.
        variables: what else the template reads, such as enable_thinking=False.
        Raises InputError for messages that the template refuses, and KaokenError where the model has no template or
        one that fails.
        """
        given = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt, **variables}
        text = self.chat_format.render(messages, given)
        return self.chat_format.encode(text) if tokenize else text

    @explains_options
    def chat(
        self,
        messages: Messages,
        session: Session | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> dict[str, str]:
        """The assistant's answer to a chat, as a message: {"role": "assistant", "content": text}.

        It is what transformers' pipeline appends to the messages, and may be appended to them for the next call. The
        text has no special tokens. It ends at the model's end tokens and at the one that the template ends a turn with.

        A chat that leaves no room for the answer (max_new_tokens, or half of the context) loses its oldest turns, never
        system messages in front, with a `ChatWarning`.

        Args:
            messages: As for `apply_chat_template`; the last one is not the assistant's.
            session: One of this model with batch = 1. It keeps the chat, so that the next call computes only what
                differs; the bits are those of a call without it. What else it holds is forgotten.
            tools: Dicts that the template writes out.
            chat_template_kwargs: What else the template reads, such as {"enable_thinking": False}.
            options: Those of `generate`. Where neither you nor the model say so, max_new_tokens is 256. An eos_token_id
                takes the place of all end tokens.

        Errors are those of `generate` and of `apply_chat_template`; InputError also for a last turn that is too long.
        """
        pieces = self._chat_pieces(messages, session, {"tools": tools, **(chat_template_kwargs or {})}, options)
        return {"role": "assistant", "content": "".join(pieces)}

    @explains_options
    def stream_chat(
        self,
        messages: Messages,
        session: Session | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str]:
        """Yields the text of `chat` piece by piece; no piece ends inside a character.

        Arguments are checked at once, before the first piece is asked for.
        """
        return self._chat_pieces(messages, session, {"tools": tools, **(chat_template_kwargs or {})}, options)

    def _chat_pieces(
        self, messages: Messages, session: Session | None, variables: Mapping[str, Any], options: GenerateOptions
    ) -> Iterator[str]:
        """For a method behind `explains_options`, whose caller a warning names."""
        checked = self._chat_options(options)
        prompt = self.chat_format.prompt(messages, self.config.n_positions, checked.max_new_tokens, variables)
        if prompt.dropped:
            warnings.warn(prompt.notice, ChatWarning, stacklevel=4)
        return self._answer(prompt.ids, session, checked)

    def _chat_options(self, options: GenerateOptions) -> GenerationOptions:
        """With the end of a turn among the end tokens."""
        ends = dict.fromkeys((*self.config.eos_token_ids, *self.chat_format.end_token_ids))
        given = {"eos_token_id": tuple(ends), **options}
        if "max_new_tokens" not in self.info.generation_defaults:
            given = {"max_new_tokens": MAX_NEW_TOKENS, **given}
        return generation_options_of(self, **given)

    def _answer(
        self, ids: list[int], session: Session | None, options: GenerationOptions
    ) -> Generator[str, None, None]:
        session = self.session() if session is None else session
        if session.batch != 1 or session._config is not self.config:
            raise InputError("a chat takes a session of this model with batch = 1: make one with model.session()")
        tokens = session._continue(ids, options)
        said = (token for token in tokens if token not in options.eos_token_ids)
        return decode_stream(self.tokenizer, ids, said)

    def _prompts(self, ids: TokenIds, attention_mask: ArrayLike | None) -> Sequences:
        prompts = token_ids(ids, self.config.vocab_size, attention_mask)
        check_length(prompts.longest, self.config.n_positions)
        return prompts

    def _steps(self, prompts: Sequences, options: GenerationOptions) -> Iterator[NDArray[np.int64]]:
        """The new tokens, int64 [batch] a step."""
        if prompts.lengths.min() == self.config.n_positions:
            return
        session = self._session(len(prompts))
        if prompts.ragged:
            generation = session.generate(prompts.ids, prompts.lengths, **asdict(options))
        else:
            generation = session.generate(prompts.array, **asdict(options))
        yield from new_tokens(generation)


class BakedGPT2(BakedCausalLM):
    """A baked GPT-2, the name that `BakedCausalLM` had first."""

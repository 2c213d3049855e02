"""Baked encoders: `BakedEncoder`, with vectors of positions and of whole texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken.arguments import Sequences, TokenIds, are_ints, check_length, integer, token_ids, token_types
from kaoken.errors import InputError, KaokenError, LibraryError
from kaoken.gathering import MOST_TOKENS, Call, Gatherer, Texts
from kaoken.model import BakedModel
from kaoken.progress import Bar
from kaoken.text import TextReader, is_one_text, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

Result = TypeVar("Result")

# Prompts that sentence-transformers knows for every model, empty where a checkpoint says nothing.
_COMMON_PROMPTS = {"query": "", "document": ""}

BATCH_SIZE = 256  # texts that are read and handed to the library at a time


class BakedEncoder(BakedModel):
    """A baked encoder, such as BERT, or a decoder that makes sentence vectors.

    Arguments, attributes and errors are those of `BakedModel`.
    """

    kind = "encoder"
    calls = "encode(texts), hidden_states(ids) or logits(ids)"
    task: ClassVar[str] = ""  # of the models that a class is for; "": of any

    def __init__(self, model: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> None:
        super().__init__(model, threads=threads)
        self._gatherer = Gatherer()
        if self.task not in ("", self.config.task):
            raise LibraryError(
                f"the model {self.info.name} is for {self.config.task}, and {type(self).__name__} for {self.task}: "
                "open it with kaoken.load, which returns the class of its task"
            )

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
        """What `_core.Session.encode` says, in common passes with other callers."""
        given = Texts(texts.lengths, texts.ids, types, hidden_states, counts, positions)
        if len(given.ids) <= MOST_TOKENS:
            return self._gatherer.run(Call(given, self._rows(given)), self._compute)
        width = self.config.n_embd if hidden_states else self.config.output_width
        outputs = np.empty((self._rows(given), width), np.float32)
        done = 0
        for piece in given.pieces(MOST_TOKENS):
            end = done + self._rows(piece)
            self._gatherer.run(Call(piece, end - done, outputs[done:end]), self._compute)
            done = end
        return outputs

    def _rows(self, texts: Texts) -> int:
        """Of outputs."""
        if self.config.pools and not texts.hidden_states:
            return len(texts.lengths)
        return len(texts.ids if texts.positions is None else texts.positions)

    def _compute(self, texts: Texts, outputs: NDArray[np.float32] | None) -> NDArray[np.float32]:
        found = self._session(1).encode(
            texts.lengths, texts.ids, texts.types, texts.hidden_states, texts.counts, texts.positions, outputs
        )
        assert found is not None
        return found

    def _types(
        self, ids: TokenIds, token_type_ids: ArrayLike | None, attention_mask: ArrayLike | None, texts: Sequences
    ) -> NDArray[np.int64] | None:
        return token_types(ids, token_type_ids, attention_mask, texts, self.config.type_vocab_size)

    def encode(
        self,
        texts: str | Iterable[str] | TokenIds,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        show_progress_bar: bool | None = None,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
    ) -> NDArray[np.float32]:
        """A vector for each text, float32 [texts, d]; of a single text float32 [d].

        The checkpoint's own modules pool, and those that stand behind that. Options are those of
        SentenceTransformer.encode. What is longer than max_seq_length of the checkpoint, or what its tokenizer or the
        model take, is cut. Texts of any number are read `batch_size` at a time, without padding.

        texts: a str, or an iterable of them; or token ids as for `hidden_states`, of which none is cut.
        prompt_name: the name of a prompt of the checkpoint, which stands in front of each text; by default its own
            default, if it has one.
        prompt: the prompt itself. Where include_prompt of the checkpoint is false, its tokens are not pooled.
        show_progress_bar: on stderr, where tqdm is installed; None is no bar.
        truncate_dim: how many of the first dimensions to keep; by default as the checkpoint says, or all.
        Raises InputError where the checkpoint had no modules.json, which says how to pool, for an unknown prompt, for
        what is no text, and as `hidden_states` for ids.
        """
        self._check_pooling()
        if convert_to_numpy is not True:
            raise InputError("vectors are always NumPy arrays: leave convert_to_numpy out, or use torch.from_numpy")
        dimension = self._dimension(truncate_dim)

        def finish(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            kept = np.ascontiguousarray(vectors[:, :dimension])  # a view would keep all dimensions
            return _normalized(kept) if normalize_embeddings else kept

        if not is_texts(texts):
            if prompt or prompt_name is not None:
                raise InputError("a prompt stands in front of texts: leave it out, or pass texts in place of ids")
            return self._vectors_of_ids(texts, finish)
        given: Any = [texts] if isinstance(texts, str) else texts
        found = self._prompt(prompt_name, prompt)
        prompted = (_with_prompt(found, text) for text in given) if found else given
        total = count_of(given)
        skipped = self._prompt_tokens(found) if found and not self._sentence.get("include_prompt", True) else 0
        passes = self._passes(
            prompted, total, batch_size, show_progress_bar, self._cutting_reader, pairs=False, skipped=skipped
        )
        finished = (finish(outputs) for _, _, outputs in passes)
        vectors = gathered(finished, total, len(range(self.config.output_width)[:dimension]))
        return vectors[0] if isinstance(texts, str) else vectors

    def _vectors_of_ids(
        self, ids: Any, finish: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        texts = self._texts(ids, None)
        vectors = finish(self._encode(texts, self._types(ids, None, None, texts)))
        return vectors[0] if is_flat(ids) else vectors

    def _passes(
        self,
        texts: Iterable[Any],
        total: int | None,
        size: Any,
        show_progress_bar: bool | None,
        reader: TextReader,
        *,
        pairs: bool,
        offsets: bool = False,
        skipped: int = 0,
    ) -> Iterator[tuple[list[Any], list[Encoding], NDArray[np.float32]]]:
        """`size` texts at a time: these, what the tokenizer makes of them, and what the head makes of that.

        Of each text the first `skipped` tokens are not pooled.
        """
        with Bar(total, "text", bool(show_progress_bar)) as bar:
            first = 0
            for batch in batches(texts, integer("batch_size", size, minimum=1)):
                if not pairs:
                    refuse_pairs(batch, first)
                read = reader.read(batch, offsets, first)
                given, types = self._sequences(read, first)
                asked = _behind(skipped, given.lengths, first) if skipped else (None, None)
                yield batch, read, self._encode(given, types, False, *asked)
                bar.advance(len(batch))
                first += len(batch)

    def _sequences(self, read: Sequence[Encoding], first: int = 0) -> tuple[Sequences, NDArray[np.int64] | None]:
        """Ids of texts that the tokenizer has read, and their token types where the model has some.

        Errors count texts from `first` on.
        """
        lengths = np.array([len(text) for text in read], np.int64)
        if not lengths.all():
            index = first + int(np.argmin(lengths))
            raise InputError(f"text {index} has no token, and the model's tokenizer adds none: leave it out")
        check_length(int(lengths.max()), self.config.n_positions, "text")
        ids = np.concatenate([np.array(text.ids, np.int64) for text in read])
        if int(ids.max()) >= self.config.vocab_size:
            raise InputError(
                f"the tokenizer has the token {int(ids.max())}, but the model has {self.config.vocab_size}: they do "
                "not belong together; bake the checkpoint with its own tokenizer"
            )
        types = None
        if self.config.type_vocab_size > 1:
            types = np.concatenate([np.array(text.type_ids, np.int64) for text in read])
        return Sequences(ids, lengths, True), types

    @cached_property
    def _described(self) -> dict[str, Any]:
        """What the library says of itself, with how its texts are prepared."""
        described: dict[str, Any] = json.loads(self._library.description)
        return described

    @cached_property
    def _sentence(self) -> dict[str, Any]:
        """Of sentence-transformers; {} where the checkpoint had no modules.json."""
        return self._described.get("sentence") or {}

    @cached_property
    def _text(self) -> dict[str, Any]:
        """Of the tokenizer's config."""
        return self._described.get("text") or {}

    @cached_property
    def _own_limit(self) -> int | None:
        """Tokens at which texts are cut, as the checkpoint says; None where it does not."""
        own = self._sentence.get("max_seq_length") or self._text.get("max_length")
        return None if own is None else min(int(own), self.config.n_positions)

    @cached_property
    def _reader(self) -> TextReader:
        """Cuts texts where the checkpoint says so, and no others."""
        return self._make_reader(self._own_limit)

    @cached_property
    def _cutting_reader(self) -> TextReader:
        """Cuts texts that the model does not take, too, as sentence-transformers does."""
        return self._reader if self._own_limit is not None else self._make_reader(self.config.n_positions)

    def _make_reader(self, limit: int | None) -> TextReader:
        """With a tokenizer of its own: truncation is a tokenizer's state."""
        tokenizer = load_tokenizer(self._library.tokenizer, self.info.name)
        own = tokenizer.num_special_tokens_to_add(False)
        if limit is not None and limit <= own:
            raise KaokenError(
                f"the model {self.info.name} takes texts of {limit} tokens, of which its tokenizer adds {own} itself: "
                "correct max_seq_length of its checkpoint, or model_max_length of tokenizer_config.json, and bake it "
                "again"
            )
        return TextReader(tokenizer, limit, self._text.get("truncation_side", "right"))

    def _check_pooling(self) -> None:
        if self.config.task != "sentence-similarity":
            raise InputError(
                f"the model {self.info.name} does not say how the vectors of a text's tokens become one, as its "
                "checkpoint has no modules.json: use hidden_states(ids), or save it with sentence_transformers and "
                "bake it again"
            )

    def _dimension(self, truncate_dim: int | None) -> int | None:
        if truncate_dim is not None:
            return integer("truncate_dim", truncate_dim, minimum=1)
        own: int | None = self._sentence.get("truncate_dim")
        return own

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        """What stands in front of each text."""
        prompts: Mapping[str, str] = _COMMON_PROMPTS | self._sentence.get("prompts", {})
        if prompt is None:
            name = self._sentence.get("default_prompt_name") if name is None else name
            if name is not None and name not in prompts:
                raise InputError(f"the model has no prompt {name!r}: pass one of {', '.join(map(repr, prompts))}")
            prompt = "" if name is None else prompts[name]
        if not isinstance(prompt, str):
            raise InputError(f"prompt must be a str, not {prompt!r}")
        return prompt

    def _prompt_tokens(self, prompt: str) -> int:
        """Of a prompt alone, without a special token at its end, as sentence-transformers counts those to leave out."""
        (read,) = self._cutting_reader.read([prompt])
        added = self._cutting_reader.tokenizer.get_added_tokens_decoder().get(read.ids[-1]) if read.ids else None
        return len(read) - (added is not None and added.special)

    def _texts(self, ids: TokenIds, attention_mask: ArrayLike | None) -> Sequences:
        texts = token_ids(ids, self.config.vocab_size, attention_mask)
        check_length(texts.longest, self.config.n_positions, "text")
        return texts


def is_texts(texts: Any) -> bool:
    """Whether these are texts or pairs rather than token ids; an iterator is."""
    if is_one_text(texts):
        return True
    if isinstance(texts, Mapping):
        return False
    if isinstance(texts, np.ndarray):
        return texts.dtype.kind == "U" or (texts.dtype.kind == "O" and texts.ndim == 1)
    if isinstance(texts, Sequence):
        return not texts or _has_text(texts[0])
    return not hasattr(texts, "__array__") and isinstance(texts, Iterable)


def _has_text(item: Any) -> bool:
    """Whether it is a text, or a list or tuple of texts."""
    return isinstance(item, str) or (isinstance(item, (list, tuple)) and any(isinstance(part, str) for part in item))


def is_flat(ids: Any) -> bool:
    """Whether token ids are one text rather than a batch."""
    ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
    if hasattr(ids, "ndim"):
        return bool(ids.ndim == 1)
    return are_ints(ids) or not any(isinstance(each, Sequence) or getattr(each, "ndim", 0) for each in ids)


def _with_prompt(prompt: str, text: Any) -> Any:
    """What is no text is left to the reader, which names it."""
    return prompt + text if isinstance(text, str) else text


def batches(values: Iterable[Result], size: int) -> Iterator[list[Result]]:
    """`size` values at a time."""
    left = iter(values)
    while batch := list(islice(left, size)):
        yield batch


def count_of(values: Any) -> int | None:
    """How many there are, where that is known beforehand."""
    return len(values) if hasattr(values, "__len__") else None


def gathered(parts: Iterable[NDArray[np.float32]], total: int | None, width: int) -> NDArray[np.float32]:
    """The rows of all parts, [total, width]; where the total is not known, that takes twice the memory."""
    if total is None:
        return np.concatenate([np.zeros((0, width), np.float32), *parts])
    rows = np.empty((total, width), np.float32)
    done = 0
    for part in parts:
        rows[done : done + len(part)] = part
        done += len(part)
    return rows


def _behind(skipped: int, lengths: NDArray[np.int64], first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts and positions of what lies behind the first tokens of each text; errors count texts from `first` on."""
    if (lengths <= skipped).any():
        raise InputError(
            f"text {first + int(np.argmin(lengths))} has {int(lengths.min())} tokens where it is cut, and the prompt, "
            f"which is left out of pooling, has {skipped}: pass a shorter prompt"
        )
    return lengths - skipped, np.concatenate([np.arange(skipped, length) for length in lengths])


def refuse_pairs(batch: Sequence[Any], first: int) -> None:
    """Raises InputError for what is no str; it counts texts from `first` on."""
    for index, text in enumerate(batch, first):
        if not isinstance(text, str):
            raise InputError(f"text {index} must be a str, not {type(text).__name__}: the model reads one text")


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """To length 1, as torch.nn.functional.normalize does."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), np.float32)

"""The C ABI of kaoken.h, one method a function. Use `kaoken.BakedGPT2`, which checks and explains more.

Arrays are C-contiguous and of the exact dtype, else TypeError; no other thread may change them during a call.
Work runs without the GIL. A failed call raises the class of `kaoken.errors` that fits its status, or
MemoryError.
"""

from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

ABI_VERSION: int
LOGITS_NONE: int
LOGITS_LAST: int
LOGITS_ALL: int

class Library:
    """A shared library that exports `kaoken_model`, loaded for the rest of the process.

    A path without a slash is searched for as dlopen does. Raises LibraryError for a file that is no model
    library or whose ABI differs from ABI_VERSION.
    """

    def __init__(self, path: str | bytes | PathLike[str]) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def kaoken_version(self) -> str: ...
    @property
    def isas(self) -> str:
        """The instruction sets inside, best last, separated by commas."""
    @property
    def description(self) -> str:
        """JSON: name, source, revision, weights_sha256, dtype, settings, config."""
    @property
    def tokenizer(self) -> bytes | None:
        """tokenizer.json, or None where the checkpoint had none."""
    @property
    def kind(self) -> str:
        """decoder, encoder or encoder-decoder."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def n_positions(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    def session(self, batch: int = 1, threads: int = 0, isa: str | None = None, n_positions: int = 0) -> Session:
        """A KV cache for `batch` sequences; threads 0 and isa None: the environment's, else the machine's.

        n_positions is what each sequence has room for, 0: the model's.
        """

class Session:
    """A KV cache with its threads. Two threads at once, or use beside a live Generation, raise InputError."""

    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def isa_reason(self) -> str:
        """Why it runs that instruction set and no better one, in a sentence."""
    @property
    def executed_isa(self) -> str:
        """The tag left by the code that ran the last pass; "" before the first."""
    @property
    def lengths(self) -> list[int]:
        """Positions of each sequence; `length` is that of the longest."""
    def earliest(self, slot: int = 0) -> int:
        """The least length, other than 0, that a sequence can be rewound to; -1 for a slot that is not there."""
    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` positions of every sequence."""
    def rewind_slot(self, slot: int, length: int) -> None:
        """Forgets all but the first `length` positions of one sequence."""
    def fork(self, source: int, target: int) -> None:
        """Makes the sequence of slot `target` a copy of that of slot `source`."""
    def step(
        self, slots: NDArray[np.int64], lengths: NDArray[np.int64], ids: NDArray[np.int64], all: bool = False
    ) -> NDArray[np.float32]:
        """Appends ids [sum of lengths] to the slots [n], ascending.

        Returns the logits of the last position of each, [n, vocab], or of all new ones, [sum of lengths, vocab].
        LibraryError where the library is too old for sequences of different lengths, as are rewind_slot and fork.
        """
    def encode(
        self,
        lengths: NDArray[np.int64],
        ids: NDArray[np.int64],
        types: NDArray[np.int64] | None = None,
        hidden_states: bool = False,
        counts: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
        outputs: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """Reads texts, ids [sum of lengths] of token types 0 or `types`.

        An encoder's outputs are those of its head, [texts, width] where it pools and [sum of lengths, width] where it
        does not, or the hidden states that the head reads. counts [texts] of ascending positions [sum of counts] ask
        for no others than these; where it pools, they are what is pooled of each text, without a gap. Of an
        encoder-decoder the texts are what the sequences from slot 0 on attend to, which begin anew; None. `outputs` is
        written and returned where it is given.
        """
    def append(self, ids: NDArray[np.int64], which: int = ...) -> NDArray[np.float32] | None:
        """Appends ids [batch, count]. LOGITS_LAST: [batch, vocab]; ALL: [batch, count, vocab]; NONE: None."""
    def generate(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64] | None = None,
        *,
        max_new_tokens: int,
        do_sample: bool,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
    ) -> Generation:
        """Appends the prompt ids [batch, count], or, with lengths [batch], ids [sum of lengths].

        The generation has the session until its last token.
        """

class Generation:
    def next(self) -> tuple[NDArray[np.int64], bool]:
        """The next token of each sequence, [batch], and whether it was the last; InputError after that."""

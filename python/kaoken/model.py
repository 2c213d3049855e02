"""What all baked models share, and `load`, which returns the class of a model's kind."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from kaoken import _core
from kaoken.arguments import context_length, file_path, thread_count
from kaoken.errors import InputError, LibraryError
from kaoken.library import ModelConfig, ModelInfo, default_library, describe, open_library, task_of
from kaoken.text import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Model = TypeVar("Model", bound="BakedModel")

# What people try on a model of torch's or transformers', and what to do instead.
_INSTEAD = {
    **dict.fromkeys(("eval", "train", "requires_grad_"), "a baked model only ever infers: leave the call out"),
    **dict.fromkeys(("to", "cpu", "cuda", "device"), "a baked model runs on the CPU, in baked types: leave it out"),
    **dict.fromkeys(
        ("half", "float", "bfloat16", "dtype"),
        "types are chosen when a model is baked: kaoken.bake(checkpoint, dtype=...), and info.dtype tells which",
    ),
    **dict.fromkeys(("forward",), "use logits(ids), generate(ids), or a session()"),
    **dict.fromkeys(("parameters", "state_dict"), "the weights are inside the code: read them from the checkpoint"),
    "from_pretrained": "bake the checkpoint or hub id first: kaoken.load(kaoken.bake('gpt2'))",
    "save_pretrained": "the library that kaoken.bake made is the one file to keep",
}


def _no_attribute(kind: type, name: str, owner: object) -> AttributeError:
    instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
    return AttributeError(f"{kind.__name__} has no attribute {name!r}{instead}", name=name, obj=owner)


class _Explaining(type):
    """Explains what its class lacks; hasattr stays False."""

    if not TYPE_CHECKING:  # where a name that is not there must stay an error

        def __getattr__(cls, name: str) -> NoReturn:
            raise _no_attribute(cls, name, cls)


class BakedModel(metaclass=_Explaining):
    """A baked model of any kind, ready to run on the CPU.

    Args:
        model: The path of a library made by `kaoken.bake`; None is the model baked into this wheel.
            Loading a library runs its code: open only files that you trust.
        threads: Threads for each call; None takes KAOKEN_THREADS, else one a core that this process may
            use. The results are the same bits for any number.
        context: Positions that each sequence of a decoder may have; None is `n_positions` of its bake, and there are
            no more. `config.n_positions` tells. A long context takes no memory until it is used.

    The instruction set is chosen here, once: KAOKEN_ISA, else the best that library and machine share.

    Attributes:
        config: Shapes and constants of the model, a `ModelConfig`.
        info: Where it came from and how it was built, a `ModelInfo`.

    Every method may be called from several threads at once, and after a fork: each call works in a session of
    its own. Pickling keeps the path and the thread count, and loads the library again.

    Raises:
        LibraryError: The file is missing, is no model library, was baked by an incompatible Kaoken, or holds a model of
            another kind than the class is for.
        ISAError: KAOKEN_ISA names what the library or this machine lacks, or they share nothing.
        InputError: `model` is no path, `threads` is not a positive integer, or `context` is out of range.
    """

    kind: ClassVar[str]  # of the models that a class is for
    calls: ClassVar[str]  # what to use instead of calling it

    config: ModelConfig
    info: ModelInfo

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, threads: int | None = None, context: int | None = None
    ) -> None:
        self._arguments = (model, threads, context)
        self._threads = thread_count(threads)
        path = default_library() if model is None else file_path("model", model)
        self._library = open_library(path)
        if self._library.kind != self.kind:
            raise LibraryError(
                f"{path} holds {_with_article(self._library.kind)}, and {type(self).__name__} is for "
                f"{_with_article(self.kind)}: open it with kaoken.load, which returns the class of its kind"
            )
        self.config, self.info = describe(self._library, path, self._library.session(1, self._threads))
        self._positions = 0  # the model's own
        if context is not None:
            self._positions = context_length(context, self.kind, self.config.n_positions)
            self.config = replace(self.config, n_positions=self._positions)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, a `tokenizers.Tokenizer`. Raises KaokenError if it had none."""
        return load_tokenizer(self._library.tokenizer, self.info.name)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise _no_attribute(type(self), name, self)

    def _session(self, batch: int) -> _core.Session:
        return self._library.session(batch, self._threads, self.info.isa, self._positions)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(f"a baked model is not called: use {self.calls}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (*self._arguments, type(self))

    def __repr__(self) -> str:
        return f"<kaoken.{type(self).__name__} {self.info.name} {self.info.dtype} {self.info.isa}>"


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind.startswith("e") else f"a {kind}"


def _restore(
    model: str | os.PathLike[str] | None, threads: int | None, context: int | None, kind: type[Model]
) -> Model:
    return _open(kind, model, threads, context)


def _open(kind: type[Model], model: str | os.PathLike[str] | None, threads: int | None, context: int | None) -> Model:
    """Encoders have no context."""
    return kind(model, threads=threads) if context is None else kind(model, threads=threads, context=context)


# The class of each kind of model, and of encoders with a task of their own.
_CLASSES = {
    "decoder": ("kaoken.causal", "BakedCausalLM"),
    "encoder": ("kaoken.encoder", "BakedEncoder"),
    "encoder-decoder": ("kaoken.seq2seq", "BakedSeq2SeqLM"),
}
_TASK_CLASSES = {
    "text-classification": ("kaoken.classification", "BakedClassifier"),
    "token-classification": ("kaoken.tagging", "BakedTokenClassifier"),
    "fill-mask": ("kaoken.masked_lm", "BakedMaskedLM"),
    "question-answering": ("kaoken.question_answering", "BakedQuestionAnswering"),
}


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None, context: int | None = None) -> Any:
    """The model in a library that `kaoken.bake` made, or the one in this wheel, as the class of its kind.

    A decoder is a `BakedCausalLM` (a GPT-2 a `BakedGPT2`), an encoder a `BakedEncoder` or, with a head of its own, a
    `BakedClassifier`, `BakedTokenClassifier`, `BakedMaskedLM` or `BakedQuestionAnswering`, and an encoder-decoder a
    `BakedSeq2SeqLM`. Arguments and errors are those of `BakedModel`.
    """
    library = open_library(default_library() if path is None else file_path("path", path))
    module, name = _CLASSES[library.kind]
    if library.kind == "encoder":
        module, name = _TASK_CLASSES.get(task_of(library), (module, name))
    if context is not None:
        context_length(context, library.kind, library.n_positions)
    model = _open(getattr(import_module(module), name), path, threads, context)
    if library.kind == "decoder" and model.config.family == "gpt2":
        model.__class__ = import_module(module).BakedGPT2  # a subclass that adds no more than its name
    return model

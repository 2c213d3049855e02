"""Chats: messages become prompts by the model's template, and what outgrows the context is left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from kaoken.errors import InputError, KaokenError
from kaoken.template import ChatTemplate
from kaoken.text import check_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from kaoken.library import ModelInfo

# A role and a content each, and whatever else the template reads.
Messages: TypeAlias = Sequence[Mapping[str, Any]]

MAX_NEW_TOKENS = 256  # of an answer, as in transformers' pipelines
_NO_VARIABLES: Mapping[str, Any] = {}
_VARIABLES = {"tools": None, "documents": None, "add_generation_prompt": False}  # that transformers always sets
_SYSTEM = ("system", "developer")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, of which templates read the first
_MARK = "kaoken"  # an answer whose end shows how a template ends a turn


@dataclass(frozen=True)
class Prompt:
    """A chat as the model reads it: its ids, the messages that are in it, and how many were left out."""

    ids: list[int]
    messages: list[Mapping[str, Any]]
    dropped: int

    @property
    def notice(self) -> str:
        """What to tell people where messages were left out."""
        count = f"{self.dropped} oldest messages" if self.dropped > 1 else "oldest message"
        return f"the chat is longer than the model's context: its {count} were left out of the prompt"


class ChatFormat:
    """How a model's chats are written. Raises KaokenError where the model has no chat template."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer) -> None:
        if info.chat_template is None:
            raise KaokenError(
                f"the model {info.name} has no chat template: use generate_text, or add a chat_template.jinja to the "
                "checkpoint and bake it again"
            )
        self._template = ChatTemplate(info.chat_template, info.special_tokens, info.name)
        self._tokenizer = tokenizer

    def render(self, messages: Messages, variables: Mapping[str, Any] = _NO_VARIABLES) -> str:
        """The text of a chat; `variables` are what else the template reads. Raises InputError for unsound messages."""
        return self._template.render({**_VARIABLES, **variables, "messages": _checked(messages)})

    def encode(self, text: str) -> list[int]:
        """The ids of a chat's text, which has its special tokens in it."""
        check_text(text, 0)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """The token that the template ends an assistant's turn with, where it is a token of its own; else ()."""
        try:
            text = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}])
        except KaokenError:
            return ()
        ids = self.encode(text.rpartition(_MARK)[2].strip()) if _MARK in text else []
        return tuple(ids[:1]) if ids[:1] and ids[0] in self._tokenizer.get_added_tokens_decoder() else ()

    def prompt(
        self,
        messages: Messages,
        n_positions: int,
        max_new_tokens: int,
        variables: Mapping[str, Any] = _NO_VARIABLES,
    ) -> Prompt:
        """A chat that ends where the assistant speaks.

        It leaves room in the context for max_new_tokens, but no more than half of it. A longer chat loses its oldest
        turns until three quarters of its room hold the rest, so that it can go on for some turns. System messages in
        front and the last turn stay. Raises InputError where these are too long.
        """
        checked = _checked(messages)
        if checked[-1]["role"] == "assistant":
            raise InputError("the last message is the assistant's, so there is nothing to answer: end with the user's")

        def ids_without(count: int) -> list[int]:
            kept = [*checked[:first], *checked[first + count :]]
            return self.encode(self.render(kept, {**variables, "add_generation_prompt": True}))

        first, cuts = _cuts(checked)
        room = n_positions - min(max_new_tokens, n_positions // 2)
        dropped, ids = 0, ids_without(0)
        if len(ids) > room and cuts:
            fits = bisect_left(cuts, True, key=lambda count: len(ids_without(count)) <= room * 3 // 4)
            dropped = cuts[min(fits, len(cuts) - 1)]
            ids = ids_without(dropped)
        if len(ids) >= n_positions:
            raise InputError(
                f"the last turn of the chat has {len(ids)} tokens with the system message, but the model has "
                f"n_positions = {n_positions}: shorten it"
            )
        return Prompt(ids, [*checked[:first], *checked[first + dropped :]], dropped)


def _checked(messages: Messages) -> list[dict[str, Any]]:
    """Messages as transformers hands them to templates: without None, and with reasoning under one name."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            "messages must be a list of at least one, as in [{'role': 'user', 'content': 'Hi'}], not "
            f"{_shown(messages)}"
        )
    return [_checked_message(message, index) for index, message in enumerate(messages)]


def _checked_message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"message {index} must be a dict with a role and a content, not {_shown(message)}")
    kept = {name: value for name, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _cuts(messages: Sequence[Mapping[str, Any]]) -> tuple[int, list[int]]:
    """How many system messages stand in front, and how many behind them may go: up to where another turn begins."""
    first = next((at for at, each in enumerate(messages) if each["role"] not in _SYSTEM), len(messages))
    users = [at for at, each in enumerate(messages) if each["role"] == "user"]
    return first, [at - first for at in users if at > first]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."

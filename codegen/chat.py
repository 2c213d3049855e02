"""What a library carries for chats: the checkpoint's template, and the texts of the special tokens that it may name.

The template is stored as it is. A program renders it when it chats, in a process with limits
(`python/kaoken/template.py`), so nothing of it runs while a model is baked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checkpoint import quoted
from .errors import CheckpointError
from .tokenizer import special_roles

_MAX_TEMPLATE_BYTES = 256 << 10  # the longest that is known, with all its tools, has 20 KB
_MAX_TOKEN_LENGTH = 256
_OR_REMOVE = "correct the field, or remove it to bake the model without a chat template"


def describe(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template and the special tokens of a tokenizer_config.json; None where there is no template.

    Of several named templates it is the one called "default", as in transformers. Raises CheckpointError for a template
    or a token that is no text, or is too long for one.
    """
    template = config.get("chat_template")
    if isinstance(template, list):
        template = _default(template)
    if template is None:
        return None
    if not isinstance(template, str):
        raise CheckpointError(f"the chat_template is {quoted(template)}; expected a text: {_OR_REMOVE}")
    _check_length(template)
    tokens = special_roles(config)
    for role, token in tokens.items():
        if len(token) > _MAX_TOKEN_LENGTH:
            raise CheckpointError(
                f"tokenizer_config.json: {role} is {quoted(token)}, of {len(token)} characters; expected at most "
                f"{_MAX_TOKEN_LENGTH}: correct it"
            )
    return {"template": template, "special_tokens": tokens}


def _default(templates: list[Any]) -> Any:
    entries = (entry for entry in templates if isinstance(entry, dict) and entry.get("name") == "default")
    return next((entry.get("template") for entry in entries), None)


def _check_length(template: str) -> None:
    try:
        size = len(template.encode("utf-8"))
    except UnicodeEncodeError:
        raise CheckpointError(f"the chat_template has a lone surrogate; expected Unicode text: {_OR_REMOVE}") from None
    if size > _MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            f"the chat_template has {size} bytes; expected at most {_MAX_TEMPLATE_BYTES}: shorten it, or remove it to "
            "bake the model without a chat template"
        )

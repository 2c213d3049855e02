"""The name of a model in the code that is made for it."""

from __future__ import annotations

import hashlib
import re


def identifier(name: str) -> str:
    """A model's name as part of a C symbol: [a-z0-9_], a letter first, at most 48 characters.

    Of a hub id only the part after the slash counts. A name that is too long keeps its beginning and ends in
    a digest of the whole.
    """
    base = re.sub(r"[^a-z0-9]+", "_", name.rsplit("/", 1)[-1].lower()).strip("_")
    if not base[:1].isalpha():
        base = f"model_{base}".rstrip("_")
    if len(base) <= 48:
        return base
    return f"{base[:39].rstrip('_')}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"

"""The number types of a baked model: which matrix is stored in which, and the type of the KV cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import InputError

# What a model's dtype stands for: the types of blocks, of the head and the token table, and of the KV cache.
CHOICES = {
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "int8": ("int8", "int8", "int8"),
    "int8-g32": ("int8-g32", "int8-g32", "int8"),
    "int4": ("int4", "int8", "int8"),  # an int8 head costs the least accuracy for what it saves
    "int4-all": ("int4", "int4", "int8"),
    "int4-min": ("int4-min", "int8", "int8"),
}
OWN = "own"  # those nearest the checkpoint's own (own_types.py)
DTYPES = tuple(CHOICES)
TENSOR_DTYPES = tuple(dict.fromkeys(blocks for blocks, _, _ in CHOICES.values()))
CACHE_DTYPES = tuple(dict.fromkeys(cache for _, _, cache in CHOICES.values()))

HEAD = "lm_head"  # the head's matrix, which is also the token table where they are tied
TOKENS = "wte"  # the token table of an untied model

# What others call these types, and what comes closest to one that Kaoken lacks.
_OTHER_NAMES = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "bfloat16, which is as wide (there is no float16)",
    "f16": "bfloat16, which is as wide (there is no float16)",
    "float16": "bfloat16, which is as wide (there is no float16)",
    "half": "bfloat16, which is as wide (there is no float16)",
    "double": "float32 (there is no float64)",
    "float64": "float32 (there is no float64)",
    "i8": "int8",
    "qint8": "int8",
    "q8_0": "int8-g32",
    "i4": "int4",
    "q4_0": "int4",
    "q4_1": "int4-min",
}


@dataclass(frozen=True)
class Types:
    """The type of every matrix, named as in the checkpoint ("h.0.attn.c_attn"), and of the KV cache."""

    dtype: str
    overrides: tuple[tuple[str, str], ...]  # (pattern, type); a later one wins
    cache: str

    def of(self, matrix: str, default: str | None = None) -> str:
        """The type of one matrix, where no override names it `default` or what the model's dtype stands for."""
        chosen = [dtype for pattern, dtype in self.overrides if fnmatchcase(matrix, pattern)]
        return chosen[-1] if chosen else default or self._default(matrix)

    def used(self) -> set[str]:
        """Every type that something is multiplied in: matrices and the cache."""
        return {self._default(HEAD), self._default("h.0"), *(dtype for _, dtype in self.overrides), self.cache}

    def check(self, matrices: Iterable[str]) -> None:
        """Raises InputError for an override that matches none of the matrices."""
        names = list(matrices)
        for pattern, _ in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                kinds = dict.fromkeys(re.sub(r"\b\d+\b", "N", name) for name in names)
                raise InputError(
                    f"tensor_dtypes: {pattern!r} matches no matrix of this model; they are {', '.join(kinds)}, "
                    f"up to {names[-1]}"
                )

    def _default(self, matrix: str) -> str:
        blocks, head, _ = CHOICES[self.dtype]
        return head if matrix in (HEAD, TOKENS) else blocks


def make_types(dtype: str, overrides: str = "", cache: str | None = None) -> Types:
    """Types from settings; overrides are like "h.*.mlp.*=int8,lm_head=bfloat16". Raises InputError.

    Those of "own" have no other use than to be resolved, and the cache's may be "".
    """
    _check_name("dtype", dtype, (*DTYPES, OWN))
    if cache or dtype != OWN:
        cache = cache or CHOICES[dtype][2]
        _check_name("cache_dtype", cache, CACHE_DTYPES)
    parsed: dict[str, str] = {}  # in the order of the last mention
    for pattern, tensor_dtype in (_parse(each) for each in overrides.replace(";", ",").split(",") if each.strip()):
        parsed.pop(pattern, None)
        parsed[pattern] = tensor_dtype
    return Types(dtype, tuple(parsed.items()), cache or "")


def _check_name(setting: str, dtype: object, known: tuple[str, ...]) -> None:
    if not isinstance(dtype, str) or dtype not in known:
        expected = f"expected one of {', '.join(known)}"
        raise InputError(f"{setting}={dtype!r} is unknown; {expected}{_meant(dtype, known)}")


def _meant(dtype: object, known: tuple[str, ...]) -> str:
    """Which type another library's name, or a type of torch's or NumPy's, stands for."""
    name = (re.findall(r"\w+", str(dtype).lower()) or [""])[-1]
    meant = _OTHER_NAMES.get(name, name)
    return f": write {meant}" if meant.split(",")[0].split(" ")[0] in known else ""


def _parse(override: str) -> tuple[str, str]:
    pattern, equals, dtype = (part.strip() for part in override.partition("="))
    if not pattern or not equals or dtype not in TENSOR_DTYPES:
        raise InputError(
            f"tensor_dtypes: {override.strip()!r} is no override; write PATTERN=TYPE with one of "
            f"{', '.join(TENSOR_DTYPES)}, like h.*.mlp.*=int8{_meant(dtype, TENSOR_DTYPES)}"
        )
    return pattern, dtype

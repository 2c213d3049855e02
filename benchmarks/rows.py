"""What is measured: the rows of the bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One kind of work for one request to a worker. Lengths are positions; `steps` counts steps, tokens, or prompts.

    Texts to encode are from `shortest` to `length` long where `shortest` is given, most of them short, as texts are.
    """

    name: str
    request: str
    batch: int
    length: int
    steps: int
    title: str
    peers: str = ""  # what the names of those that have it begin with
    shortest: int | None = None

    def task(self) -> str:
        """Of the models that it is for."""
        return self.request if self.request in ("encode", "translate") else "decode"

    def positions(self) -> int:
        """The longest sequence, and so the room that it needs in a KV cache."""
        if self.request == "translate":
            return max(self.length, self.steps + 1)
        return self.length + (0 if self.request in ("prefill", "encode") else self.steps + 1)

    def fields(self, seed: int) -> dict[str, Any]:
        """The request's."""
        return {
            "batch": self.batch,
            "length": self.length,
            "steps": self.steps,
            "positions": self.positions(),
            "seed": seed,
            **({} if self.shortest is None else {"shortest": self.shortest}),
        }


ROWS = {
    row.name: row
    for row in (
        Row("decode", "decode", 1, 128, 64, "decode, context 128 to 192"),
        Row("decode-batch8", "decode", 8, 128, 24, "decode step, batch 8"),
        Row("prefill-128", "prefill", 1, 128, 3, "prefill of 128 tokens"),
        Row("prefill-512", "prefill", 1, 512, 2, "prefill of 512 tokens"),
        Row("generate", "generate", 1, 16, 64, "a whole generate(): 64 tokens behind a prompt of 16", "torch "),
        Row("encode-16", "encode", 1, 16, 32, "one text of 16 tokens"),
        Row("encode-128", "encode", 1, 128, 8, "one text of 128 tokens"),
        Row("encode-8x64", "encode", 8, 64, 3, "8 texts of 64 tokens"),
        Row("encode-corpus", "encode", 256, 256, 1, "256 texts of 6 to 256 tokens", shortest=6),
        Row("translate", "translate", 1, 64, 64, "64 tokens for a source of 64"),
        Row("translate-batch16", "translate", 16, 64, 64, "64 tokens for each of 16 sources of 64"),
    )
}

# Ours at a short and at a long context, one behind the other.
SHORT = Row("context-16", "decode", 1, 16, 22, "decode, context 16")
LONG = Row("context-1000", "decode", 1, 1000, 22, "decode, context 1000")

# Measured otherwise: SHORT and LONG, in fresh processes, in four at once, and by the statistics of the build.
OTHER_ROWS = ("context", "cold", "processes", "build")
ROW_NAMES = (*ROWS, *OTHER_ROWS)


def rows_of(task: str, quick: bool) -> tuple[str, ...]:
    """The names of all rows for a task, or of those of a quick run."""
    if quick:
        return {
            "decode": ("decode", "prefill-128", "cold"),
            "encode": ("encode-16", "encode-128", "cold", "processes"),
            "translate": ("translate",),
        }[task]
    others = {"decode": ("context", "cold", "build"), "encode": ("cold", "processes", "build"), "translate": ("build",)}
    return (*(name for name, row in ROWS.items() if row.task() == task), *others[task])

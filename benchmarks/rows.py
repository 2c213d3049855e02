"""What is measured: the rows of the bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One kind of work for one request to a worker. Lengths are positions; `steps` counts steps, tokens, or prompts."""

    name: str
    request: str
    batch: int
    length: int
    steps: int
    title: str
    peers: str = ""  # what the names of those that have it begin with

    def positions(self) -> int:
        """The room that it needs in a KV cache."""
        return self.length + (0 if self.request == "prefill" else self.steps + 1)

    def fields(self, seed: int) -> dict[str, Any]:
        """The request's."""
        return {
            "batch": self.batch,
            "length": self.length,
            "steps": self.steps,
            "positions": self.positions(),
            "seed": seed,
        }


ROWS = {
    row.name: row
    for row in (
        Row("decode", "decode", 1, 128, 64, "decode, context 128 to 192"),
        Row("decode-batch8", "decode", 8, 128, 24, "decode step, batch 8"),
        Row("prefill-128", "prefill", 1, 128, 3, "prefill of 128 tokens"),
        Row("prefill-512", "prefill", 1, 512, 2, "prefill of 512 tokens"),
        Row("generate", "generate", 1, 16, 64, "a whole generate(): 64 tokens behind a prompt of 16", "torch "),
    )
}

# Ours at a short and at a long context, one behind the other.
SHORT = Row("context-16", "decode", 1, 16, 22, "decode, context 16")
LONG = Row("context-1000", "decode", 1, 1000, 22, "decode, context 1000")

# Measured otherwise: SHORT and LONG, in fresh processes, and by the statistics of the build.
OTHER_ROWS = ("context", "cold", "build")
ROW_NAMES = (*ROWS, *OTHER_ROWS)

"""CTranslate2: `Generator.generate_batch`, timed by its callback."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Decoder, Ids
from benchmarks.models import Checkpoint


class CTranslate2(Decoder):
    """The prompt goes through without logits but those of its last token (include_prompt_in_result=False)."""

    note = "generate_batch; step times are those between the calls of its callback"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        make_converter(checkpoint).convert(str(directory), quantization=variant, force=True)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(prepared), device="cpu", compute_type=variant, inter_threads=1, intra_threads=threads
        )

    def start(self, ids: Ids) -> Ids:
        return np.array([result.sequences_ids[0][0] for result in self._generate(ids, 1)])

    def step(self, tokens: Ids) -> Ids:
        raise NotImplementedError("CTranslate2 has no steps: see time_decode")

    def time_decode(self, ids: Ids, steps: int) -> list[float]:
        stamps: dict[int, float] = {}

        def arrived(result: Any) -> bool:
            stamps[result.step] = time.perf_counter()  # of several sequences, the last one
            return False

        self._generate(ids, steps + 1, callback=arrived)
        times = [stamps[step] for step in sorted(stamps)]
        return [after - before for before, after in pairwise(times)]

    def _generate(self, ids: Ids, count: int, **options: Any) -> list[Any]:
        prompts = [[f"t{token}" for token in row] for row in ids.tolist()]
        found: list[Any] = self._generator.generate_batch(
            prompts,
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            **options,
        )
        return found

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import ctranslate2
generator = ctranslate2.Generator({str(prepared)!r}, compute_type={variant!r}, intra_threads={threads})
result = generator.generate_batch(
    [["t%d" % token for token in range(1, 9)]], max_length=1, sampling_topk=1, include_prompt_in_result=False
)
print(result[0].sequences_ids[0][0], flush=True)
"""


def make_converter(checkpoint: Checkpoint) -> Any:
    """Its transformers converter, with tokens called t0, t1, ...: a random model has no tokenizer."""
    from ctranslate2.converters import TransformersConverter

    config = checkpoint.config()

    class Tokenizer:
        bos_token = eos_token = unk_token = f"t{config['vocab_size'] - 1}"
        pad_token = "t0"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{token}": token for token in range(config["vocab_size"])}

        def convert_ids_to_tokens(self, token: int) -> str:
            return f"t{token}"

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Tokenizer:
            return Tokenizer()

    return Converter(str(checkpoint.directory))


ENGINE = CTranslate2

"""The bars: how our time over a peer's must come out, with 2 threads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """`at_most` must be reached, `aim` is the goal; ratios of medians, of neighbours in time."""

    work: str
    row: str
    dtype: str
    peer: str
    at_most: float
    aim: float
    model: str = "gpt2"

    def verdict(self, ours: float) -> str:
        """Where a value lies."""
        if ours <= self.aim:
            return "reaches the aim"
        return "reaches the bar" if ours <= self.at_most else "MISSES the bar"


BARS = (
    Bar("decode float32", "decode", "float32", "ctranslate2 float32", 1.00, 0.92),
    Bar("decode bfloat16", "decode", "bfloat16", "llama.cpp BF16", 0.92, 0.85),
    Bar("decode int8", "decode", "int8", "llama.cpp Q8_0", 0.72, 0.64),
    Bar("decode int4 (head int8)", "decode", "int4", "llama.cpp Q4_0", 0.75, 0.62),
    Bar("decode int4 everywhere", "decode", "int4-all", "llama.cpp Q4_0", 0.60, 0.48),
    Bar("prefill 512 float32", "prefill-512", "float32", "ctranslate2 float32", 0.85, 0.72),
    Bar("prefill 512 bfloat16", "prefill-512", "bfloat16", "llama.cpp BF16", 0.65, 0.50),
    Bar("prefill 512 int8", "prefill-512", "int8", "ctranslate2 int8", 0.62, 0.52),
    Bar("prefill 128 int8", "prefill-128", "int8", "ctranslate2 int8", 0.55, 0.45),
    Bar("prefill 128 int8", "prefill-128", "int8", "openvino int8", 0.55, 0.45),
    Bar("decode step, batch 8, int8", "decode-batch8", "int8", "openvino int8", 0.60, 0.45),
    Bar("decode at context 1000 over 16, int8", "context", "int8", "itself", 1.35, 1.15),
    Bar("cold start to first token, int8", "cold", "int8", "openvino int8", 0.40, 0.30),
    Bar("peak memory then beside the weights, MB", "memory", "int8", "weights", 60.0, 40.0),
    Bar("decode int8", "decode", "int8", "llama.cpp Q8_0", 0.60, 0.42, "smollm2-135m"),
    Bar("decode int4 (head int8)", "decode", "int4", "llama.cpp Q4_0", 0.60, 0.38, "smollm2-135m"),
    Bar("prefill 512 int8", "prefill-512", "int8", "ctranslate2 int8", 0.50, 0.35, "smollm2-135m"),
    Bar("decode int8", "decode", "int8", "llama.cpp Q8_0", 0.78, 0.62, "qwen2.5-0.5b"),
    Bar("decode int4 (head int8)", "decode", "int4", "llama.cpp Q4_0", 0.80, 0.60, "qwen2.5-0.5b"),
    Bar("prefill 512 int8", "prefill-512", "int8", "ctranslate2 int8", 0.70, 0.55, "qwen2.5-0.5b"),
    Bar("16 tokens, int8", "encode-16", "int8", "openvino ptq", 0.75, 0.45, "minilm-l6"),
    Bar("128 tokens, int8", "encode-128", "int8", "openvino ptq", 0.75, 0.55, "minilm-l6"),
    Bar("corpus, int8", "encode-corpus", "int8", "openvino ptq", 0.65, 0.50, "minilm-l6"),
    Bar("corpus, float32", "encode-corpus", "float32", "openvino float32", 0.85, 0.75, "minilm-l6"),
    Bar("16 tokens, int8", "encode-16", "int8", "openvino ptq", 0.70, 0.45, "bert-base"),
    Bar("128 tokens, int8", "encode-128", "int8", "openvino ptq", 0.85, 0.68, "bert-base"),
    Bar("128 tokens, float32", "encode-128", "float32", "openvino float32", 0.92, 0.82, "bert-base"),
)

"""The engines that are measured. This table imports none of them; each is loaded in a process of its own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from benchmarks.engines.base import Engine


@dataclass(frozen=True)
class Entry:
    """One engine at one type of weights. `packages` are what it needs, as (module, distribution)."""

    name: str
    module: str
    variant: str
    packages: tuple[tuple[str, str], ...]
    families: tuple[str, ...] = ()  # model types that it is measured with; empty is all of its task

    def lacks(self, family: str) -> str | None:
        """Why it cannot be measured with a model of a type; None where it can."""
        if self.families and family not in self.families:
            return f"measured with {', '.join(self.families)} alone"
        lacking = self.missing()
        return f"not installed: {', '.join(lacking)}" if lacking else None

    def missing(self) -> list[str]:
        """The distributions that are not installed."""
        return [distribution for module, distribution in self.packages if find_spec(module) is None]

    def versions(self) -> dict[str, str]:
        """Of each of its distributions that says so."""
        found = {}
        for _, distribution in self.packages:
            try:
                found[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
        return found

    def engine(self) -> type[Engine]:
        """Its class, for which its packages are imported."""
        found: type[Engine] = importlib.import_module(f"benchmarks.engines.{self.module}").ENGINE
        return found


_TORCH = (("torch", "torch"), ("transformers", "transformers"))
_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "kaoken": (("kaoken", "kaoken"),),
    "torch": _TORCH,
    "torch-compile": _TORCH,
    "onnxruntime": (("onnxruntime", "onnxruntime"), ("onnx", "onnx"), *_TORCH),
    "openvino": (("openvino", "openvino"), ("nncf", "nncf"), *_TORCH),
    "ctranslate2": (("ctranslate2", "ctranslate2"), *_TORCH),
    "llama.cpp": (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")),
}
_FAMILIES = {  # by module
    "torch_compile": ("gpt2",),  # ten minutes for the 30 blocks of a SmolLM2
}
_MODULES = {"torch-compile": "torch_compile", "torch": "torch_eager", "llama.cpp": "llama_cpp_python"}

# The types of ours, and the peers that each is measured against, by task.
PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "decode": {
        "float32": (
            "torch float32",
            "torch-compile float32",
            "onnxruntime float32",
            "openvino float32",
            "ctranslate2 float32",
            "llama.cpp F32",
        ),
        "bfloat16": ("llama.cpp BF16",),
        "int8": ("onnxruntime int8", "openvino int8", "ctranslate2 int8", "llama.cpp Q8_0"),
        "int8-g32": ("llama.cpp Q8_0",),
        "int4": ("openvino int4", "llama.cpp Q4_0"),
        "int4-min": ("llama.cpp Q4_1",),
        "int4-all": ("openvino int4", "llama.cpp Q4_0"),
    },
    "encode": {
        "float32": (
            "torch float32",
            "onnxruntime float32",
            "openvino float32",
            "ctranslate2 float32",
            "llama.cpp F32",
        ),
        "bfloat16": ("llama.cpp BF16",),
        "int8": ("onnxruntime int8", "openvino int8", "openvino ptq", "ctranslate2 int8", "llama.cpp Q8_0"),
    },
    "translate": {
        "float32": ("torch float32", "onnxruntime float32", "ctranslate2 float32"),
        "int8": ("onnxruntime int8", "ctranslate2 int8"),
    },
}
DTYPES = tuple(PEERS["decode"])


def peers_of(task: str, dtype: str) -> tuple[str, ...]:
    """The names of those that a type of ours is measured against; none for a type that no peer has."""
    return PEERS[task].get(dtype, ())


def get_entry(name: str, task: str = "decode") -> Entry:
    """The entry called "ENGINE VARIANT" for a task. Raises KeyError for an unknown engine."""
    engine, variant = name.split(" ")
    module = _MODULES.get(engine, f"{engine}_engine")
    if task != "decode":
        module = f"{engine.replace('.', '_')}_{task}"
    return Entry(name, module, variant, _PACKAGES[engine], _FAMILIES.get(module, ()))

"""The stages on one screen: checkpoint, graph, rewrites, files.

The plan looks at config and tensor headers (and at the head where a tied checkpoint stores one all the same) and tells
CMake which files will come; `generate` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import chat, rewrites, tokenizer
from .checkpoint import Checkpoint, open_checkpoint
from .context import shorten
from .dtypes import Types
from .emit import library_text, model_texts, unit_texts, weights_texts
from .emit.units import CodeFile
from .errors import CheckpointError
from .families import read_graph, sentence
from .families.fields import ACTIVATIONS
from .files import write_if_changed
from .generation import read_generation
from .graph import Graph
from .isa import table
from .memory import MemoryBudget
from .packing import Blob, Matrix, PackedModel, pack
from .recipe import Recipe, read_recipe
from .smooth import smooth

# What models of a kind are for, as the hub calls it.
USUAL_TASKS = {
    "decoder": "text-generation",
    "encoder": "feature-extraction",
    "encoder-decoder": "text2text-generation",
}


@dataclass(frozen=True)
class Options:
    """What a bake is told, beside the checkpoint."""

    name: str  # a C identifier
    source: str  # as the user named the checkpoint
    revision: str | None
    types: Types
    isas: tuple[str, ...]  # resolved, worst first
    portable: tuple[str, ...]  # what "portable" would have resolved to: the library says which of them it lacks
    version: str
    budget: MemoryBudget
    kernels: str = "packed"
    adapter: str | None = None  # the directory of one
    recipe: str | None = None  # the file of one
    context: int | None = None  # positions, where they are fewer than the checkpoint's

    @property
    def adapter_directory(self) -> Path | None:
        return None if self.adapter is None else Path(self.adapter)


@dataclass(frozen=True)
class Baked:
    """Everything that emission needs."""

    checkpoint: Checkpoint
    packed: PackedModel
    options: Options
    texts_read: dict[str, Any]  # for the description: how an encoder's texts are prepared, or a decoder's chats
    recipe: Recipe | None = None

    def code(self) -> Iterator[CodeFile]:
        """Files compiled once for each ISA, and the header they share."""
        yield from model_texts(self.options.name, self.packed)
        yield from unit_texts(self.options.name, self.packed)

    def weights(self) -> Iterator[tuple[CodeFile, Blob]]:
        """Files compiled once, each with the blob that it embeds."""
        return weights_texts(self.options.name, self.packed)

    def library(self) -> CodeFile:
        """The file that ties them together."""
        options = self.options
        isas = tuple(table()[name] for name in options.isas)
        known = tuple(row for name, row in table().items() if name in {*options.isas, *options.portable})
        tokenizer_size = len(self.checkpoint.tokenizer or b"")
        return library_text(options.name, self.packed, isas, known, options.version, tokenizer_size)

    def texts(self) -> dict[str, bytes]:
        """Files that library.cpp embeds."""
        texts = {"description.json": self.description().encode()}
        if self.checkpoint.tokenizer:
            texts["tokenizer.json"] = self.checkpoint.tokenizer
        return texts

    def _adapter(self) -> dict[str, str]:
        """Its directory's own name, where there is one."""
        adapter = self.options.adapter_directory
        return {} if adapter is None else {"adapter": adapter.resolve().name}

    def description(self) -> str:
        """The JSON that a library carries about itself (kaoken_model_info.description)."""
        options = self.options
        generation = read_generation(self.checkpoint)
        weights_sha256 = self.checkpoint.sha256()
        if self.recipe is not None and self.recipe.origin.weights_sha256 != weights_sha256:
            raise CheckpointError(
                f"{self.recipe.path} was made of other weights than {self.checkpoint.directory}: calibrate these"
            )
        return json.dumps(
            {
                "name": options.name,
                "source": options.source,
                "revision": options.revision,
                "weights_sha256": weights_sha256,
                "dtype": options.types.dtype,
                "kernels": options.kernels,
                "cache_dtype": options.types.cache,
                "tensor_dtypes": dict(options.types.overrides),
                "settings": {"isa": list(options.isas), "compile_memory": options.budget.cap, **self._adapter()},
                "config": config_of(self.packed.graph),
                "matrices": [_matrix_of(matrix) for matrix in self.packed.matrices],
                "decoding_matrices": len(self.packed.decoding),
                "generation_defaults": generation.defaults,
                "ignored_generation_options": generation.ignored,
                **({} if self.recipe is None else {"calibration": self.recipe.describe()}),
                **self.texts_read,
            }
        )


def _matrix_of(matrix: Matrix) -> dict[str, Any]:
    """What a model library says of one matrix."""
    return {
        "name": matrix.source,
        "dtype": matrix.dtype,
        "outputs": matrix.rows,
        "inputs": matrix.depth,
        "nbytes": matrix.nbytes,
    }


def config_of(graph: Graph) -> dict[str, Any]:
    """What a model library says of its model's shape."""
    blocks = [(block.attention, block.mlp) for block in graph.blocks]
    names = {function: name for name, function in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": graph.vocabulary,
        "kind": graph.kind,
        "task": graph.task.name or USUAL_TASKS[graph.kind],
        "labels": list(graph.task.labels),
        "function": graph.task.function,
        "score_function": graph.task.score,
        "has_head": graph.head is not None,
        "pools": bool(graph.head and graph.head.pooling),
        "output_width": graph.output_width,
        "family": graph.family,
        "n_positions": graph.stack.limit,
        "n_embd": graph.width,
        "n_layer": len(blocks),
        "blocks": [
            {
                "n_head": attention.heads,
                "n_kv_head": attention.kv_heads,
                "head_dim": attention.head_dim,
                "n_inner": mlp.inner,
            }
            for attention, mlp in blocks
        ],
        "activation_function": names[blocks[0][1].activation],
        "layer_norm_epsilon": None if graph.stack.norm is None else graph.stack.norm.epsilon,
        "tie_word_embeddings": graph.tied,
        "eos_token_ids": list(graph.special.eos),
        "bos_token_id": graph.special.bos,
        "pad_token_id": graph.special.pad,
        "decoder_start_token_id": graph.special.start,
        "type_vocab_size": 0 if graph.stack.embeddings.types is None else graph.stack.embeddings.types.shape[0],
        "source_positions": graph.encoder.limit if graph.encoder and graph.decoder else 0,
        "source_layers": len(graph.encoder.blocks) if graph.encoder and graph.decoder else 0,
    }


def bake(directory: Path, options: Options) -> Baked:
    """Checkpoint to packed model, whose values are read when something asks for them."""
    checkpoint = open_checkpoint(directory, options.adapter_directory)
    recipe = None if options.recipe is None else read_recipe(Path(options.recipe))
    graph = shorten(read_graph(checkpoint), options.context)
    graph = rewrites.run(graph if recipe is None else smooth(graph, recipe.factors, recipe.path), options.types)
    strip_file_limit = options.budget.strip_file_limit if options.kernels == "exploded" else None
    packed = pack(graph, options.types, options.budget.blob_limit, strip_file_limit)
    return Baked(checkpoint, packed, options, _texts_read(checkpoint, graph.kind), recipe)


def _texts_read(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    if kind != "encoder":
        template = chat.describe(checkpoint.tokenizer_config) if checkpoint.tokenizer and kind == "decoder" else None
        return {} if template is None else {"chat": template}
    return {
        "sentence": sentence.describe(checkpoint),
        "text": tokenizer.describe(checkpoint.tokenizer, checkpoint.tokenizer_config),
    }


def generate(baked: Baked, out: Path) -> None:
    """Writes every generated file into the directory `out`."""
    for source in (*baked.code(), baked.library()):
        write_if_changed(out / source.name, [source.text.encode()])
    for source, blob in baked.weights():
        write_if_changed(out / f"{blob.name}.bin", blob.chunks())
        write_if_changed(out / source.name, [source.text.encode()])
    for name, content in baked.texts().items():
        write_if_changed(out / name, [content])

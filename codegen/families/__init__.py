"""The families of models that Kaoken bakes, a module each, named after the model_type of config.json.

A hyphen of the model_type is an underscore there. A module has TITLE, ARCHITECTURES, ALIASES, OFF and HARMLESS for
config.json, PREFIX and IGNORED for the names of tensors, and `read(fields, tokens, weights)`, which returns the graph.
KAOKEN_FAMILIES names directories with more of them, whose code runs as part of a bake.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import GENERATION_CONFIG, Checkpoint, quoted
from ..errors import UnsupportedModelError
from ..graph import Graph, verify
from .adapter import read_adapter
from .fields import Fields
from .sentence import add_modules, has_no_head
from .weights import Weights

EXTRA = [Path(path).resolve() for path in os.environ.get("KAOKEN_FAMILIES", "").split(os.pathsep) if path]
__path__ += [str(path) for path in EXTRA]

# Modules of this package that are no families.
_PARTS = ("adapter", "distance", "fields", "heads", "post_norm", "rotary", "sentence", "weights", "windows")


def read_graph(checkpoint: Checkpoint) -> Graph:
    """The graph of a checkpoint as it states it, before any rewrite, with every field and every tensor accounted for.

    Weights are read only where a tied checkpoint also stores a head.

    Raises UnsupportedModelError for a family, option or tensor that Kaoken does not know, and CheckpointError for
    values out of range and for a config that contradicts the tensors.
    """
    return read_weights(checkpoint)[0]


def read_weights(checkpoint: Checkpoint) -> tuple[Graph, Weights]:
    """The graph, and the tensors by the family's names."""
    path = checkpoint.config_file
    family = _family(checkpoint.config, path)
    config = checkpoint.config
    if has_no_head(checkpoint):
        config = {name: value for name, value in config.items() if name != "architectures"}
        config["tie_word_embeddings"] = True  # so that nothing is missing where a decoder has no matrix of logits
    checkpoint = checkpoint.named(lambda: check_config(config, path), family.PREFIX)
    weights = Weights(checkpoint, family.PREFIX, family.IGNORED, read_adapter(checkpoint, family.PREFIX))
    graph = _read(family, config, path, _token_fields(checkpoint), weights)
    weights.finish(f"{family.TITLE} of {len(graph.blocks)} layers")
    return add_modules(graph, checkpoint), weights


def check_config(config: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this config has, with their shapes. Raises what `read_graph` raises for it."""
    family = _family(config, path)
    weights = Weights(None, family.PREFIX, family.IGNORED)
    _read(family, config, path, None, weights)
    return weights.expected


def _read(family: Any, config: Mapping[str, Any], path: Path, tokens: Fields | None, weights: Weights) -> Graph:
    fields = Fields(config, str(path), family.ALIASES)
    graph: Graph = family.read(fields, tokens or fields, weights)
    fields.finish(family.TITLE, family.OFF, family.HARMLESS)
    verify(graph)
    return replace(graph, family=config.get("model_type") or family.__name__.rpartition(".")[2])


def _token_fields(checkpoint: Checkpoint) -> Fields | None:
    """The fields that name special tokens: generation_config.json's alone if there is one, as in transformers."""
    if checkpoint.generation_config is None:
        return None
    absent = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    return Fields(absent | checkpoint.generation_config, str(checkpoint.directory / GENERATION_CONFIG))


def families() -> list[str]:
    """The modules of all families."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)


def _family(config: Mapping[str, Any], path: Path) -> Any:
    """The module of a config's model_type or, where that is missing, of its architecture."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    names = [] if architectures is None else architectures if isinstance(architectures, list) else [architectures]
    known = {name: importlib.import_module(f"{__name__}.{name}") for name in families()}
    fitting = [name for name in known if names and set(map(str, names)) <= set(known[name].ARCHITECTURES)]
    found = model_type if model_type is not None else next(iter(fitting), None)
    found = found.replace("-", "_") if isinstance(found, str) else found
    if not isinstance(found, str) or found not in known:
        raise UnsupportedModelError(
            f"{path}: model_type is {quoted(model_type)} and architectures {quoted(architectures)}; expected one of "
            f"the families that Kaoken bakes, {', '.join(known)}: choose a checkpoint of one of these"
        )
    family = known[found]
    for name in names:
        if name not in family.ARCHITECTURES:
            raise UnsupportedModelError(
                f"{path}: architectures names {quoted(name)}; expected one of {', '.join(family.ARCHITECTURES)}: "
                "choose a checkpoint with a head that Kaoken bakes"
            )
    return family

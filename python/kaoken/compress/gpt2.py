"""GPT-2 for training and pruning: the one file that knows its modules, tensors and config fields.

Blocks may have sizes of their own, as `kaoken_blocks` in config.json says (`codegen/families/gpt2.py`): attention of
n_head * head_dim columns, which need not be n_embd, scaled by 1 / sqrt(head_dim), and n_inner neurons.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention
from transformers.pytorch_utils import Conv1D

from kaoken.codegen.checkpoint import (
    CONFIG,
    GENERATION_CONFIG,
    NAMES,
    TOKENIZER,
    TOKENIZER_PARTS,
    WEIGHTS,
    Checkpoint,
    open_checkpoint,
    quoted,
)
from kaoken.codegen.families import check_config, read_weights
from kaoken.codegen.graph import Graph
from kaoken.errors import CheckpointError, InputError, UnsupportedModelError

Sizes = tuple[int, int, int]  # n_head, head_dim and n_inner of a block

TRAINING_FIELDS = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range")


class GPT2LMHeadModel(transformers.GPT2LMHeadModel):
    """transformers' model, with blocks of the sizes in `config.kaoken_blocks` where that is there.

    It has its parent's name because `save_pretrained` writes the name of the class into config.json.
    """

    def __init__(self, config: transformers.GPT2Config) -> None:
        sizes = getattr(config, "kaoken_blocks", None)
        if sizes and config.n_embd % config.n_head:
            config.n_head = 1  # says nothing here, but the parent's attention divides by it
        super().__init__(config)
        if sizes:
            for layer, (block, size) in enumerate(zip(self.transformer.h, sizes, strict=True)):
                block.attn = _attention(config, layer, size["n_head"], size["head_dim"])
                block.mlp = GPT2MLP(size["n_inner"], config)
            self.transformer.init_weights()  # of those that are new


def _attention(config: transformers.GPT2Config, layer: int, n_head: int, head_dim: int) -> GPT2Attention:
    """GPT2Attention of any number of columns, which its constructor wants to be n_embd."""
    attention = GPT2Attention(config, layer_idx=layer)
    attention.scaling *= math.sqrt(attention.head_dim / head_dim) if config.scale_attn_weights else 1.0
    attention.num_heads, attention.head_dim, attention.split_size = n_head, head_dim, n_head * head_dim
    attention.c_attn = Conv1D(3 * n_head * head_dim, config.n_embd)
    attention.c_proj = Conv1D(config.n_embd, n_head * head_dim)
    return attention


def new(config: Mapping[str, Any], seed: int | None) -> GPT2LMHeadModel:
    """A model of these fields of GPT2Config with random weights, drawn by transformers; on no device without a seed."""
    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    if seed is None:
        with torch.device("meta"):
            return GPT2LMHeadModel(transformers.GPT2Config(**fields))
    transformers.set_seed(seed)
    return GPT2LMHeadModel(transformers.GPT2Config(**fields))


def check_new(config: Mapping[str, Any], path: Path) -> None:
    """Raises KaokenError for a config.json of which `new` makes nothing that can be baked."""
    _require_gpt2(config, path)
    check_config(config, path)
    _check_training_fields(config, path)


def _require_gpt2(config: Mapping[str, Any], path: Path) -> None:
    model_type = config.get("model_type", "gpt2")
    if model_type != "gpt2":
        raise UnsupportedModelError(
            f"{path}: model_type is {quoted(model_type)}; expected 'gpt2', the family that Kaoken trains and prunes"
        )


def config_fields(model: transformers.GPT2LMHeadModel) -> dict[str, Any]:
    """What `new` takes for a model of the same sizes and options."""
    fields: dict[str, Any] = model.config.to_diff_dict()
    return {name: value for name, value in fields.items() if name != "transformers_version"}


def set_dropout(model: transformers.GPT2LMHeadModel, probability: float) -> None:
    """The same everywhere, in the config too."""
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        setattr(model.config, name, probability)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


# Checkpoints


def load(directory: str | Path) -> GPT2LMHeadModel:
    """The model of a checkpoint directory in float32 and evaluation mode; KaokenError where baking would refuse it."""
    checkpoint = open_checkpoint(Path(directory))
    _require_gpt2(checkpoint.config, checkpoint.directory / CONFIG)
    graph, weights = read_weights(checkpoint)
    names = [name for name in weights.expected if not (graph.tied and name == "lm_head.weight")]
    model = _build(
        _read_config(checkpoint, graph), {_stored(name): torch.from_numpy(weights.read(name)) for name in names}
    )
    if checkpoint.generation_config is not None:
        try:
            model.generation_config = transformers.GenerationConfig.from_dict(checkpoint.generation_config)
        except (TypeError, ValueError, AttributeError) as error:
            path = checkpoint.directory / GENERATION_CONFIG
            raise CheckpointError(f"{path} is not what transformers reads ({error}): correct or remove it") from error
    return model


def save(model: transformers.GPT2LMHeadModel, directory: str | Path, tokenizer_from: str | Path | None = None) -> Path:
    """Writes a checkpoint that `load`, Kaoken and, where the blocks are alike, transformers read.

    `tokenizer_from` is a checkpoint directory whose tokenizer files are copied. The directory appears whole or not at
    all; one that is there is replaced if it is empty or a checkpoint, and InputError is raised if it is anything else.
    """
    directory = Path(directory).absolute()
    _require_replaceable(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir()
            _write(model, new)
            if tokenizer_from is not None:
                copy_tokenizer(Path(tokenizer_from), new)
            if directory.exists():
                directory.rename(old)
            new.rename(directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be written ({error}): free some space or choose another") from error
    return directory


def _stored(name: str) -> str:
    """A canonical tensor name as GPT2LMHeadModel has it."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _build(config: transformers.GPT2Config, state: dict[str, torch.Tensor]) -> GPT2LMHeadModel:
    """A model that takes these tensors for its own, and draws no random numbers."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.eval()
    return model


def _read_config(checkpoint: Checkpoint, graph: Graph) -> transformers.GPT2Config:
    """The config of a graph, with what config.json says of training."""
    given, special, norm = checkpoint.config, graph.special, graph.stack.norm
    assert norm is not None
    _check_training_fields(given, checkpoint.directory / CONFIG)
    options = (*TRAINING_FIELDS, "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    return transformers.GPT2Config(
        vocab_size=graph.vocabulary,
        n_positions=graph.stack.limit,
        n_embd=graph.width,
        activation_function=given.get("activation_function", "gelu_new"),
        layer_norm_epsilon=norm.epsilon,
        tie_word_embeddings=graph.tied,
        bos_token_id=special.bos,
        eos_token_id=list(special.eos) if len(special.eos) > 1 else next(iter(special.eos), None),
        pad_token_id=special.pad,
        **_size_fields(
            graph.width,
            [(block.attention.heads, block.attention.head_dim, block.mlp.inner) for block in graph.blocks],
        ),
        **{name: given[name] for name in options if name in given},
    )


def _check_training_fields(config: Mapping[str, Any], path: Path) -> None:
    for name in TRAINING_FIELDS:
        if name in config and not (isinstance(config[name], int | float) and 0 <= config[name] < 1):
            raise CheckpointError(f"{path}: {name} is {quoted(config[name])}; expected 0 to below 1: correct it")


def _size_fields(n_embd: int, sizes: Sequence[Sizes]) -> dict[str, Any]:
    """The fields of config.json for blocks of these sizes: transformers' own where those can say it."""
    n_head, head_dim, n_inner = sizes[0]
    if set(sizes) == {sizes[0]} and n_head * head_dim == n_embd:
        return {"n_layer": len(sizes), "n_head": n_head, "n_inner": None if n_inner == 4 * n_embd else n_inner}
    names = ("n_head", "head_dim", "n_inner")
    irregular = [dict(zip(names, size, strict=True)) for size in sizes]
    return {"n_layer": len(sizes), "n_head": 1, "n_inner": None, "kaoken_blocks": irregular}


def _require_replaceable(directory: Path) -> None:
    """InputError for a path that holds anything but a checkpoint."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; expected a directory to write: choose another")
    names = {path.name for path in directory.iterdir()}
    if names and (CONFIG not in names or not names <= {*NAMES, "README.md"}):
        raise InputError(
            f"{directory} holds {quoted(sorted(names)[:3])}, not just a checkpoint: choose another directory"
        )


def _write(model: transformers.GPT2LMHeadModel, directory: Path) -> None:
    """config.json, generation_config.json and model.safetensors."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = ["GPT2LMHeadModel"], model.dtype
    config.save_pretrained(directory)
    model.generation_config.to_json_file(directory / GENERATION_CONFIG)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def copy_tokenizer(source: Path, directory: Path) -> None:
    for name in (TOKENIZER, *TOKENIZER_PARTS):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


# Sizes


def blocks(model: transformers.GPT2LMHeadModel) -> list[Sizes]:
    """(n_head, head_dim, n_inner) of each block."""
    return [
        (block.attn.num_heads, block.attn.head_dim, block.mlp.c_proj.weight.shape[0]) for block in model.transformer.h
    ]


def parameters(model: transformers.GPT2LMHeadModel) -> int:
    """How many parameters there are; a tied head is its embedding."""
    return sum(parameter.numel() for parameter in model.parameters())


def branches(model: transformers.GPT2LMHeadModel) -> list[tuple[Conv1D, Conv1D]]:
    """The last matrices of each block's attention and MLP, [attended columns, n_embd] and [neurons, n_embd]."""
    return [(block.attn.c_proj, block.mlp.c_proj) for block in model.transformer.h]


def norms(model: transformers.GPT2LMHeadModel) -> list[torch.nn.LayerNorm]:
    """All that reads the residual stream, in order: two of each block, and the last."""
    return [norm for block in model.transformer.h for norm in (block.ln_1, block.ln_2)] + [model.transformer.ln_f]


def matrices(model: transformers.GPT2LMHeadModel) -> dict[str, Conv1D]:
    """The four matrices [inputs, outputs] of each block, by their names in a checkpoint."""
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    every = range(len(model.transformer.h))
    return {f"h.{layer}.{name}": model.transformer.h[layer].get_submodule(name) for layer in every for name in names}


def describe(model: transformers.GPT2LMHeadModel) -> str:
    """Its sizes, for people."""
    sizes, config = blocks(model), model.config
    each = [f"{n_head} heads of {head_dim}, {n_inner} neurons" for n_head, head_dim, n_inner in sizes]
    inside = each[0] if len(set(each)) == 1 else "; ".join(each)
    return f"{len(sizes)} layers, width {config.n_embd}, {inside}, context {config.n_positions}"


# Cutting


@dataclass(frozen=True)
class BlockCut:
    """What is kept of a block: indices in ascending order."""

    layer: int
    heads: tuple[int, ...]
    dims: tuple[tuple[int, ...], ...]  # of each kept head, as many of one as of another; those of query, key and value
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """What is kept of a model: blocks, channels of the residual stream, and the first so many positions."""

    blocks: tuple[BlockCut, ...]
    channels: tuple[int, ...]
    positions: int


def whole(model: transformers.GPT2LMHeadModel) -> Cut:
    """The cut that keeps everything."""
    kept = tuple(
        BlockCut(layer, tuple(range(n_head)), (tuple(range(head_dim)),) * n_head, tuple(range(n_inner)))
        for layer, (n_head, head_dim, n_inner) in enumerate(blocks(model))
    )
    return Cut(kept, tuple(range(model.config.n_embd)), model.config.n_positions)


def carve(model: transformers.GPT2LMHeadModel, cut: Cut) -> GPT2LMHeadModel:
    """A new model of the kept parts, whose weights are exact copies, with one exception.

    Attention is scaled by 1 / sqrt(head_dim), and by the layer where the config asks for that. Where either changes,
    the kept query weights are multiplied by the old scale over the new one, so that the scores keep their size.
    """
    _require_sound(model, cut)
    config = copy.deepcopy(model.config)
    config.n_embd, config.n_positions = len(cut.channels), cut.positions
    sizes = [(len(block.heads), len(block.dims[0]), len(block.neurons)) for block in cut.blocks]
    if hasattr(config, "kaoken_blocks"):
        del config.kaoken_blocks
    for name, value in _size_fields(config.n_embd, sizes).items():
        setattr(config, name, value)
    with torch.no_grad():
        carved = _build(config, _kept_tensors(model, cut))
        for new, block in zip(carved.transformer.h, cut.blocks, strict=True):
            ratio = model.transformer.h[block.layer].attn.scaling / new.attn.scaling
            new.attn.c_attn.weight[:, : new.attn.split_size] *= ratio
            new.attn.c_attn.bias[: new.attn.split_size] *= ratio
    carved.generation_config = copy.deepcopy(model.generation_config)
    return carved


def _kept_tensors(model: transformers.GPT2LMHeadModel, cut: Cut) -> dict[str, torch.Tensor]:
    """Copies of the kept parts by their new names."""
    state = {}
    base, channels = model.transformer, list(cut.channels)
    state["transformer.wte.weight"] = base.wte.weight[:, channels]
    state["transformer.wpe.weight"] = base.wpe.weight[: cut.positions, channels]
    state["transformer.ln_f.weight"], state["transformer.ln_f.bias"] = (
        base.ln_f.weight[channels],
        base.ln_f.bias[channels],
    )
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight[:, channels]
    for layer, block in enumerate(cut.blocks):
        old = base.h[block.layer]
        columns = attended(block, old.attn.head_dim)
        fused = [part * old.attn.split_size + column for part in range(3) for column in columns]
        neurons = list(block.neurons)
        kept = {
            "ln_1.weight": old.ln_1.weight[channels],
            "ln_1.bias": old.ln_1.bias[channels],
            "attn.c_attn.weight": old.attn.c_attn.weight[channels][:, fused],
            "attn.c_attn.bias": old.attn.c_attn.bias[fused],
            "attn.c_proj.weight": old.attn.c_proj.weight[columns][:, channels],
            "attn.c_proj.bias": old.attn.c_proj.bias[channels],
            "ln_2.weight": old.ln_2.weight[channels],
            "ln_2.bias": old.ln_2.bias[channels],
            "mlp.c_fc.weight": old.mlp.c_fc.weight[channels][:, neurons],
            "mlp.c_fc.bias": old.mlp.c_fc.bias[neurons],
            "mlp.c_proj.weight": old.mlp.c_proj.weight[neurons][:, channels],
            "mlp.c_proj.bias": old.mlp.c_proj.bias[channels],
        }
        state |= {f"transformer.h.{layer}.{name}": tensor for name, tensor in kept.items()}
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def attended(block: BlockCut, head_dim: int) -> list[int]:
    """The kept ones of the n_head * head_dim columns of attention; `head_dim` is that of the model before the cut."""
    return [head * head_dim + dim for head, dims in zip(block.heads, block.dims, strict=True) for dim in dims]


def _require_sound(model: transformers.GPT2LMHeadModel, cut: Cut) -> None:
    """InputError for a cut that keeps nothing of a part, or what the model lacks."""
    sizes = blocks(model)
    _require_indices("layers", [block.layer for block in cut.blocks], len(sizes))
    _require_indices("channels", cut.channels, model.config.n_embd)
    if not 1 <= cut.positions <= model.config.n_positions:
        raise InputError(f"a cut keeps {cut.positions} positions; expected 1 to {model.config.n_positions}: change it")
    for block in cut.blocks:
        n_head, head_dim, n_inner = sizes[block.layer]
        _require_indices(f"heads of layer {block.layer}", block.heads, n_head)
        _require_indices(f"neurons of layer {block.layer}", block.neurons, n_inner)
        for dims in block.dims:
            _require_indices(f"dims of a head of layer {block.layer}", dims, head_dim)
        if len(block.dims) != len(block.heads) or len({len(dims) for dims in block.dims}) != 1:
            raise InputError(f"a cut keeps other dims of some heads of layer {block.layer}: keep as many of each head")


def _require_indices(what: str, kept: Sequence[int], count: int) -> None:
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise InputError(f"a cut keeps the {what} {quoted(kept)}; expected some of 0 to {count - 1} in ascending order")

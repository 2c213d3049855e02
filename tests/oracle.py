"""An independent GPT-2 in NumPy float64, against which the compiled model is judged.

Written from the paper (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") and
from the semantics of `GPT2LMHeadModel` in transformers, on the checkpoint's tensors as they are stored:
nothing is folded, packed or reordered, and nothing of Kaoken is imported. `tests/test_oracle.py` checks it
against values worked out by hand and against outputs that transformers itself produced.

Arrays are float64. Shapes: `x` is [..., n_embd], ids are [batch, count], weights are Conv1D's [in, out].
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

# The defaults of transformers' GPT2Config for the fields that change the result.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis; biased variance."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weight + bias


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x @ weight + bias, with Conv1D's weight [in, out]."""
    return x @ weight + bias


def gelu_tanh(x: Array) -> Array:
    """`gelu_new` and `gelu_pytorch_tanh`: the tanh form of Hendrycks and Gimpel, arXiv:1606.08415."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: Array) -> Array:
    """`gelu`: x times the normal distribution's cumulative function."""
    # x * erfc(-x / sqrt 2) / 2 keeps its precision far out on the negative side, where 1 + erf cancels.
    return 0.5 * x * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2.0))


def silu(x: Array) -> Array:
    """`silu`: x times the logistic function, which is written with tanh because exp(-x) overflows."""
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))


def relu(x: Array) -> Array:
    """`relu`: max(x, 0)."""
    return np.maximum(x, 0.0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": gelu_erf,
    "relu": relu,
    "silu": silu,
    "swish": silu,
    "tanh": np.tanh,
}


def softmax(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis; -inf gives 0."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Causal softmax(query key^T * scale) value.

    query [..., count, d] are the last `count` of the `total` positions of key and value [..., total, d].
    """
    count, total = query.shape[-2], key.shape[-2]
    scores = query @ np.swapaxes(key, -1, -2) * scale
    visible = np.arange(total) <= np.arange(total - count, total)[:, None]
    return softmax(np.where(visible, scores, -np.inf)) @ value


@dataclass
class KVCache:
    """Keys and values of one layer, [batch, n_head, positions, head_dim]; empty before the first append."""

    key: Array | None = None
    value: Array | None = None

    def append(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Adds positions and returns all of them."""
        self.key = key if self.key is None else np.concatenate([self.key, key], axis=-2)
        self.value = value if self.value is None else np.concatenate([self.value, value], axis=-2)
        return self.key, self.value


@dataclass(frozen=True)
class Block:
    """One transformer block: its tensors by their names within the block, and its own sizes."""

    tensors: Mapping[str, Array]
    n_head: int
    head_dim: int
    scale: float
    activation: Callable[[Array], Array]
    epsilon: float

    def norm(self, x: Array, name: str) -> Array:
        """LayerNorm `ln_1` or `ln_2`."""
        return layer_norm(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], self.epsilon)

    def project(self, x: Array, name: str) -> Array:
        """The linear layer `name`, such as `attn.c_attn`."""
        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def heads(self, x: Array) -> Array:
        """[batch, count, n_head * head_dim] to [batch, n_head, count, head_dim]."""
        return x.reshape(*x.shape[:-1], self.n_head, self.head_dim).swapaxes(1, 2)

    def attend(self, x: Array, cache: KVCache) -> Array:
        """Self-attention of the positions x [batch, count, n_embd] that follow those in the cache."""
        query, key, value = (self.heads(part) for part in np.split(self.project(x, "attn.c_attn"), 3, axis=-1))
        merged = attention(query, *cache.append(key, value), self.scale).swapaxes(1, 2)
        return self.project(merged.reshape(*merged.shape[:2], -1), "attn.c_proj")

    def mlp(self, x: Array) -> Array:
        """c_proj(activation(c_fc(x)))."""
        return self.project(self.activation(self.project(x, "mlp.c_fc")), "mlp.c_proj")

    def forward(self, x: Array, cache: KVCache) -> Array:
        """The pre-norm block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""
        x = x + self.attend(self.norm(x, "ln_1"), cache)
        return x + self.mlp(self.norm(x, "ln_2"))


@dataclass
class State:
    """The KV caches of one batch of sequences, and how many positions they hold."""

    caches: list[KVCache]
    length: int = 0


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens [steps] and, for each step, how far the best logit lay above the second best."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Oracle:
    """A whole GPT-2 with its language modelling head.

    The head is `lm_head.weight` wherever that is stored, and else `wte.weight`: transformers 5 uses a head
    that differs from the embedding even where the config ties them, and one that is equal changes nothing.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Array]
    blocks: tuple[Block, ...]

    def start(self) -> State:
        """An empty context."""
        return State([KVCache() for _ in self.blocks])

    def embed(self, ids: Ids, first: int) -> Array:
        """Token plus position embeddings; ids [batch, count] stand at positions first, first + 1, ..."""
        return self.tensors["wte.weight"][ids] + self.tensors["wpe.weight"][first : first + ids.shape[-1]]

    def head(self, x: Array) -> Array:
        """The final LayerNorm and the head, [..., n_embd] to [..., vocab_size]."""
        epsilon = self.config["layer_norm_epsilon"]
        x = layer_norm(x, self.tensors["ln_f.weight"], self.tensors["ln_f.bias"], epsilon)
        return x @ self.tensors.get("lm_head.weight", self.tensors["wte.weight"]).T

    def append(self, ids: ArrayLike, state: State) -> Array:
        """Logits [batch, count, vocab_size] of ids [batch, count] that follow what the state holds."""
        rows = np.asarray(ids, dtype=np.int64)
        x = self.embed(rows, state.length)
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x = block.forward(x, cache)
        state.length += rows.shape[-1]
        return self.head(x)

    def logits(self, ids: ArrayLike) -> Array:
        """Logits [batch, count, vocab_size] of ids [batch, count]."""
        return self.append(ids, self.start())

    def greedy(self, prompt: Sequence[int], steps: int) -> Greedy:
        """The `steps` tokens that follow the prompt, each the most likely one; nothing ends it early."""
        state, result, ids = self.start(), Greedy(), list(prompt)
        for _ in range(steps):
            logits = self.append([ids], state)[0, -1]
            best = np.sort(logits)[-2:]
            ids = [int(np.argmax(logits))]
            result.tokens.append(ids[0])
            result.margins.append(float(best[1] - best[0]))
        return result


def distribution(logits: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """The probabilities [vocab_size] that sampling from logits [vocab_size] follows.

    As transformers does it, in this order: TemperatureLogitsWarper; TopKLogitsWarper, where what equals the
    k-th best stays and 0 is off; TopPLogitsWarper, where the least likely go while their sum is at most
    1 - top_p, but never the best.
    """
    scores = logits / temperature
    if 0 < top_k < scores.size:
        scores = np.where(scores < np.sort(scores)[-top_k], -np.inf, scores)
    if top_p < 1.0:
        ascending = np.argsort(scores, kind="stable")
        remove = np.cumsum(softmax(scores[ascending])) <= 1.0 - top_p
        remove[-1] = False
        scores = scores.copy()
        scores[ascending[remove]] = -np.inf
    return softmax(scores)


def _decode(dtype: str, data: bytes) -> Array:
    """The numbers of one stored tensor, flat, exactly."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def _weight_files(directory: Path) -> Iterator[Path]:
    """`model.safetensors`, or every shard that the index names."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        yield from (directory / name for name in sorted(set(names)))
    else:
        yield directory / "model.safetensors"


def read_tensors(directory: Path) -> dict[str, Array]:
    """Every floating-point tensor of a checkpoint as float64, named without `transformer.`."""
    return {
        name.removeprefix("transformer."): _decode(tensor["dtype"], bytes(tensor["data"])).reshape(tensor["shape"])
        for file in _weight_files(directory)
        for name, tensor in safetensors.deserialize(file.read_bytes())
        if not name.endswith((".attn.bias", ".attn.masked_bias"))  # the causal mask that old checkpoints carry
    }


def read_config(directory: Path) -> dict[str, Any]:
    """config.json over the defaults of GPT2Config."""
    return DEFAULTS | json.loads((directory / "config.json").read_text(encoding="utf-8"))


def _block_sizes(config: Mapping[str, Any], layer: int) -> tuple[int, int]:
    """n_head and head_dim of a layer: those of `kaoken_blocks`, or the same for every layer."""
    if "kaoken_blocks" in config:
        sizes = config["kaoken_blocks"][layer]
        return sizes["n_head"], sizes["head_dim"]
    return config["n_head"], config["n_embd"] // config["n_head"]


def _attention_scale(config: Mapping[str, Any], layer: int, head_dim: int) -> float:
    # reorder_and_upcast_attn changes only where half precision is left; in float64 it changes nothing.
    scale = 1.0 / math.sqrt(head_dim) if config["scale_attn_weights"] else 1.0
    return scale / (layer + 1) if config["scale_attn_by_inverse_layer_idx"] else scale


def make_block(config: Mapping[str, Any], tensors: Mapping[str, Array], layer: int) -> Block:
    """The block of one layer; `tensors` are those of the whole model."""
    prefix = f"h.{layer}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    n_head, head_dim = _block_sizes(config, layer)
    scale = _attention_scale(config, layer, head_dim)
    activation = ACTIVATIONS[config["activation_function"]]
    return Block(own, n_head, head_dim, scale, activation, config["layer_norm_epsilon"])


def open_oracle(directory: Path) -> Oracle:
    """Reads config.json and the safetensors of a checkpoint directory."""
    config, tensors = read_config(directory), read_tensors(directory)
    blocks = tuple(make_block(config, tensors, layer) for layer in range(config["n_layer"]))
    return Oracle(config, tensors, blocks)

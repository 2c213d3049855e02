"""sentence-transformers checkpoints: the modules behind a transformer as a `Head`, and how their texts are prepared.

A module is known by the last part of its class's name, where that is one of sentence-transformers' own. Whatever would
change a vector and cannot be said by a `Head` is refused by name; code in a checkpoint is never run. The modules:
https://github.com/huggingface/sentence-transformers/tree/main/sentence_transformers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import CONFIG, SENTENCE_CONFIG, WEIGHTS, Checkpoint, Module, Sentence, quoted
from ..errors import CheckpointError, UnsupportedModelError
from ..graph import Graph, Head, Layer, Task, verify
from .fields import MAX_POSITIONS, MAX_WIDTH, Fields, names
from .heads import SCORES
from .weights import Weights

_OWN = re.compile(r"sentence_transformers\.(models|(base|sentence_transformer)\.modules)(\.\w+)?\.(\w+)")

# The pooling modes by their name in sentence-transformers 6, and the fields that said the same before, in the order in
# which several are concatenated.
_POOLINGS = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_ACTIVATIONS: dict[str, str | None] = {
    f"{package}.{name}": function
    for name, function in {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu_erf", "SiLU": "silu"}.items()
    for package in ("torch.nn", "torch.nn.modules", "torch.nn.modules.activation")
}
_IDENTITY = ("torch.nn.Identity", "torch.nn.modules.Identity", "torch.nn.modules.linear.Identity")
_ACTIVATIONS |= dict.fromkeys(_IDENTITY)

_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_LAYER_NORM_EPSILON = 1e-5  # torch's default, which the module LayerNorm has

# Arguments of from_pretrained that change no vector.
_HARMLESS_ARGUMENTS = names(
    "add_pooling_layer attn_implementation cache_dir device_map dtype low_cpu_mem_usage torch_dtype use_safetensors",
    "trust_remote_code",  # never honoured
)


def has_no_head(checkpoint: Checkpoint) -> bool:
    """Whether the transformer is read without a head, whatever its config names: modules stand behind it."""
    return checkpoint.sentence is not None and not _is_cross_encoder(checkpoint.sentence)


def add_modules(graph: Graph, checkpoint: Checkpoint) -> Graph:
    """The graph of a checkpoint's transformer with its modules as the head; as it is where there are none.

    A decoder becomes an encoder whose positions see the past, and a cross-encoder's transformer has its own head.
    Raises UnsupportedModelError for modules that Kaoken lacks, and CheckpointError for configs that contradict each
    other or the tensors.
    """
    sentence = checkpoint.sentence
    if sentence is None:
        return graph
    kinds = [_kind(module, sentence) for module in sentence.modules]
    if kinds[0] != "Transformer":
        raise _unsupported(sentence, sentence.modules[0], "the first to be a Transformer")
    if graph.kind == "encoder-decoder":
        raise UnsupportedModelError(
            f"{sentence.file}: its transformer is a {graph.family} {graph.kind}, and Kaoken makes sentence vectors of "
            "encoders and of decoders: choose one of these, or remove the file to bake the transformer alone"
        )
    if _is_cross_encoder(sentence):
        if len(kinds) > 1:
            raise _unsupported(sentence, sentence.modules[1], "a cross-encoder to be a Transformer alone")
        if graph.task.name != "text-classification":
            raise UnsupportedModelError(
                f"{sentence.file}: a cross-encoder makes scores, and its {CONFIG} has the head of no classifier: "
                "choose a checkpoint whose architecture is for sequence classification"
            )
        score = _score_function(sentence)
        return graph if score is None else replace(graph, task=replace(graph.task, score=score))
    head = _Reader(checkpoint, sentence, graph.width).head(kinds[1:])
    behind = replace(graph, encoder=graph.stack, decoder=None, head=head, task=Task("sentence-similarity"))
    verify(behind)
    return behind


@dataclass
class _Reader:
    """Reads the modules behind the transformer one by one."""

    checkpoint: Checkpoint
    sentence: Sentence
    width: int  # of what the next module reads
    pooling: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    normalize: bool = False

    def head(self, kinds: Iterable[str]) -> Head:
        readers: dict[str, Callable[[Module], None]] = {
            "Pooling": self._pooling,
            "Dense": self._dense,
            "LayerNorm": self._layer_norm,
            "Normalize": self._normalize,
            "Dropout": lambda module: None,
        }
        for kind, module in zip(kinds, self.sentence.modules[1:], strict=True):
            if kind not in readers:
                raise _unsupported(self.sentence, module, f"one of {', '.join(readers)}")
            if (kind == "Pooling") == bool(self.pooling):
                raise _unsupported(self.sentence, module, "one Pooling, and that behind the Transformer")
            if self.normalize and kind in ("Dense", "LayerNorm"):
                raise _unsupported(self.sentence, module, "nothing behind Normalize")
            readers[kind](module)
        if not self.pooling:
            raise UnsupportedModelError(
                f"{self.sentence.file} has no Pooling, so a text has no vector: add one, or remove the file to bake "
                "the transformer alone"
            )
        return Head(layers=self.layers, pooling=self.pooling, normalize=self.normalize)

    def _fields(self, module: Module) -> Fields:
        return Fields(module.config, str(self.sentence.file.parent / module.path / CONFIG))

    def _check_features(self, fields: Fields) -> None:
        """A module may read what another has left aside; here each reads what the one in front gives."""
        fields.choice("module_input_name", "sentence_embedding", {"sentence_embedding": None})
        if fields.get("module_output_name") is not None:
            fields.choice("module_output_name", "sentence_embedding", {"sentence_embedding": None})

    def _check_width(self, fields: Fields, name: str) -> None:
        if fields.integer(name, self.width, MAX_WIDTH) != self.width:
            raise fields.fail(name, f"{self.width}, which is what the module in front gives")

    def _pooling(self, module: Module) -> None:
        fields = self._fields(module)
        for name in ("word_embedding_dimension", "embedding_dimension"):
            self._check_width(fields, name)
        self.pooling = tuple(_POOLINGS[mode] for mode in _pooling_modes(fields))
        fields.boolean("include_prompt", True)
        fields.finish("a Pooling", frozenset(), frozenset())
        self.width *= len(self.pooling)

    def _dense(self, module: Module) -> None:
        fields = self._fields(module)
        self._check_width(fields, "in_features")
        outputs = fields.integer("out_features", None, MAX_WIDTH)
        activation = fields.choice("activation_function", "torch.nn.modules.activation.Tanh", _ACTIVATIONS)
        self._check_features(fields)
        bias = fields.boolean("bias", True)
        fields.finish("a Dense", names("use_residual"), frozenset())
        weights = self._weights(module)
        self.layers += (Layer(weights.linear(f"{module.path}.linear", outputs, self.width, bias), activation),)
        weights.finish(f"the Dense of {module.path}")
        self.width = outputs

    def _layer_norm(self, module: Module) -> None:
        if not self.layers or self.layers[-1].norm is not None:
            raise _unsupported(self.sentence, module, "a LayerNorm to follow a Dense")
        fields = self._fields(module)
        self._check_width(fields, "dimension")
        fields.finish("a LayerNorm", frozenset(), frozenset())
        weights = self._weights(module)
        norm = weights.layer_norm(f"{module.path}.norm", self.width, _LAYER_NORM_EPSILON)
        weights.finish(f"the LayerNorm of {module.path}")
        self.layers = (*self.layers[:-1], replace(self.layers[-1], norm=norm))

    def _normalize(self, module: Module) -> None:
        fields = self._fields(module)
        self._check_features(fields)
        fields.finish("a Normalize", frozenset(), frozenset())
        self.normalize = True

    def _weights(self, module: Module) -> Weights:
        """The tensors of a module, which are read as those of the checkpoint are."""
        directory = self.sentence.file.parent / module.path
        if not module.tensors:
            raise CheckpointError(
                f"{directory} has no {WEIGHTS}, and Kaoken reads no pickles, which can run code when they are opened: "
                "if you trust the model, save it anew with sentence_transformers.SentenceTransformer(...).save(...)"
            )
        own = replace(self.checkpoint, directory=directory, tensors=module.tensors, sentence=None)
        return Weights(own, "", re.compile(r"(?!)"))


def _pooling_modes(fields: Fields) -> list[str]:
    """As sentence-transformers reads them: the new field wins, and where the old ones are all false it is the mean."""
    old = [mode for name, mode in _OLD_MODES.items() if fields.boolean(name, False)]
    modes = fields.get("pooling_mode")
    if modes is None:
        return old or ["mean"]
    several = modes if isinstance(modes, list) and modes else [modes]
    if not all(isinstance(mode, str) and mode in _POOLINGS for mode in several):
        raise fields.fail("pooling_mode", f"one or several of {', '.join(_POOLINGS)}")
    return several


def _kind(module: Module, sentence: Sentence) -> str:
    """The class of a module without its package."""
    own = _OWN.fullmatch(module.kind)
    if own is None:
        raise UnsupportedModelError(
            f"{sentence.file} names the module {quoted(module.kind)}, which is none of sentence-transformers: Kaoken "
            "runs no code of a checkpoint; choose one without custom modules"
        )
    return own[4]


def _unsupported(sentence: Sentence, module: Module, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{sentence.file} has {quoted(module.kind)} in {quoted(module.path)}; expected {expected}: choose a checkpoint "
        "of such modules, or remove the file to bake the transformer alone"
    )


def _is_cross_encoder(sentence: Sentence) -> bool:
    fields = Fields(sentence.config, str(sentence.file.parent / SENTENCE_CONFIG))
    kinds = {"SentenceTransformer": False, "CrossEncoder": True}
    return fields.choice("model_type", "SentenceTransformer", kinds)


def describe(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How texts are prepared and vectors compared, for the model's description; None without modules.json.

    Its keys are max_seq_length, do_lower_case, prompts, default_prompt_name, similarity_fn_name, truncate_dim and
    include_prompt.
    """
    sentence = checkpoint.sentence
    if sentence is None:
        return None
    pooling = [module.config for module in sentence.modules if module.kind.endswith(".Pooling")]
    include = all(config.get("include_prompt", True) for config in pooling)
    return {**_transformer(checkpoint, sentence), **_usage(sentence), "include_prompt": include}


def _score_function(sentence: Sentence) -> str | None:
    """What makes scores of a cross-encoder's logits, where the file beside modules.json says it."""
    if sentence.config.get("activation_fn") is None:
        return None
    return Fields(sentence.config, str(sentence.file.parent / SENTENCE_CONFIG)).choice("activation_fn", "", SCORES)


def _transformer(checkpoint: Checkpoint, sentence: Sentence) -> dict[str, Any]:
    """From the config of the transformer's module."""
    module = sentence.modules[0]
    where = module.files[0] if module.files else checkpoint.directory
    fields = Fields(module.config, str(where))
    limit = fields.get("max_seq_length")
    if limit is not None:
        limit = fields.integer("max_seq_length", None, MAX_POSITIONS)
    lower = fields.boolean("do_lower_case", False)
    task = "sequence-classification" if _is_cross_encoder(sentence) else "feature-extraction"
    fields.choice("transformer_task", task, {task: None})
    output = {"feature-extraction": "token_embeddings", "sequence-classification": "scores"}[task]
    fields.choice("module_output_name", output, {output: None})
    modalities = fields.get("modality_config")
    plain = {
        "method": "forward",
        "method_output_name": {"token_embeddings": "last_hidden_state", "scores": "logits"}[output],
    }
    if modalities is not None and modalities != {"text": plain}:
        raise fields.fail("modality_config", f"{{'text': {plain}}}")
    for name in ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"):
        given = fields.get(name)
        if given and not (isinstance(given, dict) and given.keys() <= _HARMLESS_ARGUMENTS):
            raise fields.fail(name, f"no other arguments than {', '.join(sorted(_HARMLESS_ARGUMENTS))}")
    off = names("processing_kwargs query_length document_length query_expansion")
    fields.finish("a Transformer", off, names("unpad_inputs"))
    return {"max_seq_length": limit, "do_lower_case": lower}


def _usage(sentence: Sentence) -> dict[str, Any]:
    """From config_sentence_transformers.json."""
    fields = Fields(sentence.config, str(sentence.file.parent / SENTENCE_CONFIG))
    prompts = fields.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise fields.fail("prompts", "an object with a text for each name")
    default = fields.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise fields.fail(
            "default_prompt_name", f"one of the prompts, {', '.join(map(quoted, prompts)) or 'of which there are none'}"
        )
    similarity = fields.get("similarity_fn_name")
    if similarity is not None:
        fields.choice("similarity_fn_name", "cosine", dict.fromkeys(_SIMILARITIES))
    dimension = fields.get("truncate_dim")
    if dimension is not None:
        dimension = fields.integer("truncate_dim", None, MAX_WIDTH)
    fields.finish(
        "a SentenceTransformer",
        frozenset(),
        names("__version__ model_type requirements activation_fn keep_in_fp32_modules"),
    )
    return {
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt_name": default,
        "similarity_fn_name": similarity,
        "truncate_dim": dimension,
    }

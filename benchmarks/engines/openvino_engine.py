"""OpenVINO with a stateful model: the KV cache stays inside, as optimum-intel arranges it for generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Decoder, Ids
from benchmarks.engines.steps import step_inputs
from benchmarks.models import Checkpoint


class OpenVINO(Decoder):
    """float32 weights compute in float32; compressed weights at the plugin's own choice of precision."""

    note = (
        "own torch export (last-position logits), stateful KV cache; float32 with INFERENCE_PRECISION_HINT=f32, "
        "int8 and int4 (nncf, symmetric, groups of 64, first and last layer int8) with the plugin's defaults; all with "
        "a cache of bytes, its default"
    )

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        import openvino

        model = _convert(checkpoint)
        if variant != "float32":
            model = compress(model, variant)
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import openvino

        compiled = openvino.Core().compile_model(prepared / "model.xml", "CPU", settings(variant, threads))
        self._request = compiled.create_infer_request()
        self._length = 0

    def start(self, ids: Ids) -> Ids:
        self._request.reset_state()
        self._length = 0
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        positions, mask = step_inputs(self._length, ids.shape[1])
        beams = np.arange(len(ids), dtype=np.int32)
        inputs = {"ids": ids, "positions": positions, "mask": mask, "beam_idx": beams}
        outputs = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        self._length += ids.shape[1]
        return np.asarray(outputs["logits"].argmax(-1), np.int64)

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import numpy, openvino
model = openvino.Core().compile_model({str(prepared / "model.xml")!r}, "CPU", {settings(variant, threads)!r})
request = model.create_infer_request()
mask = numpy.triu(numpy.full((8, 8), -numpy.inf, numpy.float32), 1)[None, None]
inputs = {{"ids": numpy.arange(1, 9)[None], "positions": numpy.arange(8)[None], "mask": mask,
          "beam_idx": numpy.zeros(1, numpy.int32)}}
print(request.infer(inputs)["logits"].argmax(), flush=True)
"""


def settings(variant: str, threads: int) -> dict[str, Any]:
    """Of the plugin."""
    common = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    return common | ({"INFERENCE_PRECISION_HINT": "f32"} if variant == "float32" else {})


def _convert(checkpoint: Checkpoint) -> Any:
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    from benchmarks.engines.exported import cached_decoder

    decoder = cached_decoder(checkpoint).eval()
    model = openvino.convert_model(decoder, example_input=decoder.example())
    names = decoder.past_names()
    _name_ports(model, decoder.cache_shapes, names)
    _reorder_by_beam(model, names)
    apply_make_stateful_transformation(model, {name: f"present.{name}" for name in names})
    _start_empty(model)
    return model


def _name_ports(model: Any, cache_shapes: list[tuple[int, int]], names: list[str]) -> None:
    """Names and shapes that say what is dynamic."""
    import openvino

    shapes = [[-1, -1], [1, -1], [1, 1, -1, -1]]
    shapes += [[-1, heads, -1, head_dim] for heads, head_dim in cache_shapes for _ in range(2)]
    inputs = ["ids", "positions", "mask", *names]
    for port, name, shape in zip(model.inputs, inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(model.outputs, ["logits", *[f"present.{name}" for name in names]], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()


def _reorder_by_beam(model: Any, names: list[str]) -> None:
    """Gathers the past by beam_idx: the pattern that the plugin fuses with attention."""
    import openvino
    from openvino import opset13

    beam = opset13.parameter(name="beam_idx", dtype=openvino.Type.i32, shape=openvino.PartialShape([-1]))
    beam.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam])
    for name in names:
        port = model.input(name)
        consumers = port.get_target_inputs()
        gathered = opset13.gather(port, beam, opset13.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()


def _start_empty(model: Any) -> None:
    """A reset state holds [batch of ids, H, 0, D]."""
    from openvino import opset13

    shape = opset13.shape_of(model.input("ids"), output_type="i64")
    batch = opset13.gather(shape, opset13.constant([0]), opset13.constant(0))
    for node in model.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        sizes = [dimension.min_length for dimension in node.get_output_partial_shape(0)]
        rest = opset13.constant(np.array([sizes[1], 0, sizes[3]], np.int64))
        zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
        node.set_arguments([opset13.broadcast(zero, opset13.concat([batch, rest], axis=0))])
    model.validate_nodes_and_infer_types()


def compress(model: Any, variant: str) -> Any:
    """The model with weights of a type, by nncf."""
    import nncf

    if variant == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, ratio=1.0)


ENGINE = OpenVINO

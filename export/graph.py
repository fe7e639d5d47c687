"""The exported module, and its translation to ONNX.

N pictures, H, W canvas, P points, C classes.
"""

from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from app.artifact import CANVAS_MULTIPLE, INPUT, LONGEST_CANVAS, METADATA_KEY, Metadata
from app.errors import first_line
from app.postprocess import Heads
from export.quiet import quietly
from model.fcos import FCOS

OPSET = 20
"""From 21 on, GroupNormalization is one node, for which ONNX Runtime 1.31 has no CUDA kernel, only a function body."""


class ServedGraph(nn.Module):
    """uint8 canvases in, raw heads out: a picture crosses to the device as bytes and is normalised there."""

    def __init__(self, model: FCOS) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images: uint8 [N, H, W, 3]. Returns class_logits [N, P, C], distances [N, P, 4], centerness [N, P]."""
        return tuple(self.model(images.permute(0, 3, 1, 2)))


def to_onnx(model: FCOS) -> onnx.ModelProto:
    """Translate a detector to ONNX, with batch, height and width dynamic.

    Raises:
        ValueError: the network cannot be translated.
    """
    graph = ServedGraph(model).eval()
    # The exporter takes a size of 1 for a constant, hence two pictures, and sides that give even P7 several rows and
    # columns.
    example = torch.zeros(2, 320, 416, 3, dtype=torch.uint8)
    # About multiples the exporter can answer what some layers ask, such as pools that round up.
    multiples = {side: CANVAS_MULTIPLE * Dim(f"side{side}", max=LONGEST_CANVAS // CANVAS_MULTIPLE) for side in (1, 2)}
    try:
        try:
            program = _translate(graph, example, {1: Dim.DYNAMIC, 2: Dim.DYNAMIC})
        except Exception:
            program = _translate(graph, example, multiples)
    except Exception as error:
        raise ValueError(f"the network cannot be translated to ONNX: {first_line(error.__cause__ or error)}") from error
    proto = program.model_proto
    _name_dimensions(proto)
    _forget_the_exporter(proto)
    onnx.checker.check_model(proto)
    return proto


def _translate(graph: nn.Module, example: Tensor, sides: dict[int, Any]) -> torch.onnx.ONNXProgram:
    with quietly("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(Heads._fields),
            dynamic_shapes=({0: Dim.DYNAMIC, **sides},),
            verbose=False,
        )
    assert program is not None
    return program


def add_metadata(proto: onnx.ModelProto, metadata: Metadata) -> None:
    """Write the model's description of itself into the file."""
    others = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, others | {METADATA_KEY: metadata.to_json()})
    proto.producer_name = "fcos-detect"


def _name_dimensions(proto: onnx.ModelProto) -> None:
    """The exporter names dimensions by formulas; a reader of the file should see N, H, W and P."""
    names = {INPUT: ("N", "H", "W", None), "class_logits": ("N", "P", None), "distances": ("N", "P", None)}
    names["centerness"] = ("N", "P")
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if name is not None:
                dimension.dim_param = name
    del proto.graph.value_info[:]  # it uses the old names


def _forget_the_exporter(proto: onnx.ModelProto) -> None:
    """Each node carries the stack trace of the line that made it: half a megabyte, with paths of this machine."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]

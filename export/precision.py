"""fp16 and int8 variants of an exported graph."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from app.artifact import INPUT, Metadata
from app.canvas import fit
from app.images import SUFFIXES
from export.quiet import quietly
from model.pictures import open_as_served

CALIBRATION_PICTURES = 128
"""For int8 to take its ranges from; it is judged on as many others."""
_QUANTIZED = ("Conv", "Add", "Clip", "Relu", "Resize", "MaxPool")
"""Operations between convolutions are quantised as well, or every edge would pay for a conversion."""


def choose_pictures(folder: Path) -> list[Path]:
    """Evenly chosen picture files of a folder; each is opened only when it is needed.

    Raises:
        ValueError: the folder is missing, or holds no pictures.
    """
    files = sorted(file for file in folder.glob("**/*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"--calibration-images: no picture files in {folder}")
    return [files[i] for i in np.linspace(0, len(files) - 1, min(2 * CALIBRATION_PICTURES, len(files))).astype(int)]


def to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision, except for what needs more: normalisation statistics and everything after the last convolutions,
    where half precision has a spacing of 1 px at a distance of 1333 px.

    BatchNorm is folded into the convolutions first: no runtime does that later, with a cast in between, and each would
    cost two casts and a pass in float32.
    """
    proto = _with_folded_norms(proto)
    keep = [node.name for node in _without_convolution_after(proto) if node.op_type != "Conv"]
    # A variance may well exceed 65,504, where half precision ends.
    norms = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
    block = [*DEFAULT_OP_BLOCK_LIST, *norms, "Resize"]
    with quietly("root"):
        converted: onnx.ModelProto = convert_float_to_float16(
            proto, keep_io_types=True, op_block_list=block, node_block_list=keep
        )
    _drop_repeated_nodes(converted)
    _remove_round_trips(converted)
    return without_unused(converted)


def _drop_repeated_nodes(proto: onnx.ModelProto) -> None:
    """If several nodes that stay in float32 read one tensor, the converter writes its cast several times."""
    different = {node.SerializeToString(): node for node in proto.graph.node}  # in their order
    del proto.graph.node[:]
    proto.graph.node.extend(different.values())


def _with_folded_norms(proto: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, quietly("root"):
        source, prepared = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
        onnx.save(proto, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        return onnx.load(prepared)


def _remove_round_trips(proto: onnx.ModelProto) -> None:
    """Let nodes that are kept in float32 hand on their results as they are. The converter casts each to half precision
    and back, which costs time on a GPU, and the digits for which they are kept."""
    OnnxModel(proto).topological_sort()  # the converter puts its casts at the end
    graph = proto.graph
    typed = onnx.shape_inference.infer_shapes(proto).graph.value_info
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    halved = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, onnx.TensorProto.FLOAT16)}
    same: dict[str, str] = {}  # what comes back from half precision → what it was before
    for node in graph.node:
        if _casts_to(node, onnx.TensorProto.FLOAT) and halved.get(node.input[0]) in floats:
            same[node.output[0]] = halved[node.input[0]]
    outputs = {output.name for output in graph.output}
    new_names = {before: after for after, before in same.items() if after in outputs}
    kept = [node for node in graph.node if node.output[0] not in same]
    for node in kept:
        for names in (node.input, node.output):
            names[:] = [new_names.get(same.get(name, name), same.get(name, name)) for name in names]
    del graph.node[:]
    graph.node.extend(kept)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(one.name == "to" and one.i == kind for one in node.attribute)


def to_int8(proto: onnx.ModelProto, pictures: Sequence[Path], metadata: Metadata) -> onnx.ModelProto:
    """Static QDQ quantisation: weights int8 per channel, activations uint8 with ranges seen on the pictures.

    The last convolutions stay in float32: their outputs are logits and pixels. The others' weights, except depthwise
    ones, have 7 bits: see `_seven_bits`.

    Raises:
        ValueError: one of the pictures cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, quietly("root"):
        prepared, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        graph = _with_folded_norms(proto)
        onnx.save(graph, prepared)
        kept = [*_without_convolution_after(graph), *_before_first_convolution(graph)]
        quantize_static(
            prepared,
            target,
            _Pictures(pictures, metadata),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=[node.name for node in kept],
            extra_options={"TensorQuantOverrides": _seven_bits(graph)},
        )
        quantized = onnx.load(target)
    read_bytes_as_quantized(quantized)
    return without_unused(quantized)


def _seven_bits(proto: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Overrides for the weights that ONNX Runtime multiplies two at a time, which are all but depthwise ones: x86
    processors with AVX2 or AVX512 but without VNNI add two products in 16 bits, and cut off what exceeds them without a
    word. Two products of 8 and 7 bits never do; with 8 and 8, scores were off by up to 0.24 there."""
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    groups = {
        node.input[1]: next((one.i for one in node.attribute if one.name == "group"), 1)
        for node in proto.graph.node
        if node.op_type == "Conv"
    }
    override = {"quant_type": QuantType.QInt8, "axis": 0, "reduce_range": True}
    return {name: [override] for name, group in groups.items() if list(shapes[name][:2]) != [group, 1]}


def read_bytes_as_quantized(proto: onnx.ModelProto) -> bool:
    """Hand the picture's bytes to the first quantised convolution as they are, if normalisation allows it.

    (x - 127) / 128, EfficientNet-Lite's normalisation, is what the byte x stands for at scale 1/128 and zero point 127:
    converting to float, subtracting, dividing and quantising again gives x back, and takes a sixth of the graph's time.

    Returns:
        Whether it does: mean and deviation are the same for all channels, and the mean is a byte.
    """
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    casts = [node for node in _before_first_convolution(proto) if node.op_type == "Cast"]
    kinds = ("Sub", "Div", "QuantizeLinear", "DequantizeLinear")
    chain = _followed_by(proto, casts[0], kinds) if casts else []
    if not chain:
        return False
    subtract, divide, _, dequantize = chain
    mean, deviation = (constants.get(node.input[1]) for node in (subtract, divide))
    if mean is None or deviation is None or np.ptp(mean) or np.ptp(deviation) or mean.flat[0] not in range(256):
        return False
    scale, zero_point = "images_scale", "images_zero_point"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 / deviation.flat[0], np.float32), scale))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(mean.flat[0], np.uint8), zero_point))
    dequantize.input[:] = [casts[0].input[0], scale, zero_point]
    return True


def without_unused(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what rewriting leaves behind: nodes and constants that no output needs, of which ONNX Runtime
    would warn at every load, and opsets that no node belongs to."""
    model = onnx_ir.from_proto(proto)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes, which the runtime infers itself
    return proto


def _followed_by(proto: onnx.ModelProto, node: onnx.NodeProto, kinds: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes of these kinds that follow a node, each the only reader of the one before; otherwise none."""
    found: list[onnx.NodeProto] = []
    for kind in kinds:
        readers = [other for other in proto.graph.node if node.output[0] in other.input]
        if len(readers) != 1 or readers[0].op_type != kind:
            return []
        node = readers[0]
        found.append(node)
    return found


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """The pictures as the service would show them to the graph, one at a time."""

    def __init__(self, pictures: Sequence[Path], metadata: Metadata) -> None:
        self._canvases: Iterator[NDArray[np.uint8]] = (
            fit(open_as_served(picture, metadata), metadata)[0][None] for picture in pictures
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        canvas = next(self._canvases, None)
        return None if canvas is None else {INPUT: canvas}


def _without_convolution_after(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes met going back from the outputs, up to and including the first convolutions."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    waiting = [output.name for output in proto.graph.output]
    seen: dict[str, onnx.NodeProto] = {}
    while waiting:
        node = producer.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        seen[node.output[0]] = node
        if node.op_type != "Conv":
            waiting += node.input
    return list(seen.values())


def _before_first_convolution(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes computed from the picture with no convolution in between: bytes to normalised float, which must not be
    quantised again, and, computed from the picture's shape, the resizing and reshaping of features."""
    reached = {INPUT}
    nodes = []
    for node in proto.graph.node:
        if reached & set(node.input) and node.op_type != "Conv":
            nodes.append(node)
            reached |= set(node.output)
    return nodes

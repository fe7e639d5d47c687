"""A narrow FCOS at 160 pixels with random weights: a few milliseconds, so that a server's own cost shows.

    python benchmarks/tiny_model.py tiny.onnx

Five levels, shared towers. It finds an object in the benchmarks' photograph, and none in most pictures. Needs onnx, no
torch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.artifact import METADATA_KEY, Metadata
from benchmarks.command import as_command

CLASSES = 20
STRIDES = (8, 16, 32, 64, 128)
WIDTHS = {2: 32, 4: 48, 8: 96, 16: 128, 32: 192, 64: 192, 128: 192}  # stride → channels of the backbone
CHANNELS = 96  # of the pyramid and the towers


def write_tiny_model(path: Path) -> Path:
    """Returns: `path`, a model file for the service."""
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, values: ArrayLike) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(name: str, source: str, inward: int, outward: int, kernel: int, stride: int = 1, bias: float = 0) -> str:
        if not any(one.name == f"{name}.weight" for one in constants):
            scale = (2 / (inward * kernel * kernel)) ** 0.5
            weights = random.normal(0, scale, (outward, inward, kernel, kernel)).astype(np.float32)
            constant(f"{name}.weight", weights)
            constant(f"{name}.bias", np.full(outward, bias, np.float32))
        pads, out = [kernel // 2] * 4, f"{name}({source})"
        return node("Conv", [source, f"{name}.weight", f"{name}.bias"], out, pads=pads, strides=[stride] * 2)

    def relu(source: str) -> str:
        return node("Relu", [source], f"relu({source})")

    constant("mean", np.float32(127))
    constant("scale", np.float32(1 / 128))
    floats = node("Cast", ["images"], "floats", to=TensorProto.FLOAT)
    centred = node("Mul", [node("Sub", [floats, "mean"], "minus mean"), "scale"], "normalised")
    features = node("Transpose", [centred], "planes", perm=[0, 3, 1, 2])

    outputs: dict[str, list[str]] = {"class_logits": [], "distances": [], "centerness": []}
    width = 3
    for stride, next_width in WIDTHS.items():
        features = relu(conv(f"backbone{stride}", features, width, next_width, 3, 2))
        width = next_width
        if stride not in STRIDES:
            continue
        lateral = conv(f"lateral{stride}", features, width, CHANNELS, 1)
        class_tower = relu(conv("class_tower", lateral, CHANNELS, CHANNELS, 3))
        box_tower = relu(conv("box_tower", lateral, CHANNELS, CHANNELS, 3))
        planes = {
            "class_logits": (conv("class_logits", class_tower, CHANNELS, CLASSES, 3, bias=-4.5), CLASSES),
            "centerness": (conv("centerness", box_tower, CHANNELS, 1, 3), 1),
        }
        distance = node("Exp", [conv("distances", box_tower, CHANNELS, 4, 3)], f"exp{stride}")
        pixels = constant(f"stride{stride}", np.float32(stride))
        planes["distances"] = (node("Mul", [distance, pixels], f"distances{stride}"), 4)
        for name, (plane, channels) in planes.items():
            last = node("Transpose", [plane], f"{name}.last{stride}", perm=[0, 2, 3, 1])
            shape = constant(f"{name}.shape{stride}", np.array([0, -1, channels]))
            outputs[name].append(node("Reshape", [last, shape], f"{name}.points{stride}"))

    node("Concat", outputs["class_logits"], "class_logits", axis=1)
    node("Concat", outputs["distances"], "distances", axis=1)
    constant("last_axis", np.array([2], np.int64))
    node("Squeeze", [node("Concat", outputs["centerness"], "centerness.points", axis=1), "last_axis"], "centerness")
    shapes: dict[str, Sequence[str | int]] = {
        "class_logits": ["N", "P", CLASSES],
        "distances": ["N", "P", 4],
        "centerness": ["N", "P"],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: _metadata().to_json()})
    onnx.save(model, path)
    return path


def _metadata() -> Metadata:
    return Metadata.model_validate(
        {
            "format_version": 1,
            "name": "tiny",
            "classes": [f"class {index}" for index in range(CLASSES)],
            "strides": STRIDES,
            "points": {"offset": 0.5, "step": "stride"},
            "resize": {"short": 160, "long": 160},
            "canvases": [(128, 160), (160, 128), (160, 160)],
            "mean_pixel": [127, 127, 127],
            "defaults": {"score_threshold": 0.3, "iou_threshold": 0.6, "max_detections": 100},
            "top_k": 1000,
            "precision": "fp32",
            "variant": "raw",
            "training": {},
            "metrics": {},
            "checkpoint_sha256": "0" * 64,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    print(write_tiny_model(parser.parse_args().output))


if __name__ == "__main__":
    as_command(main)

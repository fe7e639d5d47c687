"""A tiny model file that finds coloured rectangles, made by code, and a service with it: its tests need no weights.

Each level averages its cells; class i is how much colour i stands out of the other two; every box is two strides wide
around its point. Grey, which the canvas is padded with, is nothing.
"""

import asyncio
import io
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fastapi.testclient import TestClient
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.artifact import METADATA_KEY, Metadata
from app.errors import KINDS
from app.schemas import DetectQuery
from app.service import Service
from app.settings import Settings

METADATA: dict[str, Any] = {
    "format_version": 1,
    "name": "colours",
    "classes": ["red", "green", "blue"],
    "strides": [8, 16, 32, 64, 128],
    "points": {"offset": 0.5, "step": "stride"},
    "resize": {"short": 160, "long": 160},
    "canvases": [[128, 160], [160, 128], [160, 160]],
    "mean_pixel": [127, 127, 127],
    "defaults": {"score_threshold": 0.3, "iou_threshold": 0.6, "max_detections": 100},
    "top_k": 1000,
    "precision": "fp32",
    "variant": "raw",
    "training": {"data": "none"},
    "metrics": {"AP": 0.5},
    "checkpoint_sha256": "0" * 64,
}


def metadata(**changes: Any) -> Metadata:
    return Metadata.model_validate({**METADATA, **changes})


def write_model(
    path: Path,
    metadata_text: str | None = None,
    *,
    outputs: tuple[str, ...] = ("class_logits", "distances", "centerness"),
) -> Path:
    """Writes the model. `metadata_text` replaces its metadata; an empty one leaves them out."""
    nodes, constants = [], []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.array(values), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    # A colour's weight is 1 for itself and -1/2 for the two others, so grey gives 0; the scale makes pure colour +5.
    colour = (1.5 * np.eye(3) - 0.5)[:, :, None, None] * 10 / 255
    floats = node("Cast", ["images"], "floats", to=TensorProto.FLOAT)
    planes = node("Transpose", [floats], "planes", perm=[0, 3, 1, 2])
    for stride in METADATA["strides"]:
        cells = node(
            "AveragePool", [planes], f"cells{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2, ceil_mode=1
        )
        for name, weight, bias, shape in (
            ("class_logits", colour, np.full(3, -5), [0, -1, 3]),
            ("distances", np.zeros((4, 3, 1, 1)), np.full(4, stride), [0, -1, 4]),
            ("centerness", np.zeros((1, 3, 1, 1)), np.full(1, 4), [0, -1]),
        ):
            here = f"{name}{stride}"
            weights = constant(f"{here}.weight", weight.astype(np.float32))
            biases = constant(f"{here}.bias", bias.astype(np.float32))
            plane = node("Conv", [cells, weights, biases], f"{here}.plane")
            last = node("Transpose", [plane], f"{here}.last", perm=[0, 2, 3, 1])
            node("Reshape", [last, constant(f"{here}.shape", shape)], here)
    for name in outputs:
        node("Concat", [f"{name}{stride}" for stride in METADATA["strides"]], name, axis=1)

    shapes: dict[str, Sequence[str | int]] = {
        "class_logits": ["N", "P", 3],
        "distances": ["N", "P", 4],
        "centerness": ["N", "P"],
    }
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    text = metadata().to_json() if metadata_text is None else metadata_text
    if text:
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def rectangle_picture(
    width: int = 160, height: int = 120, box: tuple[int, int, int, int] = (32, 16, 96, 80), colour: str = "red"
) -> Image.Image:
    """A grey picture with one coloured rectangle, xyxy."""
    picture = Image.new("RGB", (width, height), (127, 127, 127))
    picture.paste(colour, box)
    return picture


def value_of(metrics: str, series: str) -> float:
    """What Prometheus' text says of a series."""
    for line in metrics.splitlines():
        if line.startswith(series + " "):
            return float(line.split()[-1])
    raise KeyError(series)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


PICTURE = encoded(rectangle_picture())
DEFAULTS = DetectQuery()


@asynccontextmanager
async def served(model: Path, **settings: Any) -> AsyncGenerator[Service]:
    """A service in this process, without HTTP, that is warm."""
    service = Service.load(
        Settings(
            model=model,
            **{"provider": "cpu", "threads": 1, "sessions": 1, "decode_threads": 2, "max_batch": 1, **settings},
        )
    )
    try:
        await service.warm_up()
        assert service.not_ready is None
        yield service
    finally:
        await asyncio.to_thread(service.close)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def metric(service: Service, name: str) -> float:
    return value_of(service.metrics.text().decode(), name)


def ready(client: TestClient) -> TestClient:
    deadline_s = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline_s, client.get("/readyz").text
        time.sleep(0.01)
    return client


def problem(response: Any, status: int, code: str) -> str:
    """Returns: The detail of a response's problem document, after checking that it is one. Of any version of httpx."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["title"] == KINDS[code].title
    detail: str = document["detail"]
    assert detail.endswith(".")
    return detail


def assert_right_without_vnni(proto: onnx.ModelProto) -> None:
    """That of an int8 file no two products of a byte and a weight exceed 16 bits, in which x86 processors without VNNI
    add them. Depthwise convolutions are computed otherwise."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    read = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.input[:1]}
    dense = [constants[name] for name in read & constants.keys() if constants[name].ndim == 4]
    dense = [weights for weights in dense if weights.shape[1] > 1]
    assert dense and max(int(np.abs(weights.astype(int)).max()) for weights in dense) * 2 * 255 < 2**15

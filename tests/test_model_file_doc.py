"""docs/model-file.md: its example, which imports nothing of this project, finds what the service's pipeline finds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skimage.data
from PIL import Image

from app.artifact import METADATA_KEY, Metadata
from app.detector import Detector
from app.images import MOST_PIXELS, decode
from app.session import OnnxRunner
from app.settings import DEFAULT_MODEL

PAGE = (Path(__file__).resolve().parents[1] / "docs/model-file.md").read_text()
INT8 = DEFAULT_MODEL.with_name(f"{DEFAULT_MODEL.stem}-int8.onnx")

PICTURES = ("cat.png", "astronaut.png", "lying.jpg", "large.png", "transparent.png", "grey-of-16-bits.png")

Found = list[tuple[str, float, list[float]]]  # label, score, box


@pytest.fixture(scope="module")
def detect() -> Callable[[Path, Path], Found]:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    assert set(imported) <= {"fractions", "json", "math", "os", "numpy", "onnxruntime", "PIL"}
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/model-file.md", "exec"), names)
    example: Callable[[Path, Path], Found] = names["detect"]
    return example


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network with other metadata, so that every number must have been read there.

    No canvas is a multiple of the larger strides, so a step of `canvas` is none of `stride`; a square picture fits two
    canvases; and with so low a threshold `top_k`, the suppression and `max_detections` all have something to refuse.
    """
    proto = onnx.load(DEFAULT_MODEL)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == METADATA_KEY)
    shipped = Metadata.model_validate_json(entry.value)
    changes = {
        "classes": tuple(f"class {name}" for name in shipped.classes),
        "points": {"offset": 0.25, "step": "canvas"},
        "resize": {"short": 400, "long": 544},
        "canvases": [[544, 544], [416, 544], [544, 416]],
        "mean_pixel": [124, 116, 104],
        "defaults": {"score_threshold": 0.05, "iou_threshold": 0.45, "max_detections": 8},
        "top_k": 30,
    }
    entry.value = Metadata.model_validate({**shipped.model_dump(), **changes}).to_json()
    path = tmp_path_factory.mktemp("model") / "other.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `PICTURES`."""
    folder = tmp_path_factory.mktemp("pictures")
    cat, astronaut, coffee = (Image.fromarray(getattr(skimage.data, name)()) for name in ("cat", "astronaut", "coffee"))
    transparent = coffee.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    grey = Image.fromarray(np.asarray(astronaut.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown, the pixels are turned by 90 degrees clockwise

    cat.save(folder / "cat.png")
    astronaut.save(folder / "astronaut.png")
    cat.transpose(Image.Transpose.ROTATE_90).save(folder / "lying.jpg", quality=95, exif=exif)
    # More than four times as large as its canvas: Pillow's `reducing_gap` comes in.
    cat.resize((2255, 1500), Image.Resampling.NEAREST).save(folder / "large.png", compress_level=1)
    transparent.save(folder / "transparent.png")
    grey.save(folder / "grey-of-16-bits.png")
    return folder


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("model", ["shipped", "int8", "other"])
def test_the_example_finds_what_the_service_finds(
    detect: Callable[[Path, Path], Found],
    other_model: Path,
    pictures: Path,
    model: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.resizing.simd", None)  # which rounds differently, as the page says
    path = {"shipped": DEFAULT_MODEL, "int8": INT8, "other": other_model}[model]
    file = pictures / picture
    runner = OnnxRunner.load(path)
    expected = Detector(runner.metadata, runner).detect(decode(file.read_bytes(), MOST_PIXELS))
    if model == "other":
        assert len(expected) == runner.metadata.defaults.max_detections

    found = detect(path, file)
    assert [label for label, _, _ in found] == [runner.metadata.classes[class_id] for class_id in expected.class_ids]
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, rtol=0, atol=1e-5)
    boxes = np.reshape([box for _, _, box in found], (-1, 4))
    np.testing.assert_allclose(boxes, expected.boxes, rtol=0, atol=0.01)  # pixels


def test_the_page_names_every_field_of_the_metadata() -> None:
    table = PAGE.partition("## The metadata")[2].partition("\n## ")[0]
    assert [field for field in Metadata.model_fields if f"`{field}`" not in table] == []


def test_the_page_names_the_operators_of_the_shipped_files() -> None:
    text = " ".join(PAGE.split())
    pattern = r"Opset (\d+), .*?Both shipped files: (.*?)\. Only fp32: (.*?)\. Only int8: (.*?)\."
    ((opset, both, fp32, int8),) = re.findall(pattern, text)
    for path, only in ((DEFAULT_MODEL, fp32), (INT8, int8)):
        proto = onnx.load(path)
        named = {("", name) for name in f"{both}, {only}".split(", ")}
        assert {(node.domain, node.op_type) for node in proto.graph.node} == named
        assert next(one.version for one in proto.opset_import if not one.domain) == int(opset)

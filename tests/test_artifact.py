import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.artifact import Metadata, Size, file_version, grids, parse
from app.canvas import resized_size
from app.errors import ArtifactError
from tests.support import METADATA, metadata


def test_what_is_written_is_read_back() -> None:
    assert parse(metadata().to_json(), "m.onnx") == metadata()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"classes": ["cat", "cat"]}, "'cat' occurs more than once"),
        ({"classes": []}, "classes"),
        ({"classes": [" "]}, "classes"),
        ({"strides": [8, 8]}, "strides must rise"),
        ({"canvases": [[160, 150]]}, "multiple of 32"),
        ({"canvases": [[150, 160]]}, "multiple of 32"),
        ({"canvases": [[160, 160], [32, 32_000]]}, "a side of more than 4096"),
        ({"canvases": [[128, 160], [160, 128]]}, "no canvas holds a picture of 160 x 160"),
        ({"mean_pixel": [0, 0, 256]}, "mean_pixel"),
        ({"metrics": {"AP": float("nan")}}, "metrics.AP"),
        ({"points": {"offset": 0.5, "step": "strides"}}, "points.step"),
        ({"variant": "fused"}, "variant"),
        ({"precision": "fp8"}, "precision"),
        ({"defaults": {**METADATA["defaults"], "score_threshold": 2}}, "defaults.score_threshold"),
        ({"defaults": {**METADATA["defaults"], "iou_threshold": -0.1}}, "defaults.iou_threshold"),
        ({"checkpoint_sha256": "abc"}, "checkpoint_sha256"),
        ({"colour": "red"}, "`colour` is not known"),
    ],
)
def test_an_invalid_document_is_refused_in_one_sentence(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape(reason)) as caught:
        parse(json.dumps({**METADATA, **change}), "m.onnx")
    assert str(caught.value).startswith("m.onnx ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "[]", "{", "3", '{"format_version": null}', "[" * 100_000])
def test_what_is_not_our_metadata_is_refused(text: str | None) -> None:
    with pytest.raises(ArtifactError, match=r"^m\.onnx "):
        parse(text, "m.onnx")


def test_every_missing_key_is_named() -> None:
    for key in METADATA:
        with pytest.raises(ArtifactError, match=key.replace("_", "[_ ]")):
            parse(json.dumps({name: value for name, value in METADATA.items() if name != key}), "m.onnx")


@given(st.integers(32, 500), st.integers(32, 500), st.integers(1, 3000), st.integers(1, 3000))
def test_no_picture_is_left_without_a_canvas(short: int, long: int, height: int, width: int) -> None:
    """Canvases that hold the rule's two extreme sizes hold every picture that the rule gives."""
    shorter, longer = (-(-side // 32) * 32 for side in (min(short, long), long))
    rule = metadata(resize={"short": short, "long": long}, canvases=[(shorter, longer), (longer, shorter)])
    resized = resized_size(Size(height, width), rule.resize)
    assert any(resized.height <= canvas.height and resized.width <= canvas.width for canvas in rule.canvases)


def test_a_level_covers_the_canvas() -> None:
    assert grids((8, 64), Size(160, 96)) == [Size(20, 12), Size(3, 2)]


def test_the_version_follows_the_file() -> None:
    assert file_version(b"abc") == "ba7816bf"


def test_metadata_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        metadata().name = "other"
    assert isinstance(metadata(), Metadata)

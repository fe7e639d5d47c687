"""torchvision's weights in our network give torchvision's detections."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision.models.detection import FCOS, fcos_resnet50_fpn

from app.canvas import fit
from app.detector import Detector
from app.postprocess import Detections
from benchmarks.torchvision_parity import PARAMETERS, lively_model, matched
from export.__main__ import main
from model.checkpoint import Checkpoint
from model.config import InputConfig
from model.evaluation import torch_runner
from model.torchvision_weights import CATEGORIES, USED, from_state_dict, rename, torchvision_canvases

# torchvision's rule on a smaller scale, so that a test takes seconds.
SMALL = InputConfig(
    short=160,
    long=256,
    canvases=tuple((h, w) for h in range(32, 257, 32) for w in range(32, 257, 32)),
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)


@pytest.fixture(scope="module")
def theirs() -> FCOS:
    model = lively_model()
    model.transform.min_size, model.transform.max_size = (SMALL.short,), SMALL.long
    return model


@pytest.fixture(scope="module")
def checkpoint(theirs: FCOS) -> Checkpoint:
    return from_state_dict(theirs.state_dict(), "random")


def test_torchvisions_detections_are_ours(theirs: FCOS, checkpoint: Checkpoint) -> None:
    checkpoint = dataclasses.replace(checkpoint, input_config=SMALL)
    metadata = checkpoint.metadata("coco")
    detector = Detector(metadata, torch_runner(checkpoint.model(), torch.device("cpu")))
    # The crop has another shape, so it lies on a canvas with padding.
    for pixels in (skimage.data.cat(), skimage.data.astronaut()[:, 100:333]):
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        canvas, placement = fit(picture, metadata)
        resized = canvas[: placement.resized.height, : placement.resized.width]
        ours = detector.detect(picture, PARAMETERS)
        scale = np.array([*placement.resized[::-1]] * 2) / np.array([*placement.picture[::-1]] * 2)
        with torch.inference_mode():
            (expected,) = theirs([torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255])
        found, count = matched(
            Detections((ours.boxes * scale).astype(np.float32), ours.scores, ours.class_ids), expected
        )
        assert count > 20
        assert found == count


@torch.inference_mode()
def test_torchvisions_heads_are_ours_at_every_point(theirs: FCOS, checkpoint: Checkpoint) -> None:
    ours = checkpoint.model()
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    class_logits, distances, centerness = ours.head(ours.fpn(ours.backbone(x)))
    _, strides = ours.points_of(x)
    expected = theirs.head(list(theirs.backbone(x).values()))
    torch.testing.assert_close(class_logits, expected["cls_logits"][..., USED], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(distances / strides[:, None], expected["bbox_regression"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(centerness[..., None], expected["bbox_ctrness"], atol=1e-4, rtol=1e-4)


def test_the_classes_are_cocos_eighty(theirs: FCOS, checkpoint: Checkpoint) -> None:
    assert len(checkpoint.config.classes) == 80
    assert checkpoint.config.classes[:3] == ("person", "bicycle", "car")
    assert checkpoint.config.classes[-1] == "toothbrush"
    bias = theirs.state_dict()["head.classification_head.cls_logits.bias"]
    torch.testing.assert_close(checkpoint.weights["head.class_logits.bias"], bias[USED])


def test_the_metadata_says_torchvisions_rules(checkpoint: Checkpoint) -> None:
    metadata = checkpoint.metadata("coco")
    assert (metadata.resize.short, metadata.resize.long) == (800, 1333)
    assert (metadata.points.offset, metadata.points.step) == (0, "canvas")
    assert (metadata.defaults.score_threshold, metadata.defaults.iou_threshold) == (0.2, 0.6)


def test_the_canvases_are_what_torchvision_pads_to() -> None:
    transform = fcos_resnet50_fpn(weights=None, weights_backbone=None).transform
    seen = set()
    for height, width in ((480, 640), (500, 375), (300, 1000), (1000, 90), (800, 1333), (333, 333)):
        images, _ = transform([torch.zeros(3, height, width)])
        seen.add(tuple(images.tensors.shape[-2:]))
    assert seen <= set(torchvision_canvases())


def test_every_tensor_that_does_not_fit_is_named(theirs: FCOS) -> None:
    state = dict(theirs.state_dict())
    del state["backbone.fpn.inner_blocks.1.0.bias"]
    state["head.regression_head.bbox_reg.weight"] = torch.zeros(8, 256, 3, 3)
    state["head.segmentation"] = torch.zeros(3)
    with pytest.raises(ValueError) as caught:
        from_state_dict(state, "mine.pth")
    message = str(caught.value)
    assert "fpn.lateral.1.bias is missing" in message
    assert "head.distances.weight has shape [8, 256, 3, 3] instead of [4, 256, 3, 3]" in message
    assert "head.segmentation is unexpected" in message
    assert message.count(";") == 2


def test_another_number_of_classes_is_refused() -> None:
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    with pytest.raises(ValueError, match=r"head\.class_logits\.weight has shape \[7, 256, 3, 3\]"):
        from_state_dict(model.state_dict(), "mine.pth")


def test_names_of_older_torchvision_files_are_understood() -> None:
    assert rename("backbone.fpn.inner_blocks.2.weight") == rename("backbone.fpn.inner_blocks.2.0.weight")
    assert rename("backbone.fpn.layer_blocks.0.bias") == "fpn.output.0.bias"


def test_the_command_refuses_a_file_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.zeros(10, 10)}, file)
    for source, message in ((file, "fc.weight is unexpected"), (tmp_path / "none.pth", "no weights file at")):
        assert main(["--torchvision-coco", str(source), "--output", str(tmp_path / "coco.onnx")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "coco.onnx").exists()


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [1], {1: torch.zeros(3)}, {"backbone.body.conv1.weight": 3}, {"state_dict": [1]}],
    ids=["a tensor", "a list", "numbers for names", "a number", "a list inside"],
)
def test_a_file_of_anything_but_weights_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object
) -> None:
    torch.save(content, tmp_path / "odd.pth")
    assert main(["--torchvision-coco", str(tmp_path / "odd.pth"), "--output", str(tmp_path / "coco.onnx")]) == 2
    assert "odd.pth holds no weights" in capsys.readouterr().err


def test_a_scalar_in_place_of_a_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"head\.class_logits\.bias has shape \[\] instead of \[80\]"):
        from_state_dict({"head.classification_head.cls_logits.bias": torch.tensor(1.0)}, "odd.pth")


def test_no_place_for_a_download_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "cache"))
    assert main(["--torchvision-coco", "--output", str(tmp_path / "coco.onnx")]) == 2
    assert "cannot be downloaded to" in capsys.readouterr().err


def test_categories_are_the_ones_torchvision_trained_with() -> None:
    assert len(CATEGORIES) == 91
    assert CATEGORIES[17] == "cat"

"""What is exported computes what torch computes, says what it is, and is not written where it would be wrong."""

import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from app.artifact import METADATA_KEY, Metadata
from app.canvas import Placement
from app.detector import Detector
from app.postprocess import Detections, Parameters, PictureHeads
from app.session import OnnxRunner
from export.__main__ import main
from export.agreement import LOWER, Bounds, _matched, agreement
from export.convert import export, lower_precision
from export.graph import ServedGraph, to_onnx
from export.precision import choose_pictures, read_bytes_as_quantized, to_fp16, without_unused
from export.verify import compare
from model import checkpoint as checkpoints
from model.config import FCOSConfig, InputConfig
from model.evaluation import torch_runner
from model.fcos import FCOS
from model.head import Heads
from model.pictures import open_picture
from tests.support import assert_right_without_vnni, rectangle_picture

INPUT = InputConfig(short=128, long=160, canvases=((128, 160), (160, 128)))


@pytest.fixture(scope="module")
def checkpoint() -> checkpoints.Checkpoint:
    """A small detector whose heads vary, as a trained one's do."""
    torch.manual_seed(0)
    config = FCOSConfig(classes=("cat", "dog"), backbone="test_efficientnet", channels=32, norm="bn")
    model = FCOS(config, INPUT)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        # What the service thresholds is the class score: a bias near 0 gives it something to find.
        model.head.class_logits.bias.zero_()
    return checkpoints.Checkpoint(
        config=config, input_config=INPUT, weights=model.state_dict(), training={"name": "tiny"}, metrics={"AP": 0.25}
    )


@pytest.fixture(scope="module")
def checkpoint_file(checkpoint: checkpoints.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoints.save(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint_file: Path) -> Path:
    """The file that the command writes."""
    output = checkpoint_file.with_name("first.onnx")
    assert main([str(checkpoint_file), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def model(checkpoint: checkpoints.Checkpoint) -> FCOS:
    return checkpoint.model()


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(3, 160, 128), (1, 64, 256), (5, 96, 96), (1, 32, 32)])
def test_shapes_that_the_export_did_not_try_give_torchs_heads_too(
    exported: Path, model: FCOS, shape: tuple[int, int, int]
) -> None:
    images = pictures(*shape)
    with torch.inference_mode():
        expected = ServedGraph(model)(torch.from_numpy(images))
    for ours, theirs in zip(OnnxRunner.load(exported)(images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3, rtol=1e-4)


def test_the_service_detects_what_the_checkpoint_detects(
    exported: Path, model: FCOS, checkpoint: checkpoints.Checkpoint
) -> None:
    picture = pictures(90, 70)
    runner = OnnxRunner.load(exported)
    served = Detector(runner.metadata, runner).detect(picture)
    trained = Detector(checkpoint.metadata("tiny"), torch_runner(model, torch.device("cpu"))).detect(picture)
    assert len(served) > 0
    np.testing.assert_array_equal(served.class_ids, trained.class_ids)
    np.testing.assert_allclose(served.scores, trained.scores, atol=1e-5)
    np.testing.assert_allclose(served.boxes, trained.boxes, atol=1e-2)


def test_the_file_says_what_it_is(exported: Path, checkpoint_file: Path) -> None:
    metadata: Metadata = OnnxRunner.load(exported).metadata
    assert metadata.name == "tiny"
    assert metadata.classes == ("cat", "dog")
    assert metadata.canvases == INPUT.canvases
    assert metadata.metrics == {"AP": 0.25}
    assert metadata.checkpoint_sha256 == checkpoints.sha256(checkpoint_file)


def test_the_default_score_threshold_and_the_name_may_be_chosen(
    checkpoint_file: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("export.convert.to_onnx", lambda _: onnx.load(exported))  # which takes seconds
    output = tmp_path / "all.onnx"
    assert main([str(checkpoint_file), "--output", str(output), "--score-threshold", "0", "--name", "mine"]) == 0
    compared, written = capsys.readouterr().out.splitlines()
    assert compared.startswith("ONNX Runtime and torch differ by at most class_logits ")
    own_canvases_and_another = "(1x128x160, 2x128x160, 1x160x128, 2x160x128, 1x64x96, 2x64x96)"
    assert compared.endswith(own_canvases_and_another)
    assert written == f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, mine)"
    chosen, plain = (OnnxRunner.load(path).metadata for path in (output, exported))
    assert (chosen.name, plain.name) == ("mine", "tiny")
    assert chosen.defaults == plain.defaults.model_copy(update={"score_threshold": 0})
    assert plain.defaults.score_threshold == checkpoints.load(checkpoint_file).score_threshold


def test_a_letter_that_the_output_lacks_makes_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows in a file or pipe: the model had been written, but the exit code was 2."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "cp1252", write_through=True))
    monkeypatch.setattr("export.convert.convert", lambda options: f"wrote {options.output}")
    assert main(["a.pt", "--output", "猫.onnx"]) == 0
    assert out.getvalue().split() == [b"wrote", rb"\u732b.onnx"]


def test_the_file_names_no_path_of_the_machine_that_wrote_it(exported: Path) -> None:
    content = exported.read_bytes()
    assert str(Path(__file__).resolve().parents[1]).encode() not in content
    assert b"site-packages" not in content


def test_no_padding_and_no_batch_norm_is_left_to_run(exported: Path, tmp_path: Path) -> None:
    # Both must fold into the convolutions, or every picture pays for them.
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"Pad", "BatchNormalization"}


class Pools(nn.Module):
    """Layers between which the exporter must know that sides are multiples, as in resnet50d or resnetaa50."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Heads:
        x = F.avg_pool2d(self.conv(images.float()), 2)
        x = F.avg_pool2d(x, 2) + F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        rows = x.flatten(2).transpose(1, 2)
        return Heads(rows, rows, rows[..., 0])


def test_pools_that_round_up_are_translated() -> None:
    model = Pools().eval()
    session = ort.InferenceSession(to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[arg-type]
    for shape in ((1, 32, 64), (3, 160, 96)):
        images = pictures(*shape)
        with torch.inference_mode():
            expected = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        for found, wanted in zip(session.run(list(Heads._fields), {"images": images}), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-3)


def test_what_cannot_be_translated_has_its_reason() -> None:
    class Asking(Pools):
        def forward(self, images: Tensor) -> Heads:
            if images.sum() > 0:
                return super().forward(images)
            raise RuntimeError

    with pytest.raises(ValueError, match=r"cannot be translated to ONNX: .*data-dependent"):
        to_onnx(Asking().eval())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_graph_that_differs_from_torch_is_refused(
    exported: Path, model: FCOS, checkpoint: checkpoints.Checkpoint, wrong: float
) -> None:
    proto = onnx.load(exported)
    weight = max(proto.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(wrong), weight.name))
    with pytest.raises(ValueError, match="differs by"):
        compare(proto, model, checkpoint.metadata("tiny"))


def test_a_graph_that_knows_one_picture_only_is_refused(
    exported: Path, model: FCOS, checkpoint: checkpoints.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FirstOnly(ort.InferenceSession):  # type: ignore[misc]
        def run(self, names: Any, feeds: Any, options: Any = None) -> Any:
            first = {name: value[:1] for name, value in feeds.items()}
            count = len(next(iter(feeds.values())))
            return [head.repeat(count, 0) for head in super().run(names, first, options)]

    monkeypatch.setattr("export.verify.ort.InferenceSession", FirstOnly)
    with pytest.raises(ValueError, match="on a batch of 2 at 128x160"):
        compare(onnx.load(exported), model, checkpoint.metadata("tiny"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda head: head - 0.002, "differs by 0.002"),
        (lambda head: head * 1.002, "differs by"),  # of canvas pixels
        (lambda head: head[:1], r"class_logits is \[1, .* in ONNX Runtime, but \[2, .* in torch"),
    ],
)
def test_heads_that_are_a_little_off_are_refused(
    exported: Path,
    model: FCOS,
    checkpoint: checkpoints.Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[np.ndarray], np.ndarray],
    says: str,
) -> None:
    class Wrong(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *arguments: Any) -> Any:
            return [wrong(head) for head in super().run(*arguments)]

    monkeypatch.setattr("export.verify.ort.InferenceSession", Wrong)
    with pytest.raises(ValueError, match=says):
        compare(onnx.load(exported), model, checkpoint.metadata("tiny"))


def test_the_largest_difference_of_all_runs_is_said(
    exported: Path, model: FCOS, checkpoint: checkpoints.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.0002, 0.0005, 0, 0, 0, 0])

    class Wrong(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *arguments: Any) -> Any:
            error = next(errors)
            return [head + np.float32(error) for head in super().run(*arguments)]

    monkeypatch.setattr("export.verify.ort.InferenceSession", Wrong)
    said = str(compare(onnx.load(exported), model, checkpoint.metadata("tiny")))
    assert "class_logits 5.0e-04, distances 5.0e-04, centerness 5.0e-04 (" in said


def broken(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.node[0].op_type = "NoSuchThing"
    return proto


def test_a_graph_that_does_not_run_is_refused(
    exported: Path,
    model: FCOS,
    checkpoint: checkpoints.Checkpoint,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"ONNX Runtime does not load the exported graph: .*NoSuchThing"):
        compare(broken(onnx.load(exported)), model, checkpoint.metadata("tiny"))
    monkeypatch.setattr("export.precision.to_fp16", broken)
    with pytest.raises(ValueError, match=r"the fp16 graph does not run .*NoSuchThing"):
        lower_precision(exported, "fp16", choose_pictures(picture_folder), tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())

    class Failing(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *_: Any) -> Any:
            raise RuntimeError("out of luck")

    monkeypatch.setattr("export.verify.ort.InferenceSession", Failing)
    with pytest.raises(ValueError, match=r"fails on 1 x \[128, 160\]: out of luck"):
        compare(onnx.load(exported), model, checkpoint.metadata("tiny"))


def test_a_graph_that_differs_from_torch_is_not_written(
    model: FCOS, checkpoint: checkpoints.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def translate_something_else(_: FCOS) -> onnx.ModelProto:
        other = checkpoint.model()
        with torch.no_grad():
            other.head.class_logits.bias.add_(0.01)
        return to_onnx(other)

    monkeypatch.setattr("export.convert.to_onnx", translate_something_else)
    output = tmp_path / "wrong.onnx"
    output.write_bytes(b"the model in use")
    with pytest.raises(ValueError, match="nothing was written"):
        export(model, checkpoint.metadata("tiny"), output)
    assert output.read_bytes() == b"the model in use"
    assert list(tmp_path.iterdir()) == [output]


def with_halved_boxes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same detector, but that every distance is half as long."""
    for tensor in proto.graph.initializer:
        if tensor.name.endswith(("head.distances.weight", "head.distances.bias")):
            halved = onnx.numpy_helper.to_array(tensor) * np.float32(0.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    return proto


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        grid = np.random.default_rng(index).integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((100 + 20 * index, 120)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_lower_precision_is_a_smaller_file_with_much_the_same_detections(
    exported: Path, picture_folder: Path, tmp_path: Path, precision: str
) -> None:
    output = tmp_path / f"{precision}.onnx"
    share, count = lower_precision(exported, precision, choose_pictures(picture_folder), output)
    assert share >= LOWER[precision].share
    assert count > 20
    runner = OnnxRunner.load(output)
    changes = {"precision": precision, "metrics": {}}
    assert runner.metadata == OnnxRunner.load(exported).metadata.model_copy(update=changes)
    assert output.stat().st_size < 0.75 * exported.stat().st_size
    proto = onnx.load(output)
    assert [entry.key for entry in proto.metadata_props].count(METADATA_KEY) == 1
    if precision == "int8":
        assert "Sub" not in {node.op_type for node in proto.graph.node}
        assert_right_without_vnni(proto)
    # ONNX Runtime warns of each constant that no node reads.
    read = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= read
    assert [opset.domain for opset in proto.opset_import] == [""]


def test_the_command_says_how_far_a_lower_precision_agrees(
    checkpoint_file: Path,
    exported: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("export.convert.to_onnx", lambda _: onnx.load(exported))  # which takes seconds
    output = tmp_path / "half.onnx"
    command = [str(checkpoint_file), "--output", str(output), "--precision", "fp16"]
    assert main([*command, "--calibration-images", str(picture_folder)]) == 0
    compared, agreed, written = capsys.readouterr().out.splitlines()
    assert compared.startswith("ONNX Runtime and torch differ by at most ")
    assert re.fullmatch(r"fp16 and fp32 agree on (9[89]|100)\.\d% of \d+ detections", agreed)
    assert written == f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, tiny)"
    assert OnnxRunner.load(output).metadata.precision == "fp16"


def test_int8_is_judged_on_other_pictures_than_it_has_its_ranges_from(
    exported: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[Path] = []
    judged: list[Path] = []

    def converted(proto: onnx.ModelProto, pictures: Sequence[Path], _: Metadata) -> onnx.ModelProto:
        ranges.extend(pictures)
        return proto

    def agreed(one: OnnxRunner, other: OnnxRunner, pictures: Sequence[Path], _: Bounds) -> tuple[float, int]:
        judged.extend(pictures)
        return 1.0, 1

    monkeypatch.setattr("export.precision.to_int8", converted)
    monkeypatch.setattr("export.convert.agreement", agreed)
    chosen = choose_pictures(picture_folder)
    lower_precision(exported, "int8", chosen, tmp_path / "int8.onnx")
    assert len(ranges) == len(judged) and sorted(ranges + judged) == sorted(chosen)
    monkeypatch.setattr("export.convert.agreement", lambda *_: (LOWER["int8"].share - 0.001, 1000))
    with pytest.raises(ValueError, match=r"agree on 79\.9% of 1000 detections .* but 80% are needed"):
        lower_precision(exported, "int8", chosen, tmp_path / "worse.onnx")
    with pytest.raises(ValueError, match=r"98% are needed, with an IoU of 0\.95 and scores at most 0\.02 apart"):
        lower_precision(exported, "fp16", chosen, tmp_path / "worse.onnx")
    assert not (tmp_path / "worse.onnx").exists()


def test_int8_is_judged_on_the_only_picture(exported: Path, picture_folder: Path, tmp_path: Path) -> None:
    _, count = lower_precision(exported, "int8", choose_pictures(picture_folder)[:1], tmp_path / "int8.onnx")
    assert count > 0


def test_half_precision_keeps_variances_that_it_cannot_hold() -> None:
    """The shipped model has some of 382,000, behind the coarsest levels."""
    values = {"scale": np.ones(2), "bias": np.zeros(2), "mean": np.zeros(2), "variance": np.full(2, 4e5)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "weight"], ["y"], "conv"),
            onnx.helper.make_node("BatchNormalization", ["y", *values], ["z"], "norm"),
            onnx.helper.make_node("Conv", ["z", "weight"], ["out"], "last"),
        ],
        "norm",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [
            *(onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()),
            onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), 500, np.float32), "weight"),
        ],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(0).random((1, 2, 4, 4), np.float32)
    exact, half = (
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for model in (proto, to_fp16(proto))
    )
    assert np.allclose(half, exact, rtol=0.01)


def test_half_precision_of_a_tensor_that_several_read_in_full_precision() -> None:
    """The converter would write its cast once for each, and ONNX Runtime refuses that."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "weight"], ["y"], "conv"),
            onnx.helper.make_node("Relu", ["y"], ["one"], "relu"),
            onnx.helper.make_node("Neg", ["y"], ["other"], "neg"),
        ],
        "two",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("one", "other")],
        [onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), 0.5, np.float32), "weight")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(to_fp16(proto).SerializeToString(), providers=["CPUExecutionProvider"])
    one, other = session.run(None, {"x": np.ones((1, 2, 4, 4), np.float32)})
    assert (one == 1).all() and (other == -1).all()


def test_half_precision_folds_batch_norm_and_never_casts_forth_and_back(exported: Path) -> None:
    """Each would be a pass over memory for a GPU; and what is kept in float32 would lose its digits on the way."""
    proto = to_fp16(onnx.load(exported))
    onnx.checker.check_model(proto)
    producer = {name: node for node in proto.graph.node for name in node.output}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert casts and "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert not [node.name for node in casts if producer[node.input[0]].op_type == "Cast"]
    read = {name for node in proto.graph.node for name in node.input} | {one.name for one in proto.graph.output}
    assert {node.output[0] for node in casts} <= read


def quantized_input(mean: Sequence[float], deviation: Sequence[float]) -> onnx.ModelProto:
    """Bytes, normalised, quantised as calibration would do it for (x - 127) / 128, and a convolution."""
    constants = {
        "mean": np.array(mean, np.float32).reshape(1, 3, 1, 1),
        "deviation": np.array(deviation, np.float32).reshape(1, 3, 1, 1),
        "scale": np.float32(1 / 128),
        "zero": np.uint8(127),
        "weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    }
    steps: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Transpose", "images", {"perm": [0, 3, 1, 2]}), ("Cast", "", {"to": onnx.TensorProto.FLOAT}),
        ("Sub", "mean", {}), ("Div", "deviation", {}), ("QuantizeLinear", "scale zero", {}),
        ("DequantizeLinear", "scale zero", {}), ("Conv", "weight", {"pads": [0, 0, 1, 1]}),
    )  # fmt: skip
    nodes: list[onnx.NodeProto] = []
    for kind, more, attributes in steps:
        before = [nodes[-1].output[0]] if nodes else []
        nodes.append(onnx.helper.make_node(kind, [*before, *more.split()], [kind], name=kind, **attributes))
    graph = onnx.helper.make_graph(
        nodes, "graph",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [1, 8, 8, 3])],
        [onnx.helper.make_tensor_value_info("Conv", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_int8_takes_the_pictures_bytes_as_they_are() -> None:
    proto = quantized_input([127] * 3, [128] * 3)
    shorter = onnx.ModelProto()
    shorter.CopyFrom(proto)
    assert read_bytes_as_quantized(shorter)
    shorter = without_unused(shorter)
    assert [node.op_type for node in shorter.graph.node] == ["Transpose", "DequantizeLinear", "Conv"]
    images = {"images": pictures(1, 8, 8)}
    before, after = (
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, images)[0]
        for one in (proto, shorter)
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), ([127.5] * 3, [128] * 3), ([127] * 3, [128, 128, 100])],
)
def test_bytes_that_stand_for_something_else_are_normalised(mean: list[float], deviation: list[float]) -> None:
    proto = quantized_input(mean, deviation)
    before = proto.SerializeToString()
    assert not read_bytes_as_quantized(proto)
    assert proto.SerializeToString() == before


def test_detections_are_the_same_if_class_box_and_score_are() -> None:
    boxes = np.array([[0, 0, 100, 100], [0, 0, 100, 90]], np.float32)
    scores, class_ids, bounds = np.array([0.5, 0.6], np.float32), np.array([1, 1]), LOWER["int8"]
    found = Detections(boxes, scores, class_ids)
    one = found.take(np.array([True, False]))
    assert (_matched(one, found, bounds), _matched(found, one, bounds)) == (1, 2), "each is counted once"
    for other in (
        dataclasses.replace(found, class_ids=class_ids + 1),
        dataclasses.replace(found, scores=scores + np.float32(0.3)),
        dataclasses.replace(found, boxes=boxes + np.float32(30)),
    ):
        assert _matched(found, other, bounds) == 0
    for near in (
        dataclasses.replace(found, scores=scores + np.float32(0.05)),
        dataclasses.replace(found, boxes=boxes + np.float32(3)),  # an IoU of 0.89
    ):
        assert (_matched(found, near, bounds), _matched(found, near, LOWER["fp16"])) == (2, 0)


def test_files_that_detect_otherwise_do_not_agree(exported: Path, picture_folder: Path, tmp_path: Path) -> None:
    pictures_ = choose_pictures(picture_folder)
    reference = OnnxRunner.load(exported)
    assert agreement(reference, reference, pictures_, LOWER["fp16"])[0] == 1.0
    file = tmp_path / "other.onnx"
    onnx.save(with_halved_boxes(onnx.load(exported)), file)
    share, count = agreement(reference, OnnxRunner.load(file), pictures_, LOWER["int8"])
    assert count > 20
    assert share < 0.2


def test_what_falls_just_below_the_threshold_is_no_disagreement(
    exported: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Detector.finish
    reference, dimmer = OnnxRunner.load(exported), OnnxRunner.load(exported)
    chosen = choose_pictures(picture_folder)
    scores = Detector(reference.metadata, reference).detect(np.asarray(Image.open(chosen[0]).convert("RGB"))).scores
    threshold = float(np.median(scores)) - 0.005  # so that one is just above it
    monkeypatch.setattr(Detector, "parameters", lambda _: Parameters(threshold, 0.6, 100))
    lost = 0

    def dimmed(detector: Detector, heads: PictureHeads, placement: Placement, parameters: Parameters) -> Detections:
        nonlocal lost
        found = finish(detector, heads, placement, parameters)
        if detector.run is reference:
            return found
        found = dataclasses.replace(found, scores=found.scores - np.float32(0.015))
        lost += int((found.scores <= parameters.score_threshold).sum())
        return found.take(found.scores > parameters.score_threshold)

    monkeypatch.setattr(Detector, "finish", dimmed)
    share, _ = agreement(reference, dimmer, chosen, LOWER["fp16"])
    assert lost > 0
    assert share == 1.0
    # Nor is it if that was all.
    threshold = max(
        float(Detector(reference.metadata, reference).detect(open_picture(one)).scores[0]) for one in chosen
    )
    threshold -= 0.005
    share, count = agreement(reference, dimmer, chosen, LOWER["fp16"])
    assert (share, count > 0) == (1.0, True)


def test_detections_that_fp32_does_not_have_are_disagreement_too(
    exported: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, most = Detector.finish, 1
    few, many = OnnxRunner.load(exported), OnnxRunner.load(exported)

    def some(detector: Detector, heads: PictureHeads, placement: Placement, parameters: Parameters) -> Detections:
        found = finish(detector, heads, placement, parameters)
        return found.take(np.arange(len(found)) < most) if detector.run is few else found

    monkeypatch.setattr(Detector, "finish", some)
    share, count = agreement(few, many, choose_pictures(picture_folder), LOWER["int8"])
    assert share < 0.5
    assert count > 6, "of the other's detections: fp32's are one in each picture"
    most = 0
    assert agreement(few, many, choose_pictures(picture_folder), LOWER["int8"]) == (0.0, 0)


def test_a_precision_that_answers_otherwise_is_not_written(
    exported: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.precision.to_fp16", with_halved_boxes)
    with pytest.raises(ValueError, match="nothing was written"):
        lower_precision(exported, "fp16", choose_pictures(picture_folder), tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_a_precision_that_cannot_be_judged_is_not_written(
    exported: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.detector.Detector.parameters", lambda _: Parameters(1, 0.5, 10))
    with pytest.raises(ValueError, match=r"fp32 finds nothing on 6 of .*: nothing was written. Give pictures"):
        lower_precision(exported, "fp16", choose_pictures(picture_folder), tmp_path / "unknown.onnx")
    assert not (tmp_path / "unknown.onnx").exists()


def test_a_calibration_picture_that_cannot_be_read_is_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.jpg: The bytes are not a picture"):
        lower_precision(exported, "int8", choose_pictures(tmp_path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_lower_precision_needs_pictures(
    checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_file), "--output", str(tmp_path / "out.onnx"), "--precision", "int8"]
    assert main(command) == 2
    assert "--calibration-images" in capsys.readouterr().err
    assert main([*command, "--calibration-images", str(tmp_path)]) == 2
    assert "no picture files in" in capsys.readouterr().err


def test_calibration_pictures_without_a_lower_precision_are_refused(
    checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_file), "--output", str(tmp_path / "out.onnx")]
    assert main([*command, "--calibration-images", str(tmp_path)]) == 2
    assert "--precision" in capsys.readouterr().err
    assert main([*command, "--name", ""]) == 2
    assert "export: --name must have 1 to 200 characters" in capsys.readouterr().err
    for threshold in ("1.5", "nan"):
        assert main([*command, "--score-threshold", threshold]) == 2
        assert "between 0 and 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))


def test_a_temporary_folder_that_is_not_there_is_one_sentence(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    rectangle_picture().save(tmp_path / "a.png")
    command = [str(checkpoint_file), "--output", str(tmp_path / "out.onnx"), "--precision", "int8"]
    assert main([*command, "--calibration-images", str(tmp_path)]) == 2
    assert "gone" in capsys.readouterr().err


def test_what_a_user_gets_wrong_is_one_sentence_and_exit_code_2(
    checkpoint: checkpoints.Checkpoint, checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = tmp_path / "nameless.pt"
    checkpoints.save(nameless, dataclasses.replace(checkpoint, training={}))
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    text = tmp_path / "notes.pt"
    text.write_text("no checkpoint")
    cases = {
        (str(tmp_path / "none.pt"), "out.onnx"): "no checkpoint at",
        (str(foreign), "out.onnx"): "not a checkpoint of this project",
        (str(text), "out.onnx"): "not a checkpoint that torch can read",
        (str(checkpoint_file), "out.pb"): "must end in .onnx",
        (str(nameless), f"{'x' * 201}.onnx"): "must have 1 to 200 characters",
        (str(checkpoint_file), "no/such/folder/out.onnx"): "no folder",
    }
    for (source, output), message in cases.items():
        assert main([source, "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.onnx"))

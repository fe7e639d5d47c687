"""Pictures in the device's memory become the batches that Pillow would have made of their files."""

import colorsys
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from torch.utils._pytree import tree_flatten

from app.artifact import Size
from model import checkpoint as checkpoints
from model.checkpoint import metadata_of
from model.config import FCOSConfig, InputConfig
from model.data import Annotations, Batch, Draw, Plans, TrainingPictures, collate
from model.layout import NO_AUGMENTATION, Augmentation
from model.loading import make_loader
from model.resident import ResidentBatches, ResidentPictures, largest_shown, pack, turn_hue
from model.run import Run
from model.sampling import CanvasBatches
from model.stopping import Stop
from model.training import train
from tests.toy import ALONE, COLOURS, IDS, QUIET, read_annotations, settings, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CANVASES = (Size(64, 96), Size(96, 64), Size(96, 96))
METADATA = metadata_of(
    FCOSConfig(classes=tuple(IDS)),
    InputConfig(short=96, long=96, canvases=tuple((size.height, size.width) for size in CANVASES)),
)
# No picture gets four times smaller: from there on Pillow's `reducing_gap` averages whole pixels first.
GEOMETRY = Augmentation(color=0.0, flip=0.5, scale=(0.6, 2.0), mosaic=0.4, mixup=0.3)
ALL_BUT_HUE = dataclasses.replace(GEOMETRY, color=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("toy"), 9)


@pytest.fixture(scope="module")
def annotations(data: tuple[Path, Path]) -> Annotations:
    return read_annotations(*data)


def both(
    annotations: Annotations, images: Path, augmentation: Augmentation, draws: list[Draw], largest: float | None = None
) -> tuple[Batch, Batch]:
    """The draws' batch by Pillow, and by the resident pictures."""
    plans = Plans(annotations, METADATA, augmentation)
    files = TrainingPictures(plans, images)
    largest = largest or largest_shown(augmentation, [draw.zoom for draw in draws])
    resident = ResidentPictures(annotations, images, METADATA, CPU, largest)
    return collate([files[draw] for draw in draws]), resident.paint(pack([plans[draw] for draw in draws]))


def draws_of(seed: int, count: int, canvas: Size = CANVASES[2], zoom: float = 1.0) -> list[Draw]:
    return [Draw(index % 9, canvas, zoom, False, seed + index) for index in range(count)]


def assert_same_boxes(one: Batch, other: Batch) -> None:
    assert one.pictures == other.pictures
    for mine, theirs in zip(one.boxes + one.labels, other.boxes + other.labels, strict=True):
        assert mine.equal(theirs)


def differences(one: Batch, other: Batch) -> torch.Tensor:
    assert one.images.shape == other.images.shape and one.images.dtype == other.images.dtype == torch.uint8
    return (one.images.int() - other.images.int()).abs()


def test_all_augmentation_is_compared_between_the_two() -> None:
    """That is: either here, or in a test of its own, as the hue's."""
    off = [key for key, value in vars(ALL_BUT_HUE).items() if value == getattr(NO_AUGMENTATION, key)]
    assert off == ["hue"]


def test_without_augmentation_pictures_are_pillows_and_so_are_boxes(annotations: Annotations, data: Any) -> None:
    files, resident = both(annotations, data[1], NO_AUGMENTATION, draws_of(0, 9))
    assert_same_boxes(files, resident)
    assert differences(files, resident).max() <= 1
    mean = torch.tensor(METADATA.mean_pixel, dtype=torch.uint8)
    assert (resident.images[0, :, 64:] == mean[:, None, None]).all()  # 96 x 64 on 96 x 96


@examples(max_examples=10)
@given(seed=st.integers(0, 2**32), zoom=st.sampled_from([0.75, 1.0]), canvas=st.sampled_from(CANVASES))
def test_cut_placed_mirrored_joined_and_blended_pixels_are_pillows_to_a_level(
    annotations: Annotations, data: Any, seed: int, zoom: float, canvas: Size
) -> None:
    files, resident = both(annotations, data[1], GEOMETRY, draws_of(seed, 4, canvas, zoom))
    assert_same_boxes(files, resident)
    assert differences(files, resident).max() <= 1


@examples(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_where_pillow_averages_whole_pixels_first_the_two_stay_close(
    annotations: Annotations, data: Any, seed: int
) -> None:
    small = Augmentation(color=0.0, scale=(0.15, 0.24))
    files, resident = both(annotations, data[1], small, draws_of(seed, 4))
    assert_same_boxes(files, resident)
    differ = differences(files, resident).float()
    assert differ.max() <= 20 and differ.mean() < 0.1


@examples(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_boxes_are_the_same_and_light_nearly_so_with_everything_on_but_hue(
    annotations: Annotations, data: Any, seed: int
) -> None:
    files, resident = both(annotations, data[1], ALL_BUT_HUE, draws_of(seed, 4))
    assert_same_boxes(files, resident)
    # Pillow cuts off the fractions after each of three steps.
    assert differences(files, resident).max() <= 5


def test_hue_is_turned_as_pillow_turns_it(annotations: Annotations, data: Any) -> None:
    turned = Augmentation(color=0.0, flip=0.0, scale=(1.0, 1.0), hue=0.15)
    files, resident = both(annotations, data[1], turned, draws_of(0, 9))
    still, _ = both(annotations, data[1], dataclasses.replace(turned, hue=0.0), draws_of(0, 9))
    # Pillow's hue has 256 steps, of up to six levels each.
    assert differences(files, resident).float().mean() < 2
    assert differences(files, still).float().mean() > 10


@examples(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_a_pictures_colours_lie_inside_its_moved_boxes(annotations: Annotations, data: Any, seed: int) -> None:
    augmentation = Augmentation(color=0.1, hue=0.02, scale=(0.6, 1.8), mosaic=0.5)
    _, batch = both(annotations, data[1], augmentation, draws_of(seed, 3))
    for image, boxes, labels in zip(batch.images.int(), batch.boxes, batch.labels, strict=True):
        for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            colour = int(np.argmax(COLOURS[annotations.classes[label]]))
            if min(right - left, bottom - top) < 4:
                continue
            inside = image[:, round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1]
            others = inside[[channel for channel in range(3) if channel != colour]]
            assert (inside[colour] > others.amax(0) + 60).all()


@pytest.mark.parametrize(("height", "kept", "shown"), [(1000, 128, 64), (10, 2, 1)])
def test_what_is_kept_smaller_is_still_the_same_picture(tmp_path: Path, height: int, kept: int, shown: int) -> None:
    """Kept at twice the size it is ever shown at: resized twice, but hardly blurred."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(256, size=(10, 15, 3)).astype(np.uint8))
    coarse.resize((1500, height), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    document: dict[str, Any] = {"categories": [{"id": 1, "name": "thing"}], "annotations": []}
    document["images"] = [{"id": 1, "file_name": "a.png", "width": 1500, "height": height}]
    annotations = Annotations.from_document(document)
    resident = ResidentPictures(annotations, tmp_path, METADATA, CPU, 2.0)
    assert resident.pixels.shape == (1, kept, 3, 192)
    files, batch = both(annotations, tmp_path, NO_AUGMENTATION, [Draw(0, CANVASES[0], 1.0, True, 0)], largest=2.0)
    assert differences(files, batch)[:, :, :shown].float().mean() < 3


def test_a_draw_decides_alone_what_becomes_of_its_picture(annotations: Annotations, data: Any) -> None:
    plans = Plans(annotations, METADATA, Augmentation(mosaic=0.5, mixup=0.5, hue=0.1))
    resident = ResidentPictures(annotations, data[1], METADATA, CPU, 1.6)
    chosen = [plans[draw] for draw in draws_of(3, 6)]
    together, again = resident.paint(pack(chosen)), resident.paint(pack(chosen[::-1]))
    assert together.images.equal(again.images.flip(0))
    for index, plan in enumerate(chosen):
        alone = resident.paint(pack([plan]))
        assert (alone.images[0].int() - together.images[index].int()).abs().max() <= 1  # other sums, other roundings
        assert alone.boxes[0].equal(together.boxes[index])


def test_more_pictures_are_not_more_tensors_to_hand_over(annotations: Annotations) -> None:
    plans = Plans(annotations, METADATA, GEOMETRY)
    few, many = (tree_flatten(pack([plans[draw] for draw in draws_of(0, count)]))[0] for count in (2, 9))
    assert [sum(isinstance(leaf, torch.Tensor) for leaf in leaves) for leaves in (few, many)] == [10, 10]


@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.floats(-0.5, 0.5),
)
def test_a_turned_hue_is_colorsys(rgb: tuple[int, int, int], turns: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    expected = torch.tensor(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
    found = turn_hue(torch.tensor(rgb, dtype=torch.float32).view(1, 1, 3, 1), torch.tensor([turns])).flatten()
    assert torch.allclose(found, expected, atol=0.05)


# --- in a run


def run_options(data: tuple[Path, Path], output: Path, **changes: Any) -> Any:
    augmentation = Augmentation(mosaic=0.5, mixup=0.3)
    values = {"epochs": 3, "plain_epochs": 1, "zooms": (1.0, 1.34), "repeat_thin": 0.9, "accumulate": 2}
    return settings(data, output, loader="resident", augmentation=augmentation, **(values | changes))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = run_options(data, tmp_path / "whole"), run_options(data, tmp_path / "parted")
    assert train(whole, ALONE, QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda _: True)
        assert not train(parted, ALONE, QUIET)
    assert train(dataclasses.replace(parted, resume=True), ALONE, QUIET)
    one, other = (checkpoints.load(folder / "last.pt").weights for folder in (tmp_path / "whole", tmp_path / "parted"))
    assert all(one[key].equal(other[key]) for key in one)


def test_workers_plan_what_the_process_itself_would(data: tuple[Path, Path], annotations: Annotations) -> None:
    found = []
    for workers in (0, 2):
        options = run_options(data, Path("nowhere"), workers=workers)
        batches = CanvasBatches(np.full(9, 2), CANVASES, 4, 0)
        found.append(list(make_loader(options, annotations, METADATA, batches, CPU)))
    for one, other in zip(*found, strict=True):
        assert one.images.equal(other.images)
        assert_same_boxes(one, other)


def test_pictures_are_kept_as_large_as_a_run_shows_them(tmp_path: Path) -> None:
    file, images = write_coco(tmp_path, 4)
    document = json.loads(file.read_text())
    document["images"][0] |= {"width": 960, "height": 640}
    Image.open(images / "picture-0.png").resize((960, 640)).save(images / "picture-0.png")
    file.write_text(json.dumps(document))
    shown = {"zooms": (1.0, 1.5), "augmentation": Augmentation(scale=(0.5, 2.0))}
    options = settings((file, images), tmp_path / "run", loader="resident", **shown)
    loader = Run(options, ALONE, QUIET, None, None).loader
    assert isinstance(loader, ResidentBatches)
    assert loader.pictures.kept[0].tolist() == [192, 288]  # three times what the service shows


def test_pictures_that_do_not_fit_are_one_sentence(annotations: Annotations, data: tuple[Path, Path]) -> None:
    vast = dataclasses.replace(annotations, sizes=np.full_like(annotations.sizes, 2**24))
    with pytest.raises(ValueError, match=r"9 pictures of up to .* GB, for which cpu has no room: leave") as error:
        ResidentPictures(vast, data[1], METADATA, CPU, float("inf"))
    assert "\n" not in str(error.value)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    mine = write_coco(tmp_path, 9)
    annotations = read_annotations(*mine)
    (mine[1] / "picture-3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"picture-3\.png"):
        ResidentPictures(annotations, mine[1], METADATA, CPU, 1.0)

"""An epoch's batches leave nothing out, share a canvas, and repeat by seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.artifact import Size
from model.checks import check
from model.data import Annotations, Draw
from model.sampling import CanvasBatches, repeat_factors
from tests.toy import IDS, write_pictures

CANVASES = (Size(64, 96), Size(96, 64), Size(96, 96))


def drawn(batches: CanvasBatches, epoch: int = 0, skip: int = 0) -> list[list[Draw]]:
    batches.start(epoch, skip)
    return list(batches)


def test_every_leftover_batch_has_a_canvas_that_holds_its_pictures() -> None:
    """Also where no canvas holds all others, as torchvision's 83."""
    canvases = (Size(64, 128), Size(128, 64), Size(96, 96))
    canvas = np.random.default_rng(0).integers(0, 3, 20)
    for batch in drawn(CanvasBatches(canvas, canvases, 4, 0)):
        for draw in batch:
            own = canvases[canvas[draw.picture]]
            assert draw.canvas.height >= own.height
            assert draw.canvas.width >= own.width


canvas_lists = st.lists(st.integers(0, 2), min_size=8, max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(canvas=canvas_lists, batch_size=st.sampled_from([2, 4, 8]), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_picture_once_on_a_canvas_that_holds_it(
    canvas: np.ndarray, batch_size: int, epoch: int
) -> None:
    batches = CanvasBatches(canvas, CANVASES, batch_size, seed=1)
    found = drawn(batches, epoch)
    assert len(found) == len(batches) == len(canvas) // batch_size
    shown = [draw.picture for batch in found for draw in batch]
    assert len(shown) == len(set(shown))
    for batch in found:
        assert len(batch) == batch_size and len({draw.canvas for draw in batch}) == 1
        assert all(draw.canvas in (CANVASES[canvas[draw.picture]], CANVASES[2]) for draw in batch)


@given(canvas=canvas_lists, processes=st.sampled_from([2, 4]))
def test_processes_together_draw_what_one_would(canvas: np.ndarray, processes: int) -> None:
    alone = drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, zooms=(0.5, 1.0)))
    shares = [
        drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, rank=rank, processes=processes, zooms=(0.5, 1.0)))
        for rank in range(processes)
    ]
    together = [{draw for share in shares for draw in share[i]} for i in range(len(alone))]
    assert together == [set(batch) for batch in alone]


@given(canvas=canvas_lists, skip=st.integers(0, 10))
def test_a_resumed_epoch_goes_on_where_it_stopped(canvas: np.ndarray, skip: int) -> None:
    batches = CanvasBatches(canvas, CANVASES, 2, seed=1)
    assert drawn(batches, 2, skip) == drawn(batches, 2)[skip:]


def test_epochs_differ_and_repeat_by_seed() -> None:
    canvas = np.zeros(32, dtype=np.int64)
    one, same, other = (CanvasBatches(canvas, CANVASES, 4, seed=seed) for seed in (1, 1, 2))
    assert drawn(one, 0) == drawn(same, 0)
    assert drawn(one, 0) != drawn(one, 1) and drawn(one, 0) != drawn(other, 0)


def test_the_last_epochs_are_plain() -> None:
    batches = CanvasBatches(np.zeros(8, dtype=np.int64), CANVASES, 4, seed=0, zooms=(0.5,), plain_from=1)
    before, after = drawn(batches, 0), drawn(batches, 1)
    assert {(draw.plain, draw.canvas) for batch in before for draw in batch} == {(False, Size(32, 64))}
    assert {(draw.plain, draw.canvas) for batch in after for draw in batch} == {(True, CANVASES[0])}


def test_batches_are_cut_to_whole_accumulations() -> None:
    batches = CanvasBatches(np.zeros(27, dtype=np.int64), CANVASES, 4, seed=0, multiple=4)
    assert len(batches) == len(drawn(batches)) == 4


@given(st.lists(st.floats(1, 4), min_size=8, max_size=40), st.integers(0, 5))
def test_repeated_pictures_come_as_often_as_said(repeats: list[float], epoch: int) -> None:
    factors = np.array(repeats)
    batches = CanvasBatches(np.zeros(len(factors), dtype=np.int64), CANVASES, 1, seed=0, repeats=factors)
    shown = np.bincount([draw.picture for batch in drawn(batches, epoch) for draw in batch], minlength=len(factors))
    assert shown.sum() == round(factors.sum()) == len(batches)
    assert (np.abs(shown - factors) < 1.2).all()


def test_pictures_of_thin_classes_are_repeated(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 16)
    for position, annotation in enumerate(document["annotations"]):
        annotation["category_id"] = IDS["red"] if position in (10, 11) else IDS["blue"]  # both boxes of one picture
    document["annotations"].append(document["annotations"][10] | {"id": 99, "category_id": IDS["blue"]})
    factors = repeat_factors(Annotations.from_document(check(document, "it")[0]), threshold=0.25)
    assert factors[5] == pytest.approx((0.25 / (1 / 16)) ** 0.5)
    assert (np.delete(factors, 5) == 1).all()


def test_too_few_pictures_for_a_batch_say_so() -> None:
    with pytest.raises(ValueError, match="lower --batch-size"):
        CanvasBatches(np.zeros(3, dtype=np.int64), CANVASES, 4, seed=0)
    with pytest.raises(ValueError, match="3 processes"):
        CanvasBatches(np.zeros(9, dtype=np.int64), CANVASES, 4, seed=0, processes=3)

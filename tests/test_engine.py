"""A picture's way through the engine: batches, drawing, cores, and a model that fails or hangs."""

import asyncio
import io
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.draw import drawing
from app.errors import Refusal
from app.job import Job
from app.negotiation import JPEG, PNG
from app.outcome import Outcome
from app.postprocess import Heads
from app.schemas import DetectQuery
from app.service import Service
from app.session import OnnxRunner
from tests.held import Held, HeldDecoder
from tests.support import DEFAULTS, PICTURE, encoded, metric, rectangle_picture, served, until

pytestmark = pytest.mark.anyio


def code(result: Outcome | BaseException) -> str:
    return result.code if isinstance(result, Refusal) else type(result).__name__


@pytest.mark.usefixtures("session_thread")
async def test_one_pictures_fault_is_its_own(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seven good pictures and a corrupt one; then seven good ones and one on which the model fails."""
    poison = encoded(rectangle_picture(colour="blue"))
    run_session = OnnxRunner.__call__

    def poisoned(runner: OnnxRunner, canvases: np.ndarray, cores: int) -> Heads:
        if (canvases[..., 2].astype(int) - canvases[..., 0] > 100).any():
            raise RuntimeError("this picture is too much")
        return run_session(runner, canvases, cores)

    async with served(model_file, max_batch=8) as service:
        monkeypatch.setattr(OnnxRunner, "__call__", poisoned)
        held.install()
        for bad, expected in ((PICTURE[:-60], "corrupt_picture"), (poison, "RuntimeError")):
            held.open.clear()
            held.batches.clear()
            first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
            await until(lambda: held.batches == [1])  # the rest gathers behind it
            tasks = [
                asyncio.create_task(service.detect(bad if number == 3 else PICTURE, DEFAULTS)) for number in range(8)
            ]
            waiting = 8 - (expected == "corrupt_picture")
            await until(lambda: len(service._engine._batcher) == waiting)  # noqa: B023
            held.open.set()
            results = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert [code(result) for result in results] == ["Outcome"] * 4 + [expected] + ["Outcome"] * 4
            assert held.batches[1] == waiting
        assert metric(service, "fcos_batches_failed_total") == 2, "the shared one, and that of the picture alone"
    assert "A batch of 8 failed; its pictures are run one by one: this picture is too much" in caplog.text
    assert "RuntimeError: this picture is too much" in caplog.text, "with its traceback"


@pytest.mark.usefixtures("session_thread")
async def test_parameters_in_a_shared_batch_give_what_they_give_alone(model_file: Path, held: Held) -> None:
    queries = [
        DetectQuery(), DetectQuery(max_detections=2), DetectQuery(score_threshold=0), DetectQuery(iou_threshold=0),
        DetectQuery(classes=["green"]), DetectQuery(class_agnostic=True, score_threshold=0.01),
    ]  # fmt: skip
    async with served(model_file, max_batch=8) as service:
        alone = [await service.detect(PICTURE, query) for query in queries]
        held.install()
        first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await until(lambda: held.batches == [1])
        tasks = [asyncio.create_task(service.detect(PICTURE, query)) for query in queries]
        await until(lambda: len(service._engine._batcher) == len(queries))
        held.open.set()
        together = await asyncio.gather(*tasks)
        await first
        assert held.batches == [1, len(queries)]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.found.class_ids, other.found.class_ids)
            np.testing.assert_allclose(one.found.boxes, other.found.boxes, atol=1e-3)
            np.testing.assert_allclose(one.found.scores, other.found.scores, atol=1e-5)


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize(("count", "settings"), [(50, {}), (500, {"sessions": 2, "max_batch": 8})])
async def test_many_at_a_time_get_what_they_get_one_by_one(
    model_file: Path, count: int, settings: dict[str, int]
) -> None:
    random = np.random.default_rng(0)
    colours = ("red", "green", "blue")
    pictures = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(8, 400, 2))
        left, top = int(random.integers(0, width)), int(random.integers(0, height))
        box = (left, top, min(width, left + width // 2 + 1), min(height, top + height // 2 + 1))
        pictures.append(encoded(rectangle_picture(width, height, box, colours[number % 3])))

    async with served(model_file, max_queue=count, deadline_s=300, **settings) as service:
        one_by_one = [await service.detect(picture, DEFAULTS) for picture in pictures]
        together = await asyncio.gather(*(service.detect(picture, DEFAULTS) for picture in pictures))
        for one, other in zip(one_by_one, together, strict=True):
            assert one.size == other.size
            np.testing.assert_array_equal(one.found.class_ids, other.found.class_ids)
            np.testing.assert_allclose(one.found.boxes, other.found.boxes, atol=1e-2)
            np.testing.assert_allclose(one.found.scores, other.found.scores, atol=1e-4)


async def detect_together(service: Service, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is decoded before all have come."""
    decoder = HeldDecoder()
    with monkeypatch.context() as held:
        decoder.install(held)
        tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(count)]
        await until(lambda: service._engine.users == count)
        decoder.open.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(("settings", "batches"), [({"max_batch": 4}, [4, 2]), ({}, [1] * 6)])
async def test_a_worker_decodes_what_fills_a_batch(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], batches: list[int]
) -> None:
    held.open.set()
    async with served(model_file, sessions=1, decode_threads=1, **settings) as service:
        held.install()
        await detect_together(service, 6, monkeypatch)
        assert held.batches == batches
        assert metric(service, "fcos_pictures_inferred_total") == 6


@pytest.mark.parametrize(("count", "first"), [(3, 1), (8, 2), (12, 3), (20, 4), (40, 4)])
async def test_of_two_sessions_each_leaves_half_of_its_pictures_waiting(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, count: int, first: int
) -> None:
    async with served(model_file, sessions=2, decode_threads=1, max_batch=4) as service:
        held.install()
        together = asyncio.create_task(detect_together(service, count, monkeypatch))
        await until(lambda: held.batches != [])
        held.open.set()
        await together
        assert held.batches[0] == first
        assert sum(held.batches) == count


@pytest.mark.parametrize("last", ["corrupt", "abandoned"])
async def test_a_batch_does_not_wait_for_a_picture_that_does_not_come(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    decoder = HeldDecoder()
    held.open.set()
    async with served(model_file, sessions=1, decode_threads=1, max_batch=4) as service:
        decoder.install(monkeypatch)
        held.install()
        pictures = [PICTURE, PICTURE, PICTURE[:-60] if last == "corrupt" else PICTURE]
        tasks = [asyncio.create_task(service.detect(picture, DEFAULTS)) for picture in pictures]
        await asyncio.to_thread(decoder.begun.wait, 20)
        if last == "abandoned":
            tasks[-1].cancel()
            await asyncio.wait(tasks[-1:])
        decoder.open.set()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        expected = "corrupt_picture" if last == "corrupt" else "CancelledError"
        assert [code(result) for result in results] == ["Outcome", "Outcome", expected]
        assert held.batches == [2]


@pytest.mark.parametrize(
    ("seconds", "max_batch", "batches"), [(0.009, 0, [4]), (0.011, 0, [1, 1, 1, 1]), (0.011, 2, [2, 2])]
)
async def test_on_a_cpu_only_quick_models_have_batches_unless_they_are_set(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, seconds: float, max_batch: int, batches: list[int]
) -> None:
    monkeypatch.setattr("app.engine.seconds_per_picture", lambda *_, **__: seconds)
    held.open.set()
    async with served(model_file, sessions=1, decode_threads=1, max_batch=max_batch) as service:
        held.install()
        await detect_together(service, 4, monkeypatch)
        assert held.batches == batches
        assert metric(service, "fcos_largest_batch") == batches[0]


def on_four_cores(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets the service believe that it has so many, and that its model takes so long on one of them."""
    monkeypatch.setattr("app.sharing.core_count", lambda: 4)
    monkeypatch.setattr("app.engine.seconds_per_picture", lambda *_, **__: seconds)


@pytest.mark.parametrize(
    ("seconds", "settings", "alone", "together"),
    [
        (0.1, {}, 4, [4, 2, 1]),  # as many as are left when they come
        (0.1, {"threads": 1}, 1, [1, 1, 1]),
        (0.1, {"sessions": 2}, 1, [1, 1, 1]),
        (0.001, {}, 1, [1, 1, 1]),  # too quick for it
    ],
)
async def test_a_lone_picture_has_all_cores(
    model_file: Path,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    settings: dict[str, int],
    alone: int,
    together: list[int],
) -> None:
    on_four_cores(monkeypatch, seconds)
    several = {"threads": 0, "sessions": 0, "decode_threads": 4, "deadline_s": 300}
    async with served(model_file, **several | settings) as service:
        held.install()
        held.open.set()
        service._engine.pace.batch_s = 60  # whoever came along lately is remembered for minutes
        for _ in range(2):
            await service.detect(PICTURE, DEFAULTS)
        assert held.cores == [alone] * 2

        held.open.clear()
        held.cores.clear()
        tasks = []
        for _ in range(3):
            tasks.append(asyncio.create_task(service.detect(PICTURE, DEFAULTS)))
            await until(lambda: len(held.cores) == min(len(tasks), service._engine._sessions))
            await until(lambda: len(held.cores) + len(service._engine._batcher) == len(tasks))
        held.open.set()
        await asyncio.gather(*tasks)
        assert sorted(held.cores, reverse=True) == together
        await service.detect(PICTURE, DEFAULTS)
        assert held.cores[-1] == 1, "the others have only just left"

        service._engine._crowd_until = 0
        await service.detect(PICTURE, DEFAULTS)
        assert held.cores[-1] == alone


async def test_a_picture_that_had_all_cores_tells_what_it_takes_on_one(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_four_cores(monkeypatch, 0.1)
    async with served(model_file, threads=0, sessions=0) as service:
        pace = service._engine.pace
        pace.batch_s = pace.picture_s = 0  # unknown
        await service.detect(PICTURE, DEFAULTS)
        assert pace.picture_s == pytest.approx(pace.batch_s), "four sessions would not be faster"


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (4, [1, 2, 4])])
async def test_every_canvas_is_warm_in_every_size_of_batch(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, session_thread: None, largest: int, sizes: list[int]
) -> None:
    ran = set()
    run_session = OnnxRunner.__call__

    def noting(runner: OnnxRunner, canvases: np.ndarray, *rest: Any) -> Heads:
        ran.add(canvases.shape[:3])
        return run_session(runner, canvases, *rest)

    monkeypatch.setattr(OnnxRunner, "__call__", noting)
    async with served(model_file, max_batch=largest) as service:
        canvases = service.runner.metadata.canvases
        assert ran == {(size, *canvas) for size in sizes for canvas in canvases}


@pytest.mark.usefixtures("session_thread")
async def test_a_decoded_picture_holds_its_canvas_and_no_more(model_file: Path, held: Held) -> None:
    large = encoded(Image.new("RGB", (2000, 2000)))
    async with served(model_file) as service:
        held.install()
        task = asyncio.create_task(service.detect(large, DEFAULTS))
        await until(lambda: len(held.batches) == 1)
        assert metric(service, "fcos_in_flight_pixels") == 160 * 160
        held.open.set()
        await task
        assert metric(service, "fcos_in_flight_pixels") == 0


# --- drawing


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize(
    ("kind", "exif", "times"),
    [
        ("JPEG", {}, 2),  # itself, and the file that becomes of it
        ("JPEG", {0x0112: 3}, 3),  # to be turned, it is held twice
        ("WEBP", {}, 5),  # libwebp keeps what it decoded with as long as the picture is there
    ],
)
async def test_a_drawn_picture_counts_into_the_pixels_until_it_is_let_go(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exif: dict[int, int], times: int
) -> None:
    tags = Image.Exif()
    tags.update(exif)
    content, size = encoded(rectangle_picture(), kind, exif=tags), rectangle_picture().size
    held: list[int] = []
    async with served(model_file) as service:

        def look(picture: Image.Image, *rest: Any) -> bytes:
            held.append(service._pixels.used)
            return drawing(picture, *rest)

        monkeypatch.setattr("app.engine.drawing", look)
        outcome = await service.detect(content, DEFAULTS, draw=PNG)
        assert outcome.drawn is not None
        assert Image.open(io.BytesIO(outcome.drawn)).size == size
        assert metric(service, "fcos_in_flight_pixels") == len(outcome.drawn) // 4
        for stage, milliseconds in outcome.timing_ms.items():
            seconds = metric(service, f'fcos_stage_seconds_sum{{stage="{stage}"}}')
            assert seconds == pytest.approx(milliseconds / 1000, abs=1e-6)
        outcome.let_go()
        assert metric(service, "fcos_in_flight_pixels") == 0
    assert held == [times * size[0] * size[1]]


async def test_a_drawing_for_which_nobody_waits_counts_no_longer(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(model_file) as service:
        may_end = threading.Event()

        def late(*arguments: Any) -> bytes:
            may_end.wait(20)
            return drawing(*arguments)

        monkeypatch.setattr("app.engine.drawing", late)
        with pytest.raises(Refusal, match="in time"):
            await service.detect(PICTURE, DEFAULTS, draw=PNG, deadline=perf_counter() + 0.3)
        assert metric(service, "fcos_in_flight_pixels") > 0
        may_end.set()
        await until(lambda: metric(service, "fcos_in_flight_pixels") == 0)


async def test_a_drawing_that_comes_as_its_client_leaves_counts_no_longer(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Job._settle
    async with served(model_file) as service:
        asked = asyncio.create_task(service.detect(PICTURE, DEFAULTS, draw=PNG))

        def settle_too_late(*arguments: Any) -> None:
            settle(*arguments)
            asked.cancel()

        monkeypatch.setattr(Job, "_settle", settle_too_late)
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert metric(service, "fcos_in_flight_pixels") == 0


async def test_drawing_keeps_nobody_else_waiting(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing_begun, may_draw = threading.Event(), threading.Event()

    def wait(*arguments: Any) -> bytes:
        drawing_begun.set()
        may_draw.wait(20)
        return drawing(*arguments)

    monkeypatch.setattr("app.engine.drawing", wait)
    async with served(model_file, decode_threads=1) as service:
        drawn = asyncio.ensure_future(service.detect(PICTURE, DEFAULTS, draw=PNG))
        others = [asyncio.ensure_future(service.detect(PICTURE, DEFAULTS, draw=PNG)) for _ in range(3)]
        await asyncio.to_thread(drawing_begun.wait, 20)
        await service.detect(PICTURE, DEFAULTS)
        await asyncio.sleep(0.05)
        assert not drawn.done()
        may_draw.set()
        assert (await drawn).timing_ms["draw"] > 50
        await asyncio.gather(*others)


async def test_a_picture_too_wide_for_jpeg_is_the_clients_fault(
    model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    widest, wide = (encoded(Image.new("RGB", (width, 10))) for width in (65_500, 65_501))
    async with served(model_file) as service:
        assert (await service.detect(widest, DEFAULTS, draw=JPEG)).drawn
        with pytest.raises(Refusal, match="Ask for PNG"):
            await service.detect(wide, DEFAULTS, draw=JPEG)
        assert (await service.detect(wide, DEFAULTS, draw=PNG)).drawn
        assert metric(service, "fcos_ready") == 1
    assert not [line for line in caplog.records if line.exc_info]


# --- failures


@pytest.mark.parametrize("name", Heads._fields)
@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_model_that_goes_wrong_says_so(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    """Values that are not finite are never an empty answer."""
    async with served(model_file) as service:
        run_batch = OnnxRunner.run_batch

        def broken(runner: OnnxRunner, canvases: list[np.ndarray], cores: int) -> Heads:
            heads = run_batch(runner, canvases, cores)
            head = getattr(heads, name).copy()
            head[..., -1] = value
            return heads._replace(**{name: head})

        monkeypatch.setattr(OnnxRunner, "run_batch", broken)
        with pytest.raises(FloatingPointError):
            await service.detect(PICTURE, DEFAULTS)
        assert metric(service, "fcos_ready") == 0
        with pytest.raises(Refusal, match="fails on every picture"):
            await service.require_working()
        monkeypatch.undo()
        await service.require_working()
        assert metric(service, "fcos_ready") == 1
    assert "not finite" in caplog.text


async def test_a_model_that_fails_on_a_picture_is_not_ready_until_it_works(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(model_file) as service:
        with monkeypatch.context() as broken:
            broken.setattr(OnnxRunner, "__call__", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await service.detect(PICTURE, DEFAULTS)
            assert metric(service, "fcos_ready") == 0
            assert metric(service, "fcos_in_flight_pixels") == 0
        await service.detect(PICTURE, DEFAULTS)
        assert metric(service, "fcos_ready") == 1


async def test_a_service_too_busy_to_try_its_model_is_not_said_to_be_broken(model_file: Path, held: Held) -> None:
    async with served(model_file, max_queue=1) as service:
        service._engine.failing = True
        held.install()
        task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await until(lambda: held.batches == [1])
        await service.require_working()
        held.open.set()
        await task


@pytest.mark.usefixtures("session_thread")
async def test_a_session_that_does_not_come_back_is_noticed(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.MOST_WORK_S", 0.0)
    async with served(model_file, deadline_s=0.1) as service:
        held.install()
        with pytest.raises(Refusal, match="in time"):
            await service.detect(PICTURE, DEFAULTS)
        await until(lambda: metric(service, "fcos_ready") == 0)
        with pytest.raises(Refusal, match="hangs"):
            await service.require_working()
        held.open.set()
        await until(lambda: metric(service, "fcos_ready") == 1)
        await service.require_working()


async def test_work_within_a_long_deadline_does_not_hang(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.MOST_WORK_S", 0.0)
    async with served(model_file, deadline_s=300) as service:
        held.install()
        task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await until(lambda: held.batches == [1])
        assert metric(service, "fcos_ready") == 1
        held.open.set()
        await task


async def test_a_picture_that_cannot_be_decoded_neither_hangs_nor_holds_anything(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.MOST_WORK_S", 0.0)
    async with served(model_file, deadline_s=0.1) as service:
        with pytest.raises(Refusal, match="cannot be decoded"):
            await service.detect(PICTURE[:-60], DEFAULTS)
        await asyncio.sleep(0.12)
        assert metric(service, "fcos_ready") == 1
        assert metric(service, "fcos_in_flight_pixels") == 0

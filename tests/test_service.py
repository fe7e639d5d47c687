"""What the service promises of pictures that wait, fail, come too many, come too late or are wanted no more."""

import asyncio
import contextlib
import gc
import io
import math
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.batch_route import detect_each
from app.draw import drawing
from app.engine import Engine
from app.errors import ClientGone, Refusal
from app.job import Job
from app.negotiation import JPEG, PNG
from app.outcome import Outcome
from app.postprocess import Heads
from app.providers import CPU, CUDA
from app.schemas import Answer, DetectQuery, Refused
from app.service import Service
from app.session import OnnxRunner
from app.settings import Settings
from tests.held import Held, HeldDecoder
from tests.support import encoded, metadata, rectangle_picture, value_of, write_model

DEFAULTS = DetectQuery().parameters


PICTURE = encoded(rectangle_picture())


@asynccontextmanager
async def served(model: Path, **settings: Any) -> AsyncIterator[Service]:
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


@pytest.fixture(params=[False, True], ids=["on a worker", "on its own thread"])
def session_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions as on the CPU, and as on CUDA."""
    if request.param:
        monkeypatch.setattr("app.engine.OWN_THREAD", frozenset({CPU}))


def code(result: Outcome | BaseException) -> str:
    return result.code if isinstance(result, Refusal) else type(result).__name__


def test_both_forms_of_an_answer_are_the_same(model_file: Path) -> None:
    async def run() -> Outcome:
        async with served(model_file) as service:
            return await service.detect(PICTURE, DEFAULTS)

    outcome = asyncio.run(run())
    assert outcome.found
    assert Answer.model_validate_json(outcome.to_json()) == outcome.answer


@pytest.mark.usefixtures("session_thread")
def test_a_drawn_picture_counts_into_the_pixels_until_it_is_drawn(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = rectangle_picture().size
    held: list[int] = []

    async def run() -> None:
        async with served(model_file) as service:

            def look(picture: Image.Image, *rest: Any) -> bytes:
                held.append(service._pixels.used)
                return drawing(picture, *rest)

            monkeypatch.setattr("app.engine.drawing", look)
            drawn = (await service.detect(PICTURE, DEFAULTS, draw=PNG)).drawn
            assert drawn is not None
            assert Image.open(io.BytesIO(drawn)).size == size
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())
    assert held == [2 * size[0] * size[1]]


def test_drawing_keeps_nobody_else_waiting(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing_begun, may_draw = threading.Event(), threading.Event()

    def wait(*arguments: Any) -> bytes:
        drawing_begun.set()
        may_draw.wait(20)
        return drawing(*arguments)

    async def run() -> None:
        monkeypatch.setattr("app.engine.drawing", wait)
        async with served(model_file, decode_threads=1) as service:
            drawn = asyncio.ensure_future(service.detect(PICTURE, DEFAULTS, draw=PNG))
            others = [asyncio.ensure_future(service.detect(PICTURE, DEFAULTS, draw=PNG)) for _ in range(3)]
            await asyncio.to_thread(drawing_begun.wait, 20)
            await service.detect(PICTURE, DEFAULTS)
            assert not drawn.done()
            may_draw.set()
            assert "draw" in (await drawn).timing_ms
            await asyncio.gather(*others)

    asyncio.run(run())


def test_a_picture_too_wide_for_jpeg_is_the_clients_fault(model_file: Path) -> None:
    wide = encoded(Image.new("RGB", (70_000, 10)))

    async def run() -> None:
        async with served(model_file) as service:
            with pytest.raises(Refusal, match="Ask for PNG"):
                await service.detect(wide, DEFAULTS, draw=JPEG)
            assert (await service.detect(wide, DEFAULTS, draw=PNG)).drawn
            assert metric(service, "fcos_ready") == 1

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_one_pictures_fault_is_its_own(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seven good pictures and a corrupt one; then seven good ones and one on which the model fails."""
    poison = encoded(rectangle_picture(colour="blue"))
    run_session = OnnxRunner.__call__

    def poisoned(runner: OnnxRunner, canvases: np.ndarray, cores: int) -> Heads:
        if (canvases[..., 2].astype(int) - canvases[..., 0] > 100).any():
            raise RuntimeError("this picture is too much")
        return run_session(runner, canvases, cores)

    async def run() -> None:
        async with served(model_file, max_batch=8) as service:
            monkeypatch.setattr(OnnxRunner, "__call__", poisoned)
            held.install(monkeypatch)
            for bad, expected in ((PICTURE[:-60], "corrupt_picture"), (poison, "RuntimeError")):
                held.open.clear()
                held.batches.clear()
                first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
                await until(lambda: held.batches == [1])  # the rest gathers behind it
                tasks = [
                    asyncio.create_task(service.detect(bad if number == 3 else PICTURE, DEFAULTS))
                    for number in range(8)
                ]
                waiting = 8 - (expected == "corrupt_picture")
                await until(lambda: len(service._engine._batcher) == waiting)  # noqa: B023
                held.open.set()
                results = await asyncio.gather(first, *tasks, return_exceptions=True)
                assert [code(result) for result in results] == ["Outcome"] * 4 + [expected] + ["Outcome"] * 4
                assert held.batches[1] == waiting
            assert metric(service, "fcos_batches_failed_total") == 2, "the shared one, and that of the picture alone"

    asyncio.run(run())
    assert "A batch of 8 failed; its pictures are run one by one: this picture is too much" in caplog.text


@pytest.mark.usefixtures("session_thread")
def test_parameters_in_a_shared_batch_give_what_they_give_alone(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [
        DetectQuery(), DetectQuery(max_detections=2), DetectQuery(score_threshold=0), DetectQuery(iou_threshold=0),
        DetectQuery(classes=["green"]), DetectQuery(class_agnostic=True, score_threshold=0.01),
    ]  # fmt: skip

    async def run() -> None:
        async with served(model_file, max_batch=8) as service:
            alone = [await service.detect(PICTURE, query.parameters) for query in queries]
            held.install(monkeypatch)
            first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
            await until(lambda: held.batches == [1])
            tasks = [asyncio.create_task(service.detect(PICTURE, query.parameters)) for query in queries]
            await until(lambda: len(service._engine._batcher) == len(queries))
            held.open.set()
            together = await asyncio.gather(*tasks)
            await first
            assert held.batches == [1, len(queries)]
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one.found.class_ids, other.found.class_ids)
                np.testing.assert_allclose(one.found.boxes, other.found.boxes, atol=1e-3)
                np.testing.assert_allclose(one.found.scores, other.found.scores, atol=1e-5)

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize(("count", "settings"), [(50, {}), (500, {"sessions": 2, "max_batch": 8})])
def test_many_at_a_time_get_what_they_get_one_by_one(model_file: Path, count: int, settings: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    colours = ("red", "green", "blue")
    pictures = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(8, 400, 2))
        left, top = int(random.integers(0, width)), int(random.integers(0, height))
        box = (left, top, min(width, left + width // 2 + 1), min(height, top + height // 2 + 1))
        pictures.append(encoded(rectangle_picture(width, height, box, colours[number % 3])))

    async def run() -> None:
        async with served(model_file, max_queue=count, deadline_s=300, **settings) as service:
            one_by_one = [await service.detect(picture, DEFAULTS) for picture in pictures]
            together = await asyncio.gather(*(service.detect(picture, DEFAULTS) for picture in pictures))
            for one, other in zip(one_by_one, together, strict=True):
                assert one.size == other.size
                np.testing.assert_array_equal(one.found.class_ids, other.found.class_ids)
                np.testing.assert_allclose(one.found.boxes, other.found.boxes, atol=1e-2)
                np.testing.assert_allclose(one.found.scores, other.found.scores, atol=1e-4)

    asyncio.run(run())


def test_where_all_places_are_taken_the_next_is_refused_at_once(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with served(model_file, max_queue=3) as service:
            held.install(monkeypatch)
            tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(3)]
            await until(lambda: metric(service, "fcos_in_flight_pictures") == 3)
            with pytest.raises(Refusal) as caught:
                await service.detect(PICTURE, DEFAULTS)
            assert caught.value.code == "overloaded"
            assert int(caught.value.headers["Retry-After"]) >= 1
            held.open.set()
            await asyncio.gather(*tasks)
            await service.detect(PICTURE, DEFAULTS)
            assert metric(service, "fcos_in_flight_pictures") == 0
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())


def test_decoded_pixels_are_bounded(model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas_pixels = 128 * 160

    async def run() -> None:
        async with served(model_file, max_queue_pixels=3 * canvas_pixels) as service:
            held.install(monkeypatch)
            tasks = []
            for number in range(1, 4):
                tasks.append(asyncio.create_task(service.detect(PICTURE, DEFAULTS)))
                await until(lambda: len(held.batches) + len(service._engine._batcher) == number)  # noqa: B023
            with pytest.raises(Refusal) as caught:
                await service.detect(PICTURE, DEFAULTS)
            assert caught.value.code == "overloaded"
            held.open.set()
            assert len(await asyncio.gather(*tasks)) == 3
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_a_decoded_picture_holds_its_canvas_and_no_more(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = encoded(Image.new("RGB", (2000, 2000)))

    async def run() -> None:
        async with served(model_file) as service:
            held.install(monkeypatch)
            task = asyncio.create_task(service.detect(large, DEFAULTS))
            await until(lambda: len(held.batches) == 1)
            assert metric(service, "fcos_in_flight_pixels") == 160 * 160
            held.open.set()
            await task
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_late_pictures_are_refused_and_never_computed(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with served(model_file, deadline_s=0.05) as service:
            held.install(monkeypatch)
            first = asyncio.create_task(service.detect(PICTURE, DEFAULTS, deadline=math.inf))
            await until(lambda: len(held.batches) == 1)
            with pytest.raises(Refusal) as caught:
                await service.detect(PICTURE, DEFAULTS)
            assert caught.value.code == "deadline_exceeded"
            held.open.set()
            await first
            await service.detect(PICTURE, DEFAULTS, deadline=math.inf)
            assert len(held.batches) == 2
            assert metric(service, "fcos_pictures_dropped_total") == 1

    asyncio.run(run())


def test_one_batch_that_took_longer_than_the_deadline_stops_nothing(model_file: Path) -> None:
    async def run() -> None:
        async with served(model_file, deadline_s=1) as service:
            service._engine.pace.note(0, 100, pictures=1, cores=1, arrived=0)  # the machine was asleep, say
            for _ in range(3):
                assert await service.detect(PICTURE, DEFAULTS)

    asyncio.run(run())


def test_a_pause_of_the_machine_does_not_close_the_service(model_file: Path) -> None:
    async def run() -> None:
        async with served(model_file, deadline_s=5) as service:
            await service.detect(PICTURE, DEFAULTS)
            service._engine.pace.note(0, 3600, pictures=1, cores=1, arrived=0)
            assert all(await asyncio.gather(*(service.detect(PICTURE, DEFAULTS) for _ in range(8))))

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize("how", ["cancelled", "gone"])
def test_two_hundred_that_left_cost_at_most_one_batch(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def run() -> None:
        async with served(model_file, max_queue=300, max_batch=4) as service:
            held.install(monkeypatch)
            left = asyncio.Event()

            async def gone() -> None:
                await left.wait()

            tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS, gone=gone)) for _ in range(200)]
            await until(lambda: sum(held.batches) + len(service._engine._batcher) == 200)
            left.set() if how == "gone" else [task.cancel() for task in tasks]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {
                ClientGone if how == "gone" else asyncio.CancelledError
            }  # fmt: skip
            held.open.set()
            await service.detect(PICTURE, DEFAULTS)
            assert sum(held.batches) - 1 <= 4
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_what_is_left_while_it_is_decoded_never_reaches_the_model(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = HeldDecoder()
    decoder.install(monkeypatch)

    async def run() -> None:
        async with served(model_file) as service:
            task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
            await asyncio.to_thread(decoder.begun.wait, 20)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            decoder.open.set()
            await until(lambda: metric(service, "fcos_pictures_dropped_total") == 1)
            assert metric(service, "fcos_pictures_inferred_total") == 0
            assert metric(service, "fcos_in_flight_pixels") == 0

    asyncio.run(run())


@pytest.mark.parametrize(("settings", "batches"), [({"max_batch": 4}, [4, 2]), ({}, [1] * 6)])
def test_a_worker_decodes_what_fills_a_batch(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], batches: list[int]
) -> None:
    held.open.set()

    async def run() -> None:
        async with served(model_file, decode_threads=1, **settings) as service:
            held.install(monkeypatch)
            await asyncio.gather(*(service.detect(PICTURE, DEFAULTS) for _ in range(6)))
            assert held.batches == batches

    asyncio.run(run())


@pytest.mark.parametrize("last", ["corrupt", "abandoned"])
def test_a_batch_does_not_wait_for_a_picture_that_does_not_come(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    decoder = HeldDecoder()
    held.open.set()

    async def run() -> None:
        async with served(model_file, decode_threads=1, max_batch=4) as service:
            decoder.install(monkeypatch)
            held.install(monkeypatch)
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

    asyncio.run(run())


@pytest.mark.parametrize(("seconds", "batches"), [(0.009, [4]), (0.011, [1, 1, 1, 1])])
def test_on_a_cpu_only_quick_models_have_batches(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, batches: list[int]
) -> None:
    monkeypatch.setattr("app.engine.seconds_per_picture", lambda *_, **__: seconds)
    held = Held()
    held.open.set()

    async def run() -> None:
        async with served(model_file, decode_threads=1, max_batch=0) as service:
            held.install(monkeypatch)
            await asyncio.gather(*(service.detect(PICTURE, DEFAULTS) for _ in range(4)))
            assert held.batches == batches
            assert metric(service, "fcos_largest_batch") == batches[0]

    asyncio.run(run())


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
def test_a_lone_picture_has_all_cores(
    model_file: Path,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    settings: dict[str, int],
    alone: int,
    together: list[int],
) -> None:
    on_four_cores(monkeypatch, seconds)

    async def run() -> None:
        async with served(model_file, **{"threads": 0, "sessions": 0, "decode_threads": 4, **settings}) as service:
            held.install(monkeypatch)
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
                await until(lambda: len(held.cores) + len(service._engine._batcher) == len(tasks))
            held.open.set()
            await asyncio.gather(*tasks)
            assert sorted(held.cores, reverse=True) == together
            await service.detect(PICTURE, DEFAULTS)
            assert held.cores[-1] == 1, "the others have only just left"

            service._engine._crowd_until = 0
            await service.detect(PICTURE, DEFAULTS)
            assert held.cores[-1] == alone

    asyncio.run(run())


def test_a_picture_that_would_be_late_is_refused_at_once(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with served(model_file, deadline_s=60) as service:
            service._engine.pace.batch_s = 0
            service._engine.pace.picture_s = 2
            held.install(monkeypatch)
            first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
            await until(lambda: len(held.batches) == 1)
            with pytest.raises(Refusal) as caught:
                await service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 2.2)  # which would be just enough
            assert (caught.value.code, caught.value.headers) == ("overloaded", {"Retry-After": "2"})
            second = asyncio.create_task(service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 30))
            held.open.set()
            assert all(await asyncio.gather(first, second))

    asyncio.run(run())


def test_answers_that_are_still_to_be_taken_have_places_but_take_no_time(model_file: Path) -> None:
    async def run() -> None:
        async with served(model_file, max_queue=64) as service:
            assert service._engine.pace.picture_s > 0, "known from the warm-up"
            service._engine.pace.picture_s = 1
            service.require_room(perf_counter() + 2, others=63)
            with pytest.raises(Refusal, match="64 requests are being answered, and at most 64 may be"):
                service.require_room(perf_counter() + 2, others=64)

    asyncio.run(run())


def test_a_model_is_kept_until_those_who_began_with_it_have_their_answers(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m.onnx")

    async def run() -> None:
        async with served(model, sessions=2) as service:
            old, close = service._engine, service._engine.close
            closed: list[bool] = []

            def closing() -> None:
                closed.append(True)
                close()

            monkeypatch.setattr(old, "close", closing)
            decoder = HeldDecoder()
            with monkeypatch.context() as slow:
                decoder.install(slow)
                task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
                await asyncio.to_thread(decoder.begun.wait, 20)
            write_model(model, metadata(classes=["crimson", "green", "blue"]).to_json())
            reload = asyncio.create_task(service.reload())
            await until(lambda: service._engine is not old)
            await asyncio.sleep(0.05)
            assert not closed and not reload.done()
            decoder.open.set()
            assert (await task).answer.detections[0].label == "red"
            await reload
            assert closed

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_a_swap_under_load_loses_nothing(tmp_path: Path) -> None:
    """Every answer is right for the model that it names, and the new model answers from some request on."""
    model = write_model(tmp_path / "m.onnx")
    renamed = metadata(classes=["crimson", "green", "blue"]).to_json()
    newer = write_model(tmp_path / "newer.onnx", renamed)

    async def run() -> None:
        async with served(model) as service:
            old, stop = service.model.version, False
            seen: set[tuple[str, str]] = set()

            async def client() -> None:
                while not stop:
                    outcome = await service.detect(PICTURE, DEFAULTS)
                    seen.add((outcome.model.version, outcome.answer.detections[0].label))

            clients = [asyncio.create_task(client()) for _ in range(8)]
            await until(lambda: len(seen) == 1)
            newer.replace(model)
            info = await service.reload()
            assert info.version == service.model.version != old
            await until(lambda: len(seen) == 2)
            stop = True
            await asyncio.gather(*clients)
            assert seen == {(old, "red"), (info.version, "crimson")}
            assert f'version="{info.version}"' in service.metrics.text().decode()
            assert old not in service.metrics.text().decode()

    asyncio.run(run())


def test_a_reload_that_came_meanwhile_waits_or_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")

    async def run() -> None:
        async with served(model) as service:
            first = asyncio.create_task(service.reload())
            second = asyncio.create_task(service.reload(wait=True))
            await asyncio.sleep(0)
            with pytest.raises(Refusal) as caught:
                await service.reload()
            assert caught.value.code == "reload_running"
            await asyncio.gather(first, second)
            assert 'fcos_model_reloads_total{outcome="done"} 2.0' in service.metrics.text().decode()

    asyncio.run(run())


def test_a_service_whose_first_model_failed_is_mended_by_a_reload(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        service = Service.load(Settings(model=model_file, provider="cpu", threads=1))
        with monkeypatch.context() as broken:
            broken.setattr(OnnxRunner, "__call__", lambda *_: 1 / 0)
            await service.warm_up()
        assert service.not_ready is not None
        await service.reload()
        assert await service.detect(PICTURE, DEFAULTS)
        await asyncio.to_thread(service.close)

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_bad_file_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    model = write_model(tmp_path / "m.onnx")

    async def run() -> None:
        async with served(model) as service:
            before = service.model
            if content is None:
                shutil.copy(write_model(tmp_path / "other.onnx", metadata(classes=["one"]).to_json()), model)
            else:
                model.write_bytes(content)
            with pytest.raises(Refusal) as caught:
                await service.reload()
            assert caught.value.code == "model_refused"
            assert before.version in caught.value.message
            outcome = await service.detect(PICTURE, DEFAULTS)
            assert outcome.model == before

    asyncio.run(run())


@pytest.mark.parametrize("name", Heads._fields)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_goes_wrong_says_so(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    """Values that are not finite are never an empty answer."""

    async def run() -> None:
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

    asyncio.run(run())
    assert "not finite" in caplog.text


@pytest.mark.usefixtures("session_thread")
def test_a_session_that_does_not_come_back_is_noticed(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.MOST_WORK_S", 0.0)

    async def run() -> None:
        async with served(model_file, deadline_s=0.1) as service:
            held.install(monkeypatch)
            with pytest.raises(Refusal, match="in time"):
                await service.detect(PICTURE, DEFAULTS)
            await until(lambda: metric(service, "fcos_ready") == 0)
            with pytest.raises(Refusal, match="hangs"):
                await service.require_working()
            held.open.set()
            await until(lambda: metric(service, "fcos_ready") == 1)
            await service.require_working()

    asyncio.run(run())


def test_what_comes_after_its_deadline_is_late_not_too_much(model_file: Path) -> None:
    async def run() -> None:
        async with served(model_file) as service:
            with pytest.raises(Refusal) as caught:
                await service.detect(PICTURE, DEFAULTS, deadline=perf_counter())
            assert caught.value.code == "deadline_exceeded"

    asyncio.run(run())


@pytest.mark.usefixtures("session_thread")
def test_the_queue_that_is_shown_is_all_that_waits(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU it waits undecoded: who decodes a picture runs it, too."""

    async def run() -> None:
        async with served(model_file, max_batch=1, sessions=1, decode_threads=1) as service:
            assert metric(service, "fcos_queue_pictures") == 0
            held.install(monkeypatch)
            tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(6)]
            await until(lambda: metric(service, "fcos_queue_pictures") == 5)
            held.open.set()
            await asyncio.gather(*tasks)
            assert metric(service, "fcos_queue_pictures") == 0

    asyncio.run(run())


def test_a_reload_that_fails_on_the_gpu_says_why_and_nothing_of_the_host(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "Non-zero status\nCUDA failure 2: out of memory ; GPU=0 ; hostname=secret ; file=/onnxruntime_src/x.cc ;"

    async def fail(engine: Engine) -> None:
        raise RuntimeError(words)

    async def run() -> None:
        async with served(model_file) as service:
            monkeypatch.setattr(Engine, "warm_up", fail)
            with pytest.raises(Refusal) as caught:
                await service.reload()
            assert "failed on its first pictures (CUDA failure 2: out of memory). Version" in caught.value.message

    asyncio.run(run())


def test_a_reload_does_not_leave_the_gpu(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `auto` found CUDA, a reload that finds none leaves the old model where it is."""
    monkeypatch.setattr("app.session.why_no_cuda", lambda: "its memory is full")

    async def run() -> None:
        async with served(model_file, provider="auto") as service:
            assert (await service.reload()).provider == CPU
            service._engine.runner = replace(service.runner, provider=CUDA)
            with pytest.raises(Refusal, match="its memory is full"):
                await service.reload()
            assert service.runner.provider == CUDA

    asyncio.run(run())


def test_nothing_of_a_picture_waits_for_the_collector(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in a cycle counts for no bound, and a picture that cannot be decoded may be as large as any."""

    def left() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, (Job, Refusal, Image.Image))]

    async def run() -> None:
        async with served(model_file) as service:
            gc.collect()
            gc.disable()
            before = len(
                left()
            )  # again so in the end: a worker may have a picture in hand for a moment after its answer
            for _ in range(3):
                assert await service.detect(PICTURE, DEFAULTS)
                assert await service.detect(PICTURE, DEFAULTS, draw="image/png")
            await until(lambda: len(left()) == before)
            for data in (PICTURE[:-30], b"no picture", b""):
                with contextlib.suppress(Refusal):
                    await service.detect(data, DEFAULTS)
                with contextlib.suppress(Refusal):
                    await service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 0.0001)
            deadline = perf_counter() + 9
            batch = await detect_each(service, [PICTURE[:-30], PICTURE], DEFAULTS, deadline=deadline, gone=never)
            assert isinstance(batch.results[0], Refused)
            await until(lambda: len(left()) == before)

            held.install(monkeypatch)
            waiting = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(4)]
            await until(lambda: len(held.batches) == 1)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            held.open.set()
            del waiting, task
            held.batches.clear()
            await until(lambda: len(left()) == before)

    try:
        asyncio.run(run())
    finally:
        gc.enable()


async def never() -> None:
    await asyncio.Event().wait()

"""What the service promises of pictures that come too many, come too late or are wanted no more."""

import asyncio
import math
from collections.abc import Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.detect_route import while_connected
from app.errors import Refusal
from app.outcome import Outcome
from tests.held import Held, HeldDecoder
from tests.support import DEFAULTS, PICTURE, metric, served, until

pytestmark = pytest.mark.anyio


async def test_where_all_places_are_taken_the_next_is_refused_at_once(model_file: Path, held: Held) -> None:
    async with served(model_file, max_queue=3) as service:
        held.install()
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


async def test_decoded_pixels_are_bounded(model_file: Path, held: Held) -> None:
    canvas_pixels = 128 * 160
    async with served(model_file, max_queue_pixels=3 * canvas_pixels) as service:
        held.install()
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


async def test_answers_that_are_still_to_be_taken_have_places_but_take_no_time(model_file: Path) -> None:
    async with served(model_file, max_queue=64) as service:
        assert service._engine.pace.picture_s > 0, "known from the warm-up"
        service._engine.pace.picture_s = 1
        service.require_room(perf_counter() + 2, others=63)
        with pytest.raises(Refusal, match="Requests being answered: 64, of at most 64"):
            service.require_room(perf_counter() + 2, others=64)


@pytest.mark.usefixtures("session_thread")
async def test_the_queue_that_is_shown_is_all_that_waits(model_file: Path, held: Held) -> None:
    """On the CPU it waits undecoded: who decodes a picture runs it, too."""
    async with served(model_file, max_batch=1, sessions=1, decode_threads=1) as service:
        assert metric(service, "fcos_queue_pictures") == 0
        held.install()
        tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(6)]
        await until(lambda: metric(service, "fcos_queue_pictures") == 5)
        held.open.set()
        await asyncio.gather(*tasks)
        assert metric(service, "fcos_queue_pictures") == 0


# --- deadlines


@pytest.mark.usefixtures("session_thread")
async def test_late_pictures_are_refused_and_never_computed(model_file: Path, held: Held) -> None:
    async with served(model_file, deadline_s=0.05) as service:
        held.install()
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


@pytest.mark.usefixtures("session_thread")
async def test_a_picture_that_a_run_would_make_late_is_not_computed_while_another_waits(
    model_file: Path, held: Held
) -> None:
    async with served(model_file) as service:
        held.install()
        deadlines = (math.inf, perf_counter() + 60, math.inf)
        tasks = []
        for number, deadline in enumerate(deadlines, 1):
            tasks.append(asyncio.create_task(service.detect(PICTURE, DEFAULTS, deadline=deadline)))
            await until(lambda: len(held.batches) + len(service._engine._batcher) == number)  # noqa: B023
        service._engine.pace.batch_s = 1000
        held.open.set()
        _, late, _ = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(late, Refusal)
        assert late.code == "deadline_exceeded"
        assert held.batches == [1, 1]
        assert metric(service, "fcos_pictures_dropped_total") == 1


async def test_a_picture_that_would_be_late_is_refused_at_once(model_file: Path, held: Held) -> None:
    async with served(model_file, deadline_s=60) as service:
        service._engine.pace.batch_s = 0
        service._engine.pace.picture_s = 1.8
        held.install()
        first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await until(lambda: len(held.batches) == 1)
        with pytest.raises(Refusal) as caught:
            await service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 2)  # which would be just enough
        assert (caught.value.code, caught.value.headers) == ("overloaded", {"Retry-After": "2"})
        second = asyncio.create_task(service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 30))
        held.open.set()
        assert all(await asyncio.gather(first, second))


async def test_what_comes_after_its_deadline_is_late_not_too_much(model_file: Path) -> None:
    async with served(model_file) as service:
        with pytest.raises(Refusal) as caught:
            await service.detect(PICTURE, DEFAULTS, deadline=perf_counter())
        assert caught.value.code == "deadline_exceeded"


async def test_only_room_is_waited_for(model_file: Path) -> None:
    async with served(model_file) as service, asyncio.timeout(20):
        with pytest.raises(Refusal, match="cannot be decoded"):
            await service.detect_in_time(PICTURE[:-60], DEFAULTS, deadline=math.inf)


async def test_one_batch_that_took_longer_than_the_deadline_stops_nothing(model_file: Path) -> None:
    async with served(model_file, deadline_s=1) as service:
        service._engine.pace.note(0, 100, pictures=1, cores=1, arrived=0)  # the machine was asleep, say
        for _ in range(3):
            assert await service.detect(PICTURE, DEFAULTS)


async def test_a_pause_of_the_machine_does_not_close_the_service(model_file: Path) -> None:
    async with served(model_file, deadline_s=5) as service:
        await service.detect(PICTURE, DEFAULTS)
        service._engine.pace.note(0, 3600, pictures=1, cores=1, arrived=0)
        assert all(await asyncio.gather(*(service.detect(PICTURE, DEFAULTS) for _ in range(8))))


# --- clients that leave


@pytest.mark.usefixtures("session_thread")
@pytest.mark.parametrize("how", ["cancelled", "gone"])
async def test_two_hundred_that_left_cost_at_most_one_batch(model_file: Path, held: Held, how: str) -> None:
    async with served(model_file, max_queue=300, max_batch=4) as service:
        held.install()
        left = asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        def ask() -> Coroutine[Any, Any, Outcome]:
            return while_connected(service, receive, service.detect(PICTURE, DEFAULTS))

        tasks = [asyncio.create_task(ask()) for _ in range(200)]
        await until(lambda: sum(held.batches) + len(service._engine._batcher) == 200)
        left.set() if how == "gone" else [task.cancel() for task in tasks]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {ClientDisconnect if how == "gone" else asyncio.CancelledError}
        held.open.set()
        await service.detect(PICTURE, DEFAULTS)
        assert sum(held.batches) - 1 <= 4
        assert metric(service, "fcos_in_flight_pixels") == 0


@pytest.mark.usefixtures("session_thread")
async def test_what_is_left_while_it_is_decoded_never_reaches_the_model(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = HeldDecoder()
    decoder.install(monkeypatch)
    async with served(model_file) as service:
        task = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await asyncio.to_thread(decoder.begun.wait, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        decoder.open.set()
        await until(lambda: metric(service, "fcos_pictures_dropped_total") == 1)
        assert metric(service, "fcos_pictures_inferred_total") == 0
        assert metric(service, "fcos_in_flight_pixels") == 0


async def test_what_is_left_before_it_is_decoded_holds_no_file_and_is_dropped(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that have ended count for no bound."""
    decoder = HeldDecoder()
    decoder.install(monkeypatch)
    async with served(model_file, decode_threads=1) as service:
        tasks = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(2)]
        await asyncio.to_thread(decoder.begun.wait, 20)
        tasks[1].cancel()
        await asyncio.wait(tasks[1:])
        assert [job.data for job in service._engine._arrived] == [b""]
        decoder.open.set()
        await tasks[0]
        await until(lambda: metric(service, "fcos_pictures_dropped_total") == 1)

"""Nothing of a request waits for the garbage collector: what does counts for no bound, a picture's pixels included."""

import asyncio
import contextlib
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.api import create_app
from app.batch_route import detect_each
from app.batcher import Batcher
from app.detect_route import while_connected
from app.errors import ProviderError, Refusal
from app.job import Job
from app.negotiation import PNG
from app.postprocess import Heads
from app.providers import CPU
from app.record import Record
from app.session import OnnxRunner
from app.settings import Settings
from tests.held import Held
from tests.serving import in_thread
from tests.support import DEFAULTS, PICTURE, encoded, rectangle_picture, served, until

pytestmark = pytest.mark.anyio

TRUNCATED = PICTURE[:-30]
run_session = OnnxRunner.__call__


@contextmanager
def running(model: Path) -> Generator[httpx.Client]:
    settings = Settings(model=model, provider="cpu", max_upload_bytes=100_000)
    with in_thread(create_app(settings)) as (host, port), httpx.Client(base_url=f"http://{host}:{port}") as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


@pytest.fixture(autouse=True)
def collector_is_back() -> Iterator[None]:
    """These tests turn it off."""
    yield
    gc.enable()


def left() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, (Job, Refusal, Record, Image.Image))]


def test_no_request_leaves_anything_for_the_collector(model_file: Path) -> None:
    with running(model_file) as client:

        def post(path: str = "/detect", **options: object) -> Callable[[], int]:
            return lambda: client.post(path, **options).status_code  # type: ignore[arg-type]

        requests = {
            "answered": (200, post(content=PICTURE)),
            "drawn": (200, post("/detect?draw=png", content=PICTURE)),
            "a form": (200, post(files={"image": PICTURE})),
            "several": (200, post("/detect/batch", files=[("images", PICTURE), ("images", TRUNCATED)])),
            "no picture": (415, post(content=bytes(50_000))),
            "damaged": (422, post(content=TRUNCATED)),
            "a parameter": (422, post("/detect?classes=x", content=PICTURE)),
            "too large": (413, post(content=bytes(100_001))),
            "nowhere": (404, post("/nowhere", content=PICTURE)),
        }
        for name, (status, request) in requests.items():
            request()
            gc.collect()
            before = len(left())
            gc.disable()
            try:
                for _ in range(5):
                    assert request() == status, name
                # The last request's record may live as long as its connection. A worker may have a picture in hand for
                # a moment after its answer.
                for _ in range(500):
                    if len(left()) <= before + 1:
                        break
                    time.sleep(0.01)
                assert len(left()) <= before + 1, (name, left())
            finally:
                gc.enable()


def poisoned(runner: OnnxRunner, canvases: np.ndarray, cores: int) -> Heads:
    if (canvases[..., 2].astype(int) - canvases[..., 0] > 100).any():
        raise RuntimeError("this picture is too much")
    return run_session(runner, canvases, cores)


@pytest.mark.usefixtures("session_thread")
async def test_a_failure_of_the_model_leaves_neither_pictures_nor_the_model_for_the_collector(
    model_file: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A drawing may have any size, and a model that filled the GPU must be gone for the next one to find room."""
    poison = encoded(rectangle_picture(colour="blue"))
    caplog.set_level(logging.CRITICAL, "app.engine")  # pytest keeps what is logged, and the frames with it
    async with served(model_file, max_batch=4) as service:
        monkeypatch.setattr(OnnxRunner, "__call__", poisoned)
        held.install()
        gc.collect()
        gc.disable()
        before, engine = len(left()), weakref.ref(service._engine)
        first = asyncio.create_task(service.detect(PICTURE, DEFAULTS))
        await until(lambda: held.batches == [1])
        tasks = [asyncio.create_task(service.detect(data, DEFAULTS, draw=PNG)) for data in (PICTURE, poison)]
        await until(lambda: len(service._engine._batcher) == 2)
        held.open.set()
        await first
        assert (await tasks[0]).drawn
        with pytest.raises(RuntimeError, match="too much") as failure:
            await tasks[1]
        assert "in poisoned" in failure.value.__notes__[0], "where it came from"
        del failure, first, tasks
        await service.reload()
        await until(lambda: len(left()) <= before and engine() is None)


@pytest.mark.usefixtures("session_thread")
async def test_a_reload_does_not_go_through_all_objects_for_the_model_before(model_file: Path) -> None:
    """Which takes 0.1 s, in which nobody is answered; and that model is freed without it."""
    async with served(model_file) as service:
        gc.collect()
        gc.disable()
        collections = gc.get_stats()[-1]["collections"]
        assert await service.detect(PICTURE, DEFAULTS)
        with contextlib.suppress(Refusal):
            await service.detect(TRUNCATED, DEFAULTS)
        before = weakref.ref(service._engine)
        await service.reload()
        await until(lambda: before() is None)
        assert gc.get_stats()[-1]["collections"] == collections


@pytest.mark.usefixtures("session_thread")
async def test_a_model_that_fails_while_it_warms_up_leaves_nothing_for_the_collector(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the GPU's memory, which it may have filled, would lack room for the next attempt."""
    opened: list[weakref.ref[OnnxRunner]] = []

    def fail(runner: OnnxRunner, _: int) -> None:
        opened.append(weakref.ref(runner))
        raise ProviderError("its memory is full")

    async with served(model_file) as service:
        monkeypatch.setattr(OnnxRunner, "warm_up", fail)
        monkeypatch.setattr("app.service.log.disabled", True)  # pytest keeps what is logged
        gc.collect()
        gc.disable()
        with pytest.raises(Refusal, match="its memory is full"):
            await service.reload()
        await until(lambda: opened[0]() is None)


async def test_nothing_of_a_picture_waits_for_the_collector(model_file: Path, held: Held) -> None:
    """What is in a cycle counts for no bound, and a picture that cannot be decoded may be as large as any."""
    async with served(model_file, deadline_s=300) as service:
        gc.collect()
        gc.disable()
        # Again so in the end: a worker may have a picture in hand for a moment after its answer.
        before = len(left())
        for _ in range(3):
            assert await service.detect(PICTURE, DEFAULTS)
            assert await while_connected(service, never, service.detect(PICTURE, DEFAULTS, draw="image/png"))
        await until(lambda: len(left()) <= before)
        for data in (PICTURE[:-30], b"no picture", b""):
            with contextlib.suppress(Refusal):
                await service.detect(data, DEFAULTS)
            with contextlib.suppress(Refusal):
                await service.detect(PICTURE, DEFAULTS, deadline=perf_counter() + 0.0001)
        answering = detect_each(service, [PICTURE[:-30], PICTURE], DEFAULTS, perf_counter() + 9)
        batch = await while_connected(service, never, answering)
        assert b'"problem"' in batch
        await until(lambda: len(left()) <= before)

        held.install()
        waiting = [asyncio.create_task(service.detect(PICTURE, DEFAULTS)) for _ in range(4)]
        await until(lambda: len(held.batches) == 1)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        held.open.set()
        del waiting, task
        held.batches.clear()
        await until(lambda: len(left()) <= before)


async def test_an_answer_that_comes_before_its_worker_is_done_queueing_leaves_nothing_for_the_collector(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, answered = Batcher.put, threading.Event()

    def slow(*arguments: Any) -> Any:
        queued = put(*arguments)
        answered.wait(20)
        return queued

    monkeypatch.setattr("app.engine.OWN_THREAD", frozenset({CPU}))
    monkeypatch.setattr(Batcher, "put", slow)
    async with served(model_file) as service:
        gc.collect()
        gc.disable()
        before = len(left())
        assert await service.detect(PICTURE, DEFAULTS)
        answered.set()
        await until(lambda: len(left()) <= before)


class Sent(bytes):
    """A picture that the collector knows of."""


async def test_nothing_of_a_batch_whose_client_has_left_waits_for_the_collector(model_file: Path, held: Held) -> None:
    async def leave() -> Message:
        return {"type": "http.disconnect"}

    async with served(model_file) as service:
        held.install()
        gc.disable()
        with pytest.raises(ClientDisconnect):
            await while_connected(
                service, leave, detect_each(service, [Sent(PICTURE), Sent(PICTURE)], DEFAULTS, perf_counter() + 9)
            )
        await until(lambda: not any(type(one) is Sent for one in gc.get_objects()))
        held.open.set()


async def never() -> Message:
    return await asyncio.get_running_loop().create_future()

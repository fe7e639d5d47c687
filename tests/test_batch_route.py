import asyncio
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.api import create_app
from app.batch_route import detect_each
from app.detect_route import while_connected
from app.detector import Detector
from app.schemas import BatchAnswer
from app.settings import Settings
from app.timers import Timers
from app.uploads import MOST_PICTURES
from tests.support import DEFAULTS, encoded, problem, ready, rectangle_picture, value_of

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def client(model_file: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model=model_file, provider="cpu", threads=1))) as client:
        yield ready(client)


def form(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{number}.png", data)) for number, data in enumerate(pictures)]


def test_each_picture_gets_in_order_what_it_gets_alone(client: TestClient) -> None:
    pictures = [encoded(rectangle_picture(colour=COLOURS[number % 3])) for number in range(MOST_PICTURES)]
    query = {"score_threshold": 0.4, "max_detections": 3}
    response = client.post("/detect/batch", params=query, files=form(*pictures))
    assert response.status_code == 200, response.text
    alone = {data: client.post("/detect", params=query, content=data).json() for data in set(pictures)}
    assert BatchAnswer.model_validate_json(response.content, extra="forbid"), "as /openapi.json says"
    results = response.json()["results"]
    assert len(results) == len(pictures)
    for data, result in zip(pictures, results, strict=True):
        assert result["detections"] == alone[data]["detections"]
        assert set(result) == set(alone[data])


def test_a_batch_waits_for_room_as_long_as_there_is_time(model_file: Path) -> None:
    settings = Settings(model=model_file, provider="cpu", threads=1, max_queue=2, max_queue_pixels=1)
    with TestClient(create_app(settings)) as client:
        results = ready(client).post("/detect/batch", files=form(*[encoded(rectangle_picture())] * 8)).json()["results"]
    assert all(result.get("detections") for result in results)
    assert len(results) == 8


def test_a_form_that_breaks_off_is_refused_whole(client: TestClient) -> None:
    request = client.build_request("POST", "/detect/batch", files=form(*[encoded(rectangle_picture())] * 2))
    headers, whole = {"Content-Type": request.headers["content-type"]}, request.read()
    for missing in (80, 4):  # in the second picture; the end of the closing boundary
        response = client.post("/detect/batch", content=whole[:-missing], headers=headers)
        assert "closing boundary" in problem(response, 400, "malformed_request")
    assert client.post("/detect/batch", content=whole[:-2], headers=headers).status_code == 200  # but a line's end


@pytest.mark.parametrize("names", [("images[]", "images[]"), ("images[0]", "images[10]")])
def test_fields_are_repeated_as_axios_and_php_do_it(client: TestClient, names: tuple[str, str]) -> None:
    pictures = encoded(rectangle_picture(80, 60)), encoded(rectangle_picture(60, 80))
    files = [(name, ("a.png", picture)) for name, picture in zip(names, pictures, strict=True)]
    results = client.post("/detect/batch", files=files).json()["results"]
    assert [result["image"]["width"] for result in results] == [80, 60]


def test_one_pictures_fault_is_its_own(client: TestClient) -> None:
    def refused() -> float:
        return value_of(client.get("/metrics").text, 'fcos_refusals_total{reason="empty_body"}')

    good, before = encoded(rectangle_picture()), refused()
    results = client.post("/detect/batch", files=form(good, b"no picture", b"", good)).json()["results"]
    assert [result.get("problem", {}).get("code") for result in results] == [None, "not_a_picture", "empty_body", None]
    assert results[0]["detections"] == results[3]["detections"]
    assert set(results[1]) == {"problem"}
    assert refused() == before + 1


def test_a_failure_of_ours_is_one_pictures_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, calls = Detector.finish, itertools.count()

    def fail_once(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise FloatingPointError("the model gave values that are not finite")
        return finish(*arguments)

    monkeypatch.setattr(Detector, "finish", fail_once)
    results = client.post("/detect/batch", files=form(*[encoded(rectangle_picture())] * 3)).json()["results"]
    assert sorted(result.get("problem", {}).get("code", "") for result in results) == ["", "", "internal_error"]


@pytest.mark.parametrize(
    ("request_", "status", "code", "hint"),
    [
        ({}, 415, "unsupported_media_type", "-F images=@a.jpg"),
        ({"content": b"x", "headers": {"Content-Type": "image/png"}}, 415, "unsupported_media_type", "image/png"),
        ({"files": form(*[b"x"] * (MOST_PICTURES + 1))}, 400, "malformed_request", f"is {MOST_PICTURES}"),
        ({"files": [("image", ("a.png", b"x"))]}, 400, "malformed_request", "only `images`"),
        ({"files": [("images[a]", ("a.png", b"x"))]}, 400, "malformed_request", "only `images`"),
        ({"files": [("images", (None, "text"))]}, 400, "malformed_request", "@"),
        ({"files": form(b"x"), "params": {"classes": "rad"}}, 422, "unknown_class", "red"),
        ({"files": form(b"x"), "params": {"draw": "png"}}, 422, "invalid_parameter", "draw is not a parameter"),
        ({"files": form(b"x"), "params": {"Classes": "red"}}, 422, "invalid_parameter", "It takes score_threshold"),
    ],
)
def test_bad_batches_are_problems(
    client: TestClient, request_: dict[str, Any], status: int, code: str, hint: str
) -> None:
    assert hint in problem(client.post("/detect/batch", **request_), status, code)


@pytest.mark.anyio
async def test_what_nobody_waits_for_any_more_is_dropped() -> None:
    dropped = []

    class Slow:
        settings, timers = Settings(), Timers()

        async def detect_in_time(self, data: bytes, *_: object, **__: object) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                dropped.append(data)
                raise

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    service: Any = Slow()
    with pytest.raises(ClientDisconnect):
        await while_connected(service, leave, detect_each(service, [b"a", b"b"], DEFAULTS, math.inf))
    await asyncio.sleep(0.01)
    assert sorted(dropped) == [b"a", b"b"]  # here: the end of the loop would cancel them anyway


@pytest.mark.anyio
async def test_a_failure_for_want_of_time_is_no_client_that_has_left() -> None:
    async def fail() -> None:
        raise TimeoutError("of the disk")

    async def stay() -> Message:
        return await asyncio.get_running_loop().create_future()

    service: Any = SimpleNamespace(timers=Timers())
    with pytest.raises(TimeoutError, match="of the disk"):
        await while_connected(service, stay, fail())

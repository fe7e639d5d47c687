"""What the Python client sends, when it sends it again, and how long it waits."""

import asyncio
import contextlib
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from app.client import AsyncClient, Client, ServiceProblem
from app.detect_route import picture_query
from app.schemas import DetectQuery
from tests.serving import free_port
from tests.support import PICTURE

pytestmark = pytest.mark.anyio

ANSWER = {"detections": [], "image": {"width": 1, "height": 1}, "model": {}, "timing_ms": {}}


class Scripted(httpx.MockTransport):
    """Has one outcome after the other, and keeps what was sent."""

    def __init__(self, *outcomes: httpx.Response | httpx.TransportError) -> None:
        self.sent: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        left = iter(outcomes)

        def answer(request: httpx.Request) -> httpx.Response:
            # A request is one object for all attempts.
            kept = httpx.Request(request.method, request.url, headers=request.headers, extensions=request.extensions)
            self.sent.append(kept)
            self.bodies.append(request.content)
            outcome = next(left)
            if isinstance(outcome, httpx.TransportError):
                raise outcome
            return outcome

        super().__init__(answer)


def answered() -> httpx.Response:
    return httpx.Response(200, json=ANSWER)


def refused(after_s: str | None) -> httpx.Response:
    headers = {} if after_s is None else {"Retry-After": after_s}
    document = {"status": 503, "code": "overloaded", "detail": "The queue is full."}
    return httpx.Response(503, headers=headers, json=document)


async def no_wait(_: float) -> None:
    """In the place of `asyncio.sleep`."""


def test_a_body_says_what_it_is() -> None:
    results = httpx.Response(200, json={"results": [ANSWER]})
    drawn = httpx.Response(200, headers={"Content-Type": "image/png"})
    transport = Scripted(answered(), drawn, results, httpx.Response(200, json={}))
    with Client(transport=transport) as client:
        client.detect(PICTURE)
        client.draw(PICTURE)
        client.detect_batch([PICTURE])
        client.model()
    detect, draw, batch, model = (request.headers.get("Content-Type", "none") for request in transport.sent)
    assert detect == draw == "application/octet-stream"
    assert batch.startswith("multipart/form-data; boundary=")
    assert model == "none"


async def test_all_that_the_service_takes_can_be_asked_for_and_arrives_under_its_name() -> None:
    values: dict[str, Any] = {
        "score_threshold": 0.1, "iou_threshold": 0.2, "max_detections": 3, "classes": ["cat", "dog"],
        "class_agnostic": True,
    }  # fmt: skip
    assert values.keys() == DetectQuery.model_fields.keys(), "add it to both clients' `detect`, to `_Asked`, and here"
    transport = Scripted(answered(), answered())
    with Client(transport=transport) as client:
        client.detect(PICTURE, **values)

    async with AsyncClient(transport=transport) as client:
        await client.detect(PICTURE, **values)
    for request in transport.sent:
        assert picture_query(request.url.query).model_dump(exclude={"draw"}) == values


def test_a_key_with_its_lines_end_is_sent_without_it() -> None:
    def key_of(api_key: str) -> str | None:
        transport = Scripted(answered())
        with Client(api_key=api_key, transport=transport) as client:
            client.model()
        return transport.sent[0].headers.get("Authorization")

    assert key_of(" correct-horse\n") == "Bearer correct-horse"
    assert key_of("") is None, "as an environment variable that is not set"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["geheim\nwort", "geheimer schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    kind: type[Client] | type[AsyncClient], key: str
) -> None:
    with pytest.raises(ValueError, match="ASCII") as error:
        kind(api_key=key)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("address", ["127.0.0.1:8123", "localhost:8000", ""])
def test_an_address_without_a_scheme_is_told_at_once(kind: type[Client] | type[AsyncClient], address: str) -> None:
    with pytest.raises(ValueError, match=f"address is '{address}': begin it with http://"):
        kind(address)


# --- again


async def test_a_busy_service_is_asked_again_when_it_says() -> None:
    waits: list[float] = []
    transport = Scripted(refused("2"), refused("2"), answered())
    with Client(api_key="k", transport=transport, sleep=waits.append) as client:
        assert client.model() == ANSWER
    assert transport.sent[-1].headers["Authorization"] == "Bearer k"
    assert len(waits) == 2
    assert all(2 <= wait_s <= 3 for wait_s in waits)
    async with AsyncClient(transport=Scripted(refused("0"), refused("0"), answered())) as client:
        assert await client.model() == ANSWER


@pytest.mark.parametrize(("status", "sent"), [(503, 2), (429, 2), (500, 1), (504, 1)])
def test_only_a_service_that_is_busy_is_asked_again(status: int, sent: int) -> None:
    refusal = httpx.Response(status, headers={"Retry-After": "0"}, json={"detail": "Not now."})
    transport = Scripted(refusal, answered())
    with Client(transport=transport) as client, contextlib.suppress(ServiceProblem):
        client.detect(PICTURE)
    assert len(transport.sent) == sent


@pytest.mark.parametrize(
    ("times", "after_s", "waited"), [(4, "1", 3), *((1, text, 0) for text in (None, "soon", "nan", "-1"))]
)
def test_a_service_that_stays_busy_is_a_problem(times: int, after_s: str | None, waited: int) -> None:
    waits: list[float] = []
    transport = Scripted(*(refused(after_s) for _ in range(times)), answered())
    with Client(transport=transport, sleep=waits.append) as client, pytest.raises(ServiceProblem, match="overloaded"):
        client.model()
    assert len(waits) == waited, "not after the last attempt"


def test_a_date_to_come_back_at_is_understood_and_not_waited_for_once_it_has_passed() -> None:
    """The service gives seconds, but a proxy's page for maintenance may give a date."""
    for after_s, least_s, most_s in ((10, 8, 15), (-10, 0, 0)):
        waits: list[float] = []
        at = format_datetime(datetime.now(UTC) + timedelta(seconds=after_s), usegmt=True)
        with Client(transport=Scripted(refused(at), answered()), sleep=waits.append) as client:
            client.model()
        assert len(waits) == 1 and least_s <= waits[0] <= most_s


@pytest.mark.parametrize("after", ["3600", "9e999"])
def test_nobody_waits_for_an_hour(after: str) -> None:
    waits: list[float] = []
    with Client(transport=Scripted(refused(after), answered()), sleep=waits.append) as client:
        client.model()
    assert 30 <= waits[0] <= 45


@pytest.mark.parametrize(
    "form", [bytes, bytearray, memoryview, io.BytesIO], ids=["bytes", "bytearray", "memoryview", "a file"]
)
async def test_a_retry_sends_the_same_bytes(form: Callable[[bytes], Any]) -> None:
    transport = Scripted(refused("0"), answered())
    with Client(transport=transport) as client:
        client.detect(form(PICTURE))
    assert transport.bodies == [PICTURE] * 2

    batch = Scripted(refused("0"), httpx.Response(200, json={"results": [ANSWER]}))
    with Client(transport=batch) as client:
        client.detect_batch([form(PICTURE)])
    assert batch.bodies[0] == batch.bodies[1]
    assert PICTURE in batch.bodies[0]

    transport = Scripted(refused("0"), answered())
    async with AsyncClient(transport=transport) as client:
        await client.detect(form(PICTURE))
    assert transport.bodies == [PICTURE] * 2


BROKEN = [httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError]


@pytest.mark.parametrize("kind", BROKEN)
async def test_what_a_broken_connection_took_is_asked_again(
    kind: type[httpx.TransportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    transport = Scripted(kind("gone"), refused("1"), kind("gone"), answered())
    with Client(transport=transport, sleep=waits.append) as client:
        assert client.detect(PICTURE).detections == ()
    assert transport.bodies == [PICTURE] * 4
    assert len(waits) == 3
    assert all(1 <= wait_s <= 1.5 for wait_s in waits)

    monkeypatch.setattr(asyncio, "sleep", no_wait)
    async with AsyncClient(transport=Scripted(kind("gone"), answered())) as client:
        assert (await client.detect(PICTURE)).detections == ()
        assert (client._places._lacking, client._places._free._value) == (1, 15), "as after a refusal"


@pytest.mark.parametrize("kind", BROKEN)
def test_connections_that_stay_broken_are_an_error(kind: type[httpx.TransportError]) -> None:
    waits: list[float] = []
    with (
        Client("http://there:81", retries=2, transport=Scripted(*[kind("gone")] * 3), sleep=waits.append) as client,
        pytest.raises(kind, match="http://there:81 gave no answer: gone"),
    ):
        client.detect(PICTURE)
    assert len(waits) == 2


async def test_a_service_that_was_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    down = [httpx.ConnectError("refused")] * 2
    with Client(transport=Scripted(answered(), *down, answered()), sleep=waits.append) as client:
        client.detect(PICTURE)
        client.detect(PICTURE)
    assert len(waits) == 2

    monkeypatch.setattr(asyncio, "sleep", no_wait)
    async with AsyncClient(transport=Scripted(answered(), *down, answered())) as client:
        await client.detect(PICTURE)
        await client.detect(PICTURE)


async def test_a_service_that_was_never_there_is_an_error_at_once() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with Client(address, sleep=lambda _: pytest.fail("waits")) as client:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError, match=f"{address} gave no answer: .*refused"):
                client.detect(PICTURE)

    async with AsyncClient(address) as client:
        with pytest.raises(httpx.ConnectError, match=f"{address} gave no answer"):
            await client.detect(PICTURE)
        assert client._places._free._value == 16


# --- until


def test_an_answer_that_takes_too_long_is_not_asked_for_again() -> None:
    transport = Scripted(httpx.ReadTimeout(""))
    with Client(transport=transport) as client, pytest.raises(httpx.ReadTimeout, match="ReadTimeout"):
        client.detect(PICTURE)
    assert len(transport.sent) == 1


def test_a_deadline_is_sent_and_kept() -> None:
    def left_ms(request: httpx.Request) -> int:
        return int(request.headers["X-Deadline-Ms"])

    transport = Scripted(refused("0.05"), httpx.ReadError("gone"), refused("30"))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem, match="overloaded"):
        client.detect(PICTURE, deadline_s=5)
    first, second, third = map(left_ms, transport.sent)
    assert 5000 >= first > 4000
    assert first - 50 >= second > third, "what is left of it"

    for ask in (
        lambda client: client.detect(PICTURE, deadline_s=1e-9),
        lambda client: client.draw(PICTURE, deadline_s=1e-9),
        lambda client: client.detect_batch([PICTURE], deadline_s=1e-9),
    ):
        transport = Scripted(refused("1"))
        with Client(transport=transport) as client, pytest.raises(ServiceProblem):
            ask(client)
        assert left_ms(transport.sent[0]) == 1

        async def ask_too(ask: Callable[[AsyncClient], Any] = ask) -> int:
            transport = Scripted(refused("1"))
            async with AsyncClient(transport=transport) as client:
                with pytest.raises(ServiceProblem):
                    await ask(client)
            return left_ms(transport.sent[0])

        assert asyncio.run(ask_too()) == 1

    transport = Scripted(answered())
    with Client(transport=transport) as client:
        client.detect(PICTURE)
        for deadline_s in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="deadline_s is"):
                client.detect(PICTURE, deadline_s=deadline_s)
    assert "X-Deadline-Ms" not in transport.sent[0].headers


def test_a_service_that_says_nothing_is_not_waited_for_beyond_the_deadline() -> None:
    def asked(timeout_s: Any = 60, **how: Any) -> dict[str, float]:
        transport = Scripted(answered())
        with Client(transport=transport, timeout_s=timeout_s) as client:
            client.detect(PICTURE, **how)
        times: dict[str, float] = transport.sent[0].extensions["timeout"]
        return times

    assert set(asked().values()) == {60}
    assert set(asked(deadline_s=2, timeout_s=1).values()) == {1}
    for timeout_s in (60, None):
        times = asked(deadline_s=2, timeout_s=timeout_s)
        assert set(times) == {"connect", "read", "write", "pool"}
        assert all(2 <= time_s <= 2.6 for time_s in times.values())


# --- at once


async def test_the_asynchronous_client_has_few_requests_at_a_time() -> None:
    running = most = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return httpx.Response(200, json={})

    async with AsyncClient(transport=httpx.MockTransport(answer), at_once=3) as client:
        await asyncio.gather(*(client.model() for _ in range(12)))
    assert most == 3


async def test_a_refused_picture_gets_its_turn_before_new_ones() -> None:
    """A service of four places, asked by sixteen coroutines at a time."""
    running = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal running
        if running == 4:
            problem = {"code": "overloaded", "detail": "Later.", "status": 503}
            return httpx.Response(503, json=problem, headers={"Retry-After": "0.05"})
        running += 1
        await asyncio.sleep(0.01)
        running -= 1
        return httpx.Response(200, json={})

    async with AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await asyncio.gather(*(client.model() for _ in range(300)))
        assert client._places._free._value == 16 - client._places._lacking, "no place is lost"


async def test_places_that_refusals_took_away_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", no_wait)
    answers = [httpx.Response(200, json={}) for _ in range(30)]
    async with AsyncClient(transport=Scripted(refused("1"), refused("1"), *answers), at_once=4) as client:
        places, left = client._places, []
        for _ in answers:
            await client.model()
            left.append(places._free._value)
        assert left[0] == 3, "one place, however often the request was refused"
        assert left[-1] == 4 and places._lacking == 0


async def test_requests_that_are_cancelled_while_they_wait_give_their_places_back() -> None:
    transport = httpx.MockTransport(lambda _: refused("5"))
    async with AsyncClient(transport=transport, at_once=4) as client:
        asked = [asyncio.ensure_future(client.model()) for _ in range(6)]
        await asyncio.sleep(0.1)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
        places = client._places
        assert (places._lacking, places._refused, places._free._value) == (3, 0, 1), "as after any refusals"

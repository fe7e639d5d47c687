import asyncio
import inspect
import io
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

from app.api import create_app
from app.client import Answer, AsyncClient, Client, ServiceProblem
from app.settings import Settings
from tests.support import encoded, rectangle_picture

PICTURE = encoded(rectangle_picture())


@pytest.fixture(scope="module")
def address(model_file: Path) -> Iterator[str]:
    """A real service on a port of its own."""
    app = create_app(Settings(model=model_file, provider="cpu", threads=1))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline_s = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, retries=20, sleep=lambda _: time.sleep(0.02)) as client:
        yield client


def test_bytes_and_paths_are_detected(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    one, other = client.detect(PICTURE), client.detect(path)
    assert one.detections == other.detections == client.detect(str(path)).detections
    assert (one.width, one.height) == (160, 120)
    assert one.detections[0].label == "red"
    left, top, right, bottom = one.detections[0].box.xyxy
    assert 0 <= left < right <= 160
    assert 0 <= top < bottom <= 120


def test_parameters_reach_the_service(client: Client) -> None:
    assert client.detect(PICTURE, classes=["green", "blue"], deadline_s=60).detections == ()
    assert len(client.detect(PICTURE, max_detections=1).detections) == 1
    with pytest.raises(ValueError, match=r"\['green'\]"):
        client.detect(PICTURE, classes="green")
    with pytest.raises(ValueError, match="classes is empty"):
        client.detect(PICTURE, classes=[])


def test_a_batch_holds_answers_and_problems_in_order(client: Client) -> None:
    first, second, third = client.detect_batch([PICTURE, b"nothing", PICTURE], score_threshold=0.5)
    assert isinstance(first, Answer)
    assert isinstance(second, ServiceProblem)
    assert second.code == "not_a_picture"
    assert isinstance(third, Answer)
    assert first.detections == third.detections == client.detect(PICTURE, score_threshold=0.5).detections


def test_the_drawing_and_the_model(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "drawn.jpg"
    path.write_bytes(client.draw(PICTURE, "jpeg"))
    with Image.open(path) as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (160, 120))
    assert client.model()["classes"] == ["red", "green", "blue"]


def test_a_refusal_is_raised_with_its_code(client: Client) -> None:
    with pytest.raises(ServiceProblem) as refused:
        client.detect(PICTURE, classes=["rad"])
    assert (refused.value.code, refused.value.status) == ("unknown_class", 422)
    assert "red" in str(refused.value)
    assert refused.value.document["nearest"] == ["red"]
    assert refused.value.document["type"].endswith("unknown_class")


def test_a_refusal_names_the_request(client: Client) -> None:
    for ask in (client.detect, client.draw, lambda picture, **parameters: client.detect_batch([picture], **parameters)):
        with pytest.raises(ServiceProblem, match="unknown_class, 422, request mine-1") as refused:
            ask(PICTURE, classes=["rad"], request_id="mine-1")
        assert refused.value.request_id == "mine-1"
    (problem,) = client.detect_batch([b"nothing"])
    assert isinstance(problem, ServiceProblem)
    assert problem.request_id, "the service's own"
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem), "a pool of processes hands it on"


def test_a_clients_connections_end_with_its_block() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))

    async def asked() -> None:
        async with AsyncClient(transport=transport) as client:
            assert await client.model() == {}
        with pytest.raises(RuntimeError, match="closed"):
            await client.model()

    with Client(transport=transport) as client:
        assert client.model() == {}
    with pytest.raises(RuntimeError, match="closed"):
        client.model()
    asyncio.run(asked())


def test_an_id_that_would_bury_the_sentence_is_left_out_of_it() -> None:
    headers = {"X-Request-Id": "x" * 1000}
    transport = httpx.MockTransport(lambda _: httpx.Response(502, headers=headers, json={"detail": "no upstream"}))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem) as caught:
        client.model()
    assert str(caught.value) == "no upstream (unknown, 502)"
    assert caught.value.request_id == headers["X-Request-Id"]


@pytest.mark.parametrize("given", ["", "order 17", "é", "a\n", "x" * 65])
def test_an_id_that_the_service_would_replace_is_refused(client: Client, given: str) -> None:
    with pytest.raises(ValueError, match="request_id is"):
        client.detect(PICTURE, request_id=given)


def test_the_asynchronous_client_gives_the_same(client: Client, address: str) -> None:
    async def ask() -> tuple[Answer, list[Answer | ServiceProblem], bytes, dict[str, object]]:
        async with AsyncClient(address) as other:
            return (
                await other.detect(PICTURE), await other.detect_batch([PICTURE]),
                await other.draw(PICTURE), await other.model(),
            )  # fmt: skip

    answer, results, drawn, model = asyncio.run(ask())
    assert answer.detections == client.detect(PICTURE).detections
    assert isinstance(results[0], Answer)
    assert results[0].detections == answer.detections
    assert drawn == client.draw(PICTURE)
    assert model == client.model()


def busy(times: int, headers: dict[str, str]) -> httpx.MockTransport:
    """A service that is busy so many times."""
    left = iter([503] * times)

    def answer(request: httpx.Request) -> httpx.Response:
        if next(left, None):
            document = {"status": 503, "code": "overloaded", "detail": "The queue is full."}
            return httpx.Response(503, headers=headers, json=document)
        return httpx.Response(200, json={"classes": [], "key": request.headers.get("authorization")})

    return httpx.MockTransport(answer)


def test_a_busy_service_is_asked_again_when_it_says() -> None:
    waits: list[float] = []
    with Client(api_key="k", transport=busy(2, {"Retry-After": "2"}), sleep=waits.append) as client:
        assert client.model()["key"] == "Bearer k"
    assert len(waits) == 2
    assert all(2 <= wait_s <= 3 for wait_s in waits)

    async def ask() -> None:
        async with AsyncClient(transport=busy(2, {"Retry-After": "0"})) as client:
            await client.model()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("times", "headers", "waited"),
    [(4, {"Retry-After": "1"}, 3), (1, {}, 0), *((1, {"Retry-After": text}, 0) for text in ("soon", "nan", "-1"))],
)
def test_a_service_that_stays_busy_is_a_problem(times: int, headers: dict[str, str], waited: int) -> None:
    waits: list[float] = []
    with (
        Client(transport=busy(times, headers), sleep=waits.append) as client,
        pytest.raises(ServiceProblem, match="overloaded"),
    ):
        client.model()
    assert len(waits) == waited, "not after the last attempt"


def test_a_date_to_come_back_at_is_understood() -> None:
    """The service gives seconds, but a proxy's page for maintenance may give a date."""
    waits: list[float] = []
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    with Client(transport=busy(1, {"Retry-After": at}), sleep=waits.append) as client:
        client.model()
    assert len(waits) == 1 and 8 <= waits[0] <= 15


def test_a_date_that_has_passed_is_not_waited_for() -> None:
    waits: list[float] = []
    at = format_datetime(datetime.now(UTC) - timedelta(seconds=10), usegmt=True)
    with Client(transport=busy(1, {"Retry-After": at}), sleep=waits.append) as client:
        client.model()
    assert waits == [0]


def test_a_service_that_says_nothing_is_not_waited_for_beyond_the_deadline() -> None:
    def asked(**how: Any) -> dict[str, float]:
        seen: list[dict[str, float]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.extensions["timeout"])
            return answered()

        with Client(transport=httpx.MockTransport(answer), timeout_s=how.pop("timeout_s", 60)) as client:
            client.detect(PICTURE, **how)
        return seen[0]

    assert set(asked().values()) == {60}
    assert set(asked(deadline_s=2, timeout_s=1).values()) == {1}
    for timeout_s in (60, None):
        times = asked(deadline_s=2, timeout_s=timeout_s)
        assert set(times) == {"connect", "read", "write", "pool"}
        assert all(2 <= time_s <= 2.6 for time_s in times.values())


def test_nobody_waits_for_an_hour() -> None:
    waits: list[float] = []
    with Client(transport=busy(1, {"Retry-After": "3600"}), sleep=waits.append) as client:
        client.model()
    assert 30 <= waits[0] <= 45


ANSWER = {"detections": [], "image": {"width": 1, "height": 1}, "model": {}, "timing_ms": {}}


class Scripted(httpx.MockTransport):
    """Has one outcome after the other, and keeps what was sent."""

    def __init__(self, *outcomes: httpx.Response | httpx.TransportError) -> None:
        self.sent: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        left = iter(outcomes)

        def answer(request: httpx.Request) -> httpx.Response:
            # A request is one object for all attempts.
            self.sent.append(httpx.Request(request.method, request.url, headers=request.headers))
            self.bodies.append(request.content)
            outcome = next(left)
            if isinstance(outcome, httpx.TransportError):
                raise outcome
            return outcome

        super().__init__(answer)


def answered() -> httpx.Response:
    return httpx.Response(200, json=ANSWER)


def refused(after_s: str) -> httpx.Response:
    document = {"status": 503, "code": "overloaded", "detail": "The queue is full."}
    return httpx.Response(503, headers={"Retry-After": after_s}, json=document)


async def no_wait(_: float) -> None:
    """In the place of `asyncio.sleep`."""


BROKEN = [httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_broken_connection_took_is_asked_again(
    kind: type[httpx.TransportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    transport = Scripted(kind("gone"), refused("1"), kind("gone"), answered())
    with Client(transport=transport, sleep=waits.append) as client:
        assert client.detect(PICTURE).detections == ()
    assert transport.bodies == [PICTURE] * 4
    assert len(waits) == 3
    assert all(1 <= wait_s <= 1.5 for wait_s in waits)

    async def ask() -> None:
        monkeypatch.setattr(asyncio, "sleep", no_wait)
        async with AsyncClient(transport=Scripted(kind("gone"), answered())) as client:
            assert (await client.detect(PICTURE)).detections == ()
            assert (client._places._lacking, client._places._free._value) == (1, 15), "as after a refusal"

    asyncio.run(ask())


@pytest.mark.parametrize("kind", BROKEN)
def test_connections_that_stay_broken_are_an_error(kind: type[httpx.TransportError]) -> None:
    waits: list[float] = []
    with (
        Client("http://there:81", retries=2, transport=Scripted(*[kind("gone")] * 3), sleep=waits.append) as client,
        pytest.raises(kind, match="http://there:81 gave no answer: gone"),
    ):
        client.detect(PICTURE)
    assert len(waits) == 2


def test_a_service_that_was_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    down = [httpx.ConnectError("refused")] * 2
    with Client(transport=Scripted(answered(), *down, answered()), sleep=waits.append) as client:
        client.detect(PICTURE)
        client.detect(PICTURE)
    assert len(waits) == 2

    async def ask() -> None:
        monkeypatch.setattr(asyncio, "sleep", no_wait)
        async with AsyncClient(transport=Scripted(answered(), *down, answered())) as client:
            await client.detect(PICTURE)
            await client.detect(PICTURE)

    asyncio.run(ask())


def test_a_service_that_was_never_there_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with Client(address, sleep=lambda _: pytest.fail("waits")) as client:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError, match=f"{address} gave no answer: .*refused"):
                client.detect(PICTURE)

    async def ask() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(httpx.ConnectError, match=f"{address} gave no answer"):
                await client.detect(PICTURE)
            assert client._places._free._value == 16

    asyncio.run(ask())


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


@pytest.mark.parametrize(
    "form", [bytes, bytearray, memoryview, io.BytesIO], ids=["bytes", "bytearray", "memoryview", "a file"]
)
def test_a_retry_sends_the_same_bytes(form: Callable[[bytes], Any]) -> None:
    transport = Scripted(refused("0"), answered())
    with Client(transport=transport) as client:
        client.detect(form(PICTURE))
    assert transport.bodies == [PICTURE] * 2

    batch = Scripted(refused("0"), httpx.Response(200, json={"results": [ANSWER]}))
    with Client(transport=batch) as client:
        client.detect_batch([form(PICTURE)])
    assert batch.bodies[0] == batch.bodies[1]
    assert PICTURE in batch.bodies[0]

    async def ask() -> None:
        transport = Scripted(refused("0"), answered())
        async with AsyncClient(transport=transport) as client:
            await client.detect(form(PICTURE))
        assert transport.bodies == [PICTURE] * 2

    asyncio.run(ask())


def test_an_open_file_stays_open(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    with path.open("rb") as file:
        assert client.detect(file).detections == client.detect(path).detections
        assert not file.closed


def test_what_is_no_picture_is_a_type_error(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    with path.open() as text:
        for given in (None, 7, [PICTURE], Image.new("RGB", (1, 1)), io.StringIO("a"), text):
            for ask in (client.detect, client.draw, lambda picture: client.detect_batch([picture])):
                with pytest.raises(TypeError, match=f"opened in binary mode.* a {type(given).__name__}"):
                    ask(given)


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


def test_an_answer_of_something_else_is_a_problem_too() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<h1>Bad gateway</h1>"))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem, match="Bad gateway"):
        client.model()


@pytest.mark.parametrize("document", [{"message": "Request Entity Too Large"}, {"detail": [{"msg": "no"}]}, ["no"]])
def test_another_ones_json_is_not_taken_for_the_services(document: Any) -> None:
    with (
        Client(transport=httpx.MockTransport(lambda _: httpx.Response(413, json=document))) as client,
        pytest.raises(ServiceProblem, match="not the service's") as caught,
    ):
        client.detect(PICTURE)
    assert (caught.value.code, caught.value.status) == ("unknown", 413)


@pytest.mark.parametrize("text", ["<h1>Log in</h1>", '{"hello": 1}', "[1]"])
def test_a_page_in_the_place_of_an_answer_is_a_problem(text: str) -> None:
    with Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=text))) as client:
        for ask in (lambda: client.detect(PICTURE), lambda: client.detect_batch([PICTURE])):
            with pytest.raises(ServiceProblem) as caught:
                ask()
            assert (caught.value.code, caught.value.status) == ("unknown", 200)
            assert text in caught.value.detail


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (lambda client: client.draw(b"picture"), httpx.Response(200, text="<html>log in</html>")),
        (lambda client: client.detect_batch([b"one"]), httpx.Response(200, json={"results": [{"problem": "no"}]})),
        (
            lambda client: client.detect_batch([b"one"]),
            httpx.Response(200, text='{"results": [{"problem": {"status": Infinity}}]}'),
        ),
        (
            lambda client: client.detect(b"one"),
            httpx.Response(502, content=b"<html>", headers={"Content-Type": "text/html; charset=utf-16"}),
        ),
        (
            lambda client: client.model(),
            httpx.Response(503, headers={"Retry-After": "Sun, 99999999999999999999 Nov 2026 10:00:00 GMT"}),
        ),
    ],
)
def test_what_is_no_picture_or_no_answer_is_a_problem(asked: Callable[[Client], Any], answer: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    with (
        Client("http://there", transport=transport) as client,
        pytest.raises(ServiceProblem, match="not the service's"),
    ):
        asked(client)


def test_a_redirect_is_named_with_its_target() -> None:
    moved = httpx.Response(308, headers={"Location": "https://detector.example/detect"})
    with (
        Client(transport=httpx.MockTransport(lambda _: moved)) as client,
        pytest.raises(ServiceProblem, match=r"https://detector\.example/detect"),
    ):
        client.detect(PICTURE)


def test_members_that_are_new_are_passed_over() -> None:
    box = {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "angle": 3}
    found = {"label": "cat", "class_id": 0, "score": 0.5, "box": box, "mask": None}
    size = {"width": 1, "height": 1, "depth": 8}
    answer = Answer.of({"detections": [found], "image": size, "model": {}, "timing_ms": {}, "more": 1})
    assert answer.detections[0].box.xyxy == (0, 0, 1, 1)


def test_the_asynchronous_client_has_few_requests_at_a_time() -> None:
    running = most = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return httpx.Response(200, json={})

    async def ask() -> None:
        async with AsyncClient(transport=httpx.MockTransport(answer), at_once=3) as client:
            await asyncio.gather(*(client.model() for _ in range(12)))

    asyncio.run(ask())
    assert most == 3


def test_a_refused_picture_gets_its_turn_before_new_ones() -> None:
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

    async def ask() -> None:
        async with AsyncClient(transport=httpx.MockTransport(answer)) as client:
            await asyncio.gather(*(client.model() for _ in range(300)))
            assert client._places._free._value == 16 - client._places._lacking, "no place is lost"

    asyncio.run(ask())


def test_requests_that_are_cancelled_while_they_wait_give_their_places_back() -> None:
    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: refused("5"))
        async with AsyncClient(transport=transport, at_once=4) as client:
            asked = [asyncio.ensure_future(client.model()) for _ in range(6)]
            await asyncio.sleep(0.1)
            for one in asked:
                one.cancel()
            await asyncio.wait(asked)
            places = client._places
            assert (places._lacking, places._refused, places._free._value) == (3, 0, 1), "as after any refusals"

    asyncio.run(ask())


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, str]:
        public = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
        return {name: str(inspect.signature(member)) for name, member in public.items()}

    assert signatures(Client) == signatures(AsyncClient)


def test_the_file_works_on_its_own(tmp_path: Path) -> None:
    """Whoever copies it needs httpx only."""
    source = Path(sys.modules[Client.__module__].__file__ or "").read_text()
    (tmp_path / "client.py").write_text(source)
    code = "import client, sys; print({'numpy', 'PIL', 'pydantic', 'fastapi', 'app'} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "none", result.stderr


@pytest.mark.parametrize(
    "picture",
    [PICTURE, bytearray(PICTURE), memoryview(PICTURE), "a.jpg", Path("a.jpg"), io.BytesIO(PICTURE)],
    ids=["bytes", "a bytearray", "a memoryview", "a name", "a path", "a file"],
)
def test_one_picture_is_no_batch(client: Client, picture: Any) -> None:
    with pytest.raises(ValueError, match="takes a list"):
        client.detect_batch(picture)


def test_a_batch_of_nothing_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(ValueError, match="at least one"):
        client.detect_batch([])


def test_a_proxys_own_json_is_a_problem_with_its_status() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, json={"status": "error", "detail": "no upstream"}))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem) as caught:
        client.detect(PICTURE)
    assert (caught.value.status, caught.value.detail) == (502, "no upstream")


def test_a_key_with_its_lines_end_is_sent_without_it() -> None:
    def key_of(api_key: str) -> str | None:
        sent: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            sent.append(request)
            return httpx.Response(404, json={"detail": "no", "code": "not_found"})

        with (
            Client(api_key=api_key, transport=httpx.MockTransport(handle)) as client,
            pytest.raises(ServiceProblem, match="no"),
        ):
            client.model()
        return sent[0].headers.get("Authorization")

    assert key_of(" correct-horse\n") == "Bearer correct-horse"
    assert key_of("") is None, "as an environment variable that is not set"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(kind: type[Client]) -> None:
    with pytest.raises(ValueError, match="ASCII") as error:
        kind(api_key="geheim\nschlüssel")
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("address", ["127.0.0.1:8123", "localhost:8000", ""])
def test_an_address_without_a_scheme_is_told_at_once(kind: type[Client] | type[AsyncClient], address: str) -> None:
    with pytest.raises(ValueError, match=f"address is '{address}': begin it with http://"):
        kind(address)

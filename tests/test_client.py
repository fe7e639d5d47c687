"""What the Python client makes of answers, of refusals, and of what is neither."""

import asyncio
import dataclasses
import inspect
import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.types import Receive, Scope, Send

from app import schemas
from app.api import create_app
from app.client import Answer, AsyncClient, Box, Client, Detection, ServiceProblem
from app.settings import Settings
from tests.serving import in_thread
from tests.support import PICTURE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def address(model_file: Path) -> Iterator[str]:
    """A real service on a port of its own."""
    with in_thread(create_app(Settings(model=model_file, provider="cpu", threads=1))) as (host, port):
        yield f"http://{host}:{port}"


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
        wrong: tuple[Any, ...] = (None, 7, [PICTURE], Image.new("RGB", (1, 1)), io.StringIO("a"), text)
        for given in wrong:
            for ask in (client.detect, client.draw, lambda picture: client.detect_batch([picture])):
                with pytest.raises(TypeError, match=f"opened in binary mode.* a {type(given).__name__}"):
                    ask(given)


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


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, str]:
        public = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
        return {name: str(inspect.signature(member)) for name, member in public.items()}

    assert signatures(Client) == signatures(AsyncClient)
    one, other = (inspect.signature(kind).parameters for kind in (Client, AsyncClient))
    for name in ("address", "api_key", "timeout_s", "retries"):
        assert one[name].default == other[name].default


@pytest.mark.parametrize(("own", "services"), [(Detection, schemas.Detection), (Box, schemas.Box)])
def test_a_detection_has_all_that_the_service_says_of_it(own: Any, services: type[schemas.Answerable]) -> None:
    names = [field.name for field in dataclasses.fields(own)]
    assert names == list(services.model_fields), "`Answer.of` reads them"


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


def test_the_file_works_on_its_own(tmp_path: Path) -> None:
    """Whoever copies it needs httpx only."""
    source = Path(sys.modules[Client.__module__].__file__ or "").read_text()
    (tmp_path / "client.py").write_text(source)
    code = "import client, sys; print({'numpy', 'PIL', 'pydantic', 'fastapi', 'app'} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "none", result.stderr


# --- other processes, other loops


async def tell_port(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the port that a connection comes from."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"port": %d}' % scope["client"][1]})


FORKED = """
import os, sys
from app.client import Client

client = Client(sys.argv[1])
parents = client.model()
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(client.model() == parents)
"""
TWO_LOOPS = """
import asyncio, sys
from app.client import AsyncClient

client = AsyncClient(sys.argv[1], at_once=2)

async def ask():
    return {answer["port"] for answer in await asyncio.gather(*(client.model() for _ in range(6)))}

assert not asyncio.run(ask()) & asyncio.run(ask())
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(FORKED, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")),
        TWO_LOOPS,
    ],
    ids=["a forked process", "another loop"],
)
def test_connections_are_not_shared_with(code: str) -> None:
    """Each process would get answers to the other's pictures, without an error; and a loop's end with it."""
    with in_thread(tell_port, lifespan="off") as (host, port):
        subprocess.run([sys.executable, "-c", code, f"http://{host}:{port}"], cwd=ROOT, check=True, timeout=60)


# --- what is no answer of the service


def test_an_id_that_would_bury_the_sentence_is_left_out_of_it() -> None:
    headers = {"X-Request-Id": "x" * 1000}
    transport = httpx.MockTransport(lambda _: httpx.Response(502, headers=headers, json={"detail": "no upstream"}))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem) as caught:
        client.model()
    assert str(caught.value) == "no upstream (unknown, 502)"
    assert caught.value.request_id == headers["X-Request-Id"]


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


def test_a_proxys_own_json_is_a_problem_with_its_status() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, json={"status": "error", "detail": "no upstream"}))
    with Client(transport=transport) as client, pytest.raises(ServiceProblem) as caught:
        client.detect(PICTURE)
    assert (caught.value.status, caught.value.detail) == (502, "no upstream")


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
        *((lambda client: client.model(), httpx.Response(status, text="[" * 100_000)) for status in (200, 502)),
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

"""What a connection costs that sends no request or takes no answer, and whose every byte is read as what it is."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send

from app.connection import HEAD_BYTES, MOST_HEADERS, MOST_PIPELINED, _Line
from tests.serving import in_thread

REQUEST = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 200000\r\n\r\n" + bytes(200_000)
PIECE = b"a" * 20_000
LARGE = 50_000_000  # more than the system keeps for a client that takes nothing


HAS_LEFT = threading.Event()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request, but for /early, and says how large it was and how many headers it had."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/late":
        await asyncio.sleep(0.6)
    elif scope["path"] == "/never":
        await receive()
        HAS_LEFT.set()
        return
    body = bytes(LARGE) if scope["path"] == "/large" else b"%d, %d headers" % (size, len(scope["headers"]))
    if scope["path"] == "/asked":
        body = f"{scope['method']} {scope['query_string'].decode()} in {scope['http_version']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with in_thread(answer, lifespan="off", timeout_keep_alive=1) as address:
        yield address


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[socket.socket]:
    HAS_LEFT.clear()
    with socket.create_connection(address, timeout=20) as connection:
        yield connection


def more_from(client: socket.socket) -> bytes:
    """Raises: AssertionError: The connection has ended."""
    received = client.recv(65536)
    assert received, "the connection has ended"
    return received


def answer_to(client: socket.socket) -> bytes:
    """Returns: An answer of `app`, in however many parts it comes: without uvloop, as on Windows, in two."""
    received = more_from(client)
    while not received.endswith(b" headers"):
        received += more_from(client)
    return received


def test_an_answers_head_goes_out_with_its_body_but_does_not_wait_for_one() -> None:
    class Transport:
        closed = False

        def write(self, data: bytes) -> None:
            assert not self.closed
            written.append(data)

        def writelines(self, parts: list[bytes]) -> None:
            self.write(b"".join(parts))

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    async def answer_three() -> None:
        connection = Mock(loop=asyncio.get_running_loop(), is_receiving=False)
        transport: Any = Transport()
        line = _Line(transport, connection)
        line.write(b"head ")
        line.write(b"body")
        assert written == [b"head body"]
        line.write(b"alone")
        await asyncio.sleep(0)
        assert written == [b"head body", b"alone"]
        line.write(b"last")
        line.close()
        line.write(b"never")
        await asyncio.sleep(0)

    written: list[bytes] = []
    asyncio.run(answer_three())
    assert written == [b"head body", b"alone", b"last"]


def test_requests_pass_on_one_connection_pipelined_or_not(client: socket.socket) -> None:
    client.sendall(REQUEST * 2)
    received = b""
    while received.count(b"200000") < 2:
        received += more_from(client)
    client.sendall(REQUEST)
    assert b"200000" in answer_to(client)


@pytest.mark.parametrize("way", [b"connection: close", b"transfer-encoding: chunked\r\nconnection: close"])
def test_who_is_answered_early_and_cut_off_can_send_all_and_has_the_answer(client: socket.socket, way: bytes) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    large = bytes(2_000_000)
    chunked = b"%x\r\n" % len(large)
    length = b"" if b"chunked" in way else b"content-length: %d\r\n" % len(large)
    client.sendall(b"POST /early HTTP/1.1\r\nhost: here\r\n" + length + way + b"\r\n\r\n")
    client.sendall((chunked if b"chunked" in way else b"") + large)
    time.sleep(0.1)
    received = b""
    while part := client.recv(65536):
        received += part
    assert received.endswith(b"0, 3 headers")


def test_who_offers_a_body_that_is_not_wanted_may_send_it_or_not_but_nothing_else(client: socket.socket) -> None:
    body = b"GET /hidden HTTP/1.1\r\nhost: here\r\n\r\n"
    offer = b"POST /early HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    client.sendall(offer + body)
    assert b"connection: close" not in answer_to(client), "the body had come"
    client.sendall(offer.replace(b"/early", b"/"))
    assert more_from(client).startswith(b"HTTP/1.1 100 ")
    client.sendall(body)
    assert b"connection: close" not in answer_to(client), "the body was asked for"
    client.sendall(offer)
    assert b"connection: close" in answer_to(client)
    client.sendall(body + REQUEST)
    assert client.recv(65536) == b"", "the connection should have ended"


def test_who_is_answered_early_and_goes_on_sending_is_cut_off_some_time(
    client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.connection.LINGER_S", 0.3)
    client.sendall(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n")
    begun = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() < begun + 10:
            client.sendall(PIECE)
            time.sleep(0.02)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("first", [1, 60, 100, 70_000], ids=lambda count: f"{count} bytes first")
def test_an_offer_of_another_protocol_is_passed_over_and_the_body_read(
    client: socket.socket, protocol: bytes, first: int
) -> None:
    offer = REQUEST.replace(b"host:", b"connection: Upgrade, HTTP2-Settings\r\nupgrade: " + protocol + b"\r\nhost:")
    for part in (offer[:first], offer[first:] + offer + REQUEST):
        client.sendall(part)
        time.sleep(0.05)
    received = b""
    while received.count(b"200000") < 3:
        received += more_from(client)
    assert received.count(b"HTTP/1.1 200") == 3


def test_a_body_behind_such_an_offer_is_never_a_request(client: socket.socket) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nhost: here\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
    client.sendall(head % len(hidden))
    time.sleep(0.05)
    client.sendall(hidden + b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
    received = b""
    while data := client.recv(65536):
        received += data
    assert [answer.split(b"\r\n\r\n")[-1] for answer in received.split(b"HTTP/1.1 200")[1:]] == [
        b"%d, 3 headers" % len(hidden),
        b"0, 2 headers",
    ]


def test_a_request_with_such_an_offer_is_what_it_would_be_without(client: socket.socket) -> None:
    client.sendall(b"PUT /asked?for=this HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n")
    received = b""
    while data := client.recv(65536):
        received += data
    assert received.endswith(b"PUT for=this in 1.1")


def test_connect_is_a_method_as_any_other(client: socket.socket) -> None:
    """To httptools it always offers another protocol, so that it could be parsed again and again."""
    client.settimeout(5)
    client.sendall(b"CONNECT / HTTP/1.1\r\nhost: here\r\n\r\n")
    assert b" 200 " in answer_to(client)
    client.sendall(REQUEST)
    assert b"200000" in answer_to(client)


def test_many_such_offers_at_once_are_no_matter(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * MOST_PIPELINED)
    received = b""
    while received.count(b"HTTP/1.1 200") < MOST_PIPELINED:
        received += more_from(client)


def test_countless_requests_before_their_turn_end_the_connection(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.sendall(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n" * 10_000)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200") <= 10 * MOST_PIPELINED


@pytest.mark.parametrize("between", [b"", b"\r\nx: "], ids=["one header", "many"])
def test_a_head_without_end_is_cut_off(client: socket.socket, between: bytes) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nx: ")
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 100 * HEAD_BYTES:
            client.sendall(PIECE + between)
            sent += len(PIECE)
            time.sleep(0.001)
    assert sent < 100 * HEAD_BYTES


def test_it_says_why(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nx: ")
    time.sleep(0.1)
    client.sendall(b"a" * (HEAD_BYTES + 1))
    assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_no_other_requests_answer_says_so(client: socket.socket) -> None:
    client.sendall(b"GET /late HTTP/1.1\r\nhost: here\r\n\r\nGET / HTTP/1.1\r\nx: ")
    time.sleep(0.1)
    client.sendall(b"a" * (HEAD_BYTES + 1))
    assert client.recv(65536) == b""


def test_countless_short_headers_are_cut_off_before_their_head_ends(client: socket.socket) -> None:
    """9,000 in 63 KB took 1.2 MB, on each of as many connections as somebody opens."""
    client.sendall(b"GET / HTTP/1.1\r\n" + b"ab:cd\r\n" * MOST_HEADERS + b"\r\n")
    assert answer_to(client).endswith(b"%d headers" % MOST_HEADERS)
    client.sendall(b"GET / HTTP/1.1\r\n" + b"ab:cd\r\n" * (MOST_HEADERS + 2))  # the last is known once it has ended
    assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_body_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr("app.connection.HEAD_S", 0.2)
    client: socket.socket = request.getfixturevalue("client")
    client.sendall(REQUEST[:1000])
    time.sleep(0.5)
    client.sendall(REQUEST[1000:])
    assert b"200000" in client.recv(65536)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: he"], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, sent: bytes
) -> None:
    monkeypatch.setattr("app.connection.HEAD_S", 0.2)
    client: socket.socket = request.getfixturevalue("client")
    client.sendall(sent)
    assert client.recv(1) == b""


@pytest.mark.parametrize("requests", [0, 1])
def test_a_head_that_comes_byte_by_byte_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, requests: int
) -> None:
    monkeypatch.setattr("app.connection.HEAD_S", 0.3)
    client: socket.socket = request.getfixturevalue("client")
    for _ in range(requests):
        client.sendall(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        assert b" 200 " in answer_to(client)
    begun_s = time.monotonic()
    with pytest.raises(ConnectionError):
        for byte in b"GET / HTTP/1.1\r\nx: " + b"a" * 100:
            client.sendall(bytes([byte]))
            time.sleep(0.05)
    assert time.monotonic() < begun_s + 2


def large_from(client: socket.socket, idle_s: float = 0) -> int:
    """Returns: How many bytes of a large answer came, to a client that was idle once it had seen the first."""
    client.sendall(b"GET /large HTTP/1.1\r\nhost: here\r\n\r\n")
    received = len(more_from(client))
    time.sleep(idle_s)
    with contextlib.suppress(ConnectionResetError):
        while received < LARGE and (data := client.recv(2**20)):
            received += len(data)
    return received


def test_an_answer_that_is_not_taken_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.connection.SEND_S", 1.0)
    with in_thread(answer, lifespan="off") as address, socket.create_connection(address, timeout=20) as client:
        assert large_from(client) >= LARGE
        time.sleep(1.2)  # what was taken is forgotten
        assert large_from(client, idle_s=2.0) < LARGE


CHUNKED = b"POST /early HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


def test_a_body_in_countless_pieces_is_cut_off(client: socket.socket) -> None:
    client.sendall(CHUNKED.replace(b"/early", b"/") + b"1\r\na\r\n" * 40_000)
    assert b" 400 " in client.recv(65536)


@pytest.mark.parametrize("size", [1, 100])
def test_a_body_may_come_in_small_pieces(client: socket.socket, size: int) -> None:
    client.sendall(CHUNKED.replace(b"/early", b"/"))
    count = 100_000 // size if size > 1 else 250  # all in one read
    client.sendall((b"%x\r\n" % size + bytes(size) + b"\r\n") * count + b"0\r\n\r\n")
    assert b"\r\n\r\n%d, " % (size * count) in answer_to(client)


def test_trailers_are_no_headers(client: socket.socket) -> None:
    client.sendall(CHUNKED.replace(b"/early", b"/") + b"1\r\na\r\n0\r\nx-api-key: mine\r\n\r\n")
    assert b"1, 2 headers" in client.recv(65536)


@pytest.mark.parametrize("trailer", [b"x-a: b\r\n" * 2000, b"a" * 20_000], ids=["many", "one"])
def test_trailers_without_end_are_cut_off(client: socket.socket, trailer: bytes) -> None:
    client.sendall(CHUNKED + b"0\r\nx: ")
    assert b" 200 " in client.recv(65536)
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 100 * HEAD_BYTES:
            client.sendall(trailer)
            sent += len(trailer)
            time.sleep(0.001)
    assert sent < 100 * HEAD_BYTES


@pytest.mark.parametrize(
    ("asked", "after"),
    [
        (b"GET / HTTP/1.1\r\nhost: here\r\n\r\n", b"\r\n"),
        (b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n", b"a"),
        (b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n", b"ab"),
        (CHUNKED, b"5;a"),
        (CHUNKED, b"0\r\nx: "),
    ],
    ids=["a blank line", "a part of the body", "the body", "half a chunk", "half a trailer"],
)
def test_what_comes_after_an_answer_does_not_keep_the_connection(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, asked: bytes, after: bytes
) -> None:
    monkeypatch.setattr("app.connection.REST_S", 1.0)
    client: socket.socket = request.getfixturevalue("client")
    client.sendall(asked)
    assert b" 200 " in answer_to(client)
    client.sendall(after)
    client.settimeout(3)
    assert client.recv(1) == b""


def test_blank_lines_do_not_keep_the_connection(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    assert b" 200 " in client.recv(65536)
    begun_s = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() < begun_s + 10:
            client.sendall(b"\r\n")
            time.sleep(0.3)
    assert time.monotonic() < begun_s + 3


def test_a_body_may_follow_an_answer_and_a_request_that_body(client: socket.socket) -> None:
    client.sendall(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 200\r\n\r\n")
    assert b" 200 " in client.recv(65536)
    for _ in range(4):
        client.sendall(bytes(50))
        time.sleep(0.4)
    client.sendall(REQUEST)
    assert b"200000" in answer_to(client)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_time_for_a_head_ends_no_answer_under_way(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, before: int
) -> None:
    monkeypatch.setattr("app.connection.HEAD_S", 0.2)
    client: socket.socket = request.getfixturevalue("client")
    get = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
    client.sendall(get * before + get.replace(b"/ ", b"/late ") + get[:-10])
    received = b""
    while received.count(b" 200 ") < before + 1:
        received += more_from(client)


def test_that_a_client_has_left_is_known_also_where_it_had_sent_a_further_request(client: socket.socket) -> None:
    client.sendall(b"GET /never HTTP/1.1\r\nhost: here\r\n\r\nGET / HTTP/1.1\r\nhost: here\r\n\r\n")
    time.sleep(0.2)
    assert not HAS_LEFT.is_set()
    client.close()
    assert HAS_LEFT.wait(5)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (CHUNKED + b"zz\r\n", b""),
        (b"GET /late HTTP/1.1\r\n\r\n" * 2 + CHUNKED + b"zz\r\n", b""),
        (b"GET / HTTP/1.1\r\nx: ", b"a" * (HEAD_BYTES + 2000) + b"\0"),
    ],
    ids=["answered", "waiting", "in a head that is too large as well"],
)
def test_what_cannot_be_read_amid_a_request_is_refused_once(
    client: socket.socket, caplog: pytest.LogCaptureFixture, first: bytes, then: bytes
) -> None:
    client.sendall(first)
    if then:
        time.sleep(0.1)
        client.sendall(then)
    received = b""
    while piece := client.recv(65536):
        received += piece
    if b"/late" in first:
        time.sleep(1.5)  # what was asked before would be answered by now
    assert received.count(b"HTTP/1.1 4") == received.count(b"HTTP/1.1 ") == 1
    assert not [line for line in caplog.records if line.exc_info]


def test_who_sends_what_cannot_be_read_has_left(client: socket.socket) -> None:
    client.sendall(CHUNKED.replace(b"/early", b"/never") + b"zz\r\n")
    assert b" 400 " in client.recv(65536)
    assert HAS_LEFT.wait(5)


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux can be asked to acknowledge at once")
def test_a_sender_that_awaits_acknowledgements_is_not_kept_waiting(client: socket.socket) -> None:
    half, took_s = bytes(10_000), []
    head = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 20000\r\n\r\n"
    for _ in range(12):
        begun = time.perf_counter()
        client.sendall(head + half)
        client.sendall(half)  # which is held back until the first is acknowledged
        answer_to(client)
        took_s.append(time.perf_counter() - begun)
    assert sorted(took_s)[6] < 0.02

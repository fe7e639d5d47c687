"""A client's connection. uvicorn's bounds what a request's handler reads, but not what comes before or after."""

import asyncio
import socket
import sys
import weakref
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 64 * 2**10
HEAD_S = 10.0
REST_S = 60.0
SEND_S = 60.0
LINGER_S = 30.0
MOST_HEADERS = 200  # of a request; as objects, short ones take twenty times the bytes that were sent
MOST_PIPELINED = 64
# Of a body, in one read: each costs a call, so 256 KiB of chunks of a byte would keep everybody waiting for 0.1 s.
MOST_PIECES = 256
BYTES_PER_PIECE = 64  # one more for each of these
_ACKNOWLEDGE_NOW = getattr(socket, "TCP_QUICKACK", None)  # Linux has it
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Line:
    """A transport that writes the head of an answer and its body together, which uvicorn writes one after the other,
    and that is closed in two steps if its client is still sending.

    Closing a socket with bytes unread resets the connection, and what was written before is lost: a client would see a
    failure in place of its refusal (RFC 9112, 9.6). So first only the way to the client is closed, and what still
    comes from it is ignored, for at most `LINGER_S`.
    """

    def __init__(self, transport: asyncio.Transport, connection: "Connection") -> None:
        self._transport = transport
        self._connection = weakref.proxy(connection)
        self._held: bytes | None = None  # a head, until something follows, or nothing does
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._held = data
            self._connection.loop.call_soon(self._release)
        else:
            held, self._held = self._held, None
            self._transport.writelines([held, data])

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._connection.is_receiving:
            self.end()
            return
        self.lingers = True
        self._release()
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.limit_time(LINGER_S)

    def end(self) -> None:
        """Closes it at once."""
        self._release()
        self._transport.close()


def _closing_unless_continued(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """Returns: The application; if it answers without having asked for a body that its client offers to send, the
    connection ends. Whether the body or the next request would follow, clients do not agree on (RFC 9110, 10.1.1)."""

    async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def sending(message: ASGISendEvent) -> None:
            if cycle.waiting_for_100_continue and cycle.more_body:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, sending)

    return answer


class Connection(HttpToolsProtocol):
    """Ends if a client sends more than `HEAD_BYTES`, plus at most one read, that neither begin a request nor belong to
    a body: an endless head (request line and headers), or trailers. Trailers are ignored: they would count as headers
    of a request that has already been judged by its own.

    While nothing is being answered, it also ends if a head takes longer than `HEAD_S`, or if the rest of a body takes
    longer than `REST_S` after its request was answered. It ends, too, if the client has not taken most of an answer
    after `SEND_S`: the rest lies in memory. The service counts none of this: it is not a request.

    A request of more than `MOST_HEADERS` ends it, too, and so do more than `MOST_PIPELINED` requests sent before their
    turn, and bodies in tiny chunks: see `MOST_PIECES`.

    A client that is refused while it sends gets its answer first; see `_Line`.

    Offers of another protocol are ignored. httptools skips the body of a request that makes one, and would take it for
    the next request, whatever its sender put there: so the request is parsed again without the offer.
    """

    _in_head = False
    _in_body = False  # or among the trailers
    _unused_bytes = 0  # since a request began or ended, or a piece of a body came
    _came_further = False  # in what is being read
    _pieces_left = 0  # that it may have
    _answering: RequestResponseCycle | None = None  # of several that came at once, uvicorn knows only the last
    _offers_upgrade = False
    _parsed: bytes | memoryview = b""  # at the moment
    _anew: tuple[bytes | memoryview, ...] = ()  # what is to be parsed next
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._line = _Line(transport, self)
        self._socket = transport.get_extra_info("socket")
        super().connection_made(self._line)  # type: ignore[arg-type]
        self.limit_time(HEAD_S)

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun to arrive and has not ended."""
        return self._in_head or self._in_body

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is being answered, or waits for its turn."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        self._give_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came_further = False
        self._pieces_left = MOST_PIECES + len(data) // BYTES_PER_PIECE
        kept = self.timeout_keep_alive_task
        waiting: list[bytes | memoryview] = [data]
        while waiting and not self.transport.is_closing():
            self._parsed, self._anew = waiting.pop(0), ()
            super().data_received(self._parsed)  # type: ignore[arg-type]
            waiting = [*self._anew, *waiting]
        if self.transport.is_closing():
            return  # perhaps lingering: nothing may be written any more
        if self.is_receiving and _ACKNOWLEDGE_NOW is not None:
            # A sender may keep the rest until this is acknowledged, as nginx does, which else takes 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, _ACKNOWLEDGE_NOW, 1)
        self._unused_bytes = 0 if self._came_further else self._unused_bytes + len(data)
        if self._unused_bytes > HEAD_BYTES:
            if self._is_idle and self._in_head:
                self.transport.write(_TOO_LARGE)
            self._line.end()
        elif self._is_idle:
            self._wait_for_more(kept)

    def _wait_for_more(self, kept: asyncio.TimerHandle | None = None) -> None:
        """Args: kept: uvicorn's timer for an idle connection before these bytes came: any byte stops it."""
        if self.is_receiving:
            if self._timer is None:
                self.limit_time(HEAD_S if self._in_head else REST_S)
        elif self.cycle is not None and self.timeout_keep_alive_task is None:
            until = kept.when() if kept is not None else self.loop.time() + self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_at(until, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._wait_for_more()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._give_up()

    def _give_up(self) -> None:
        """Lets go of the request that is being answered: nothing can be sent to its client any more."""
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_PIPELINED:  # they wait in memory
            raise ConnectionError  # httptools makes a parser error of it: answered with 400, it ends the connection
        super().on_message_begin()
        self._in_head = self._came_further = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return
        if len(self.headers) >= MOST_HEADERS:
            raise ConnectionError  # as above
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_timer()
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers_upgrade:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came_further = True
        self._pieces_left -= 1
        if self._pieces_left < 0:
            raise ConnectionError  # as above
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._came_further = False, True
        self._stop_timer()
        if not self._offers_upgrade:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        if cycle.waiting_for_100_continue:
            app = _closing_unless_continued(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        offer = sys.exception()
        if not self._offers_upgrade or not isinstance(offer, httptools.HttpParserUpgrade):
            return
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self._anew = (b"".join([*head, b"\r\n"]), memoryview(self._parsed)[offer.args[0] :])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    def shutdown(self) -> None:
        super().shutdown()
        if self._line.lingers or self._is_idle:
            self._line.end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def limit_time(self, seconds: float) -> None:
        """Closes the connection after that time, unless the timer is stopped or set again."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._line.end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

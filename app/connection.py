"""A client's connection. uvicorn's has bounds for what follows a request's headers, but none for these."""

import asyncio
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 2**10
HEAD_S = 10.0
SEND_S = 60.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Ends where a request's head, its first line and its headers, is larger than `HEAD_BYTES`, by at most what was
    read at once, or takes longer than `HEAD_S`. Nothing of it is counted by the service: it was never a request.

    So does one whose client has not taken most of an answer after `SEND_S`: what is not taken lies in memory.

    An offer to go on in another protocol is not taken up. Of a request that makes one httptools passes over the body,
    which would then be taken for the next request, whatever its sender put there: it is parsed anew without the offer.
    """

    _in_head = False
    _offers_upgrade = False
    _parsed: bytes | memoryview = b""  # at the moment
    _anew: tuple[bytes | memoryview, ...] = ()  # what is to be parsed next
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        waiting: list[bytes | memoryview] = [data]
        while waiting and not self.transport.is_closing():
            self._parsed, self._anew = waiting.pop(0), ()
            super().data_received(self._parsed)  # type: ignore[arg-type]
            waiting = [*self._anew, *waiting]
        if not self._in_head:
            return
        if self._timer is None:
            self._limit_time()
        if began_before:
            self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offers_upgrade:
            super().on_message_complete()

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

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def _limit_time(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

"""A client that costs little: one request's bytes, sent again and again over connections that are kept open.

    python benchmarks/load.py closed --port 8000 --picture A.jpg --level 8 --seconds 5 --output rows.csv
    python benchmarks/load.py open ...   --level is requests per second, sent whether or not earlier ones are answered

A row per request: milliseconds from start to when it should have been sent, its latency (in open loop from that
moment), its status (0: no answer). `health` asks an address ten times a second, from a separate process, as a busy
client would measure its own waiting. A last row says how much processor time the client itself took: in open loop at
several times the capacity, that may be a large part of the machine's.
"""

import argparse
import asyncio
import csv
import subprocess
import sys
from collections import deque
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple, cast

import uvloop

MOST_CONNECTIONS = 4000
PATIENCE_S = 30.0  # then a request counts as unanswered


class Row(NamedTuple):
    """A request, or in the end the client's own processor time, as latency."""

    kind: str
    scheduled_ms: float
    latency_ms: float
    status: int

    @property
    def ended_ms(self) -> float:
        return self.scheduled_ms + self.latency_ms


def request_bytes(port: int, path: str, picture: bytes, multipart_field: str | None = None, headers: str = "") -> bytes:
    """Returns: A whole HTTP request. `headers` are more header lines, each with its line end."""
    kind = "image/jpeg"
    if multipart_field:
        boundary = "benchmark-boundary"
        kind = f"multipart/form-data; boundary={boundary}"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{multipart_field}"; filename="a.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        picture = head.encode() + picture + f"\r\n--{boundary}--\r\n".encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
    return f"{lines}{headers}Content-Length: {len(picture)}\r\n\r\n".encode() + picture


class Connection(asyncio.Protocol):
    """One request at a time; what `send` returns gets its status, 0 if the connection broke."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._waiting: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's have no common base class

    def send(self, request: bytes) -> "asyncio.Future[int]":
        assert self.transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        if b"content-length: " in head:
            length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            if len(self._received) < end + 4 + length:
                return
        elif not self._received.endswith(b"0\r\n\r\n"):  # chunked
            return
        status = int(head[9:12])
        self._received.clear()
        if b"connection: close" in head:
            assert self.transport is not None
            self.transport.close()
            self.transport = None
        self._end(status)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._end(0)

    def _end(self, status: int) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(status)


class Load:
    """The rows of one run."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._idle: deque[Connection] = deque()
        self.began = perf_counter()
        self.rows: list[Row] = []

    async def ask(self, scheduled: float, kind: str = "request", request: bytes | None = None) -> int:
        status = 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await self._connection()
                status = await connection.send(request or self._request)
            if connection.transport is not None:
                self._idle.append(connection)
        except OSError:  # TimeoutError is one
            pass
        self._note(kind, scheduled, perf_counter() - scheduled, status)
        return status

    def _note(self, kind: str, scheduled: float, latency_s: float, status: int) -> None:
        self.rows.append(Row(kind, (scheduled - self.began) * 1000, latency_s * 1000, status))

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        return connection

    async def closed(self, clients: int, seconds: float) -> None:
        async def client() -> None:
            while perf_counter() < self.began + seconds:
                if not await self.ask(perf_counter()):
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        tasks: set[asyncio.Task[int]] = set()
        for number in range(int(rate * seconds)):
            scheduled = self.began + number / rate
            wait = scheduled - perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 50 == 0:
                await asyncio.sleep(0)  # late: the answers must still be read
            if len(tasks) >= MOST_CONNECTIONS:
                self._note("request", scheduled, PATIENCE_S, 0)
                continue
            task = asyncio.ensure_future(self.ask(scheduled))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def health(self, path: str, seconds: float) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode()
        while perf_counter() < self.began + seconds:
            await self.ask(perf_counter(), "health", request)
            await asyncio.sleep(0.1)


async def run(options: argparse.Namespace) -> list[Row]:
    picture = options.picture.read_bytes() if options.picture else b""
    request = request_bytes(options.port, options.path, picture, options.multipart)
    sender = Load(options.port, request)
    if options.loop == "closed":
        await sender.closed(int(options.level), options.seconds)
    elif options.loop == "open":
        await sender.open(options.level, options.seconds)
    else:
        await sender.health(options.path, options.seconds)
    return [*sender.rows, Row("client_cpu", 0.0, process_time() * 1000, 0)]


def load(*arguments: str) -> list[Row]:
    """Run this file with command-line arguments, in a process of its own. Returns: Its rows."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return read_rows(done.stdout)


def read_rows(text: str) -> list[Row]:
    """Returns: The rows that this file printed."""
    rows = list(csv.reader(text.splitlines()))[1:]
    return [Row(kind, float(at), float(latency), int(status)) for kind, at, latency, status in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=("closed", "open", "health"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/detect")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--multipart", metavar="FIELD", help="send the picture in this field of a form")
    parser.add_argument("--level", type=float, default=1, help="clients, or requests per second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = uvloop.run(run(options))
    with options.output.open("w", newline="") if options.output else sys.stdout as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows((kind, f"{at:.3f}", f"{latency:.3f}", status) for kind, at, latency, status in rows)


if __name__ == "__main__":
    main()

"""A service in a process, or an application in a thread, of its own, for tests that need a real port."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import uvicorn
from starlette.types import ASGIApp

from app.connection import Connection

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Served:
    address: str
    pid: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class NotReady(RuntimeError):
    """A service that ended, or hung, before it answered."""


@contextmanager
def served(*, model: Path, **settings: object) -> Generator[Served]:
    """Runs `python -m app` until the block ends; `settings` are its FCOS_* variables without that."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_")}
    settings = {"model": model, "port": port, "provider": "cpu", "log_level": "warning", "drain_s": 0, **settings}
    environment |= {f"FCOS_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(f"{address}/readyz", process)
        yield Served(address, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(address: str, process: subprocess.Popen[Any]) -> None:
    deadline_s = time.monotonic() + 60
    past_proxies = build_opener(ProxyHandler({}))  # not httpx, which `make loadtest` does not install
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            past_proxies.open(address, timeout=5).close()
        except HTTPError as error:
            error.close()  # else Python 3.14 warns
        except OSError:
            pass
        else:
            return
        time.sleep(0.05)
    raise NotReady("The service did not get ready; its log is above.")


@contextmanager
def in_thread(app: ASGIApp, **options: Any) -> Generator[tuple[str, int]]:
    """Answers with an application, at this host and port, until the block ends; `options` are uvicorn's."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Connection, ws="none", log_level="warning", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline_s = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(20)

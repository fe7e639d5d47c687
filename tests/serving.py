"""A service in a process of its own, for tests that need a real port."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Served:
    address: str
    pid: int


class NotReady(RuntimeError):
    """A service that ended, or hung, before it answered."""


@contextmanager
def served(*, model: Path, **settings: object) -> Generator[Served]:
    """Runs `python -m app` until the block ends; `settings` are its FCOS_* variables without that."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_")}
    settings = {"model": model, "port": port, "provider": "cpu", "log_level": "warning", **settings}
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
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise NotReady("The service did not get ready; its log is above.") from None
            time.sleep(0.05)

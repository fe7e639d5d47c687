"""Servers to measure, each in processes of its own: our service, the FastAPI baseline, and other people's. And the
picture that is sent to them."""

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import httpx
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

OWN = ("service", "fastapi")
PEERS = ("litserve", "bentoml", "ray")
START_S = 120.0
END_S = 30.0


class Running(NamedTuple):
    """A server that answers."""

    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def running(
    system: str, model: Path, provider: str, python: str = sys.executable, **settings: object
) -> Generator[Running]:
    """Run a server until the block ends.

    Args:
        system: one of `OWN` and `PEERS`.
        provider: cpu or cuda.
        python: a peer's.
        settings: our service's FCOS_* variables, without that prefix; `deadline_s` is everybody's.
    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_")}
    if system == "service":
        command = [sys.executable, "-m", "app"]
        settings = {"model": model, "port": port, "provider": provider, "log_level": "warning", **settings}
        environment |= {f"FCOS_{name.upper()}": str(value) for name, value in settings.items()}
    else:
        command = [python, str(HERE / "peers" / f"{system}_app.py"), str(model), "--port", str(port)]
        command += ["--provider", provider, "--deadline-s", str(settings.get("deadline_s", 2))]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(system, port, process, log)
            yield Running(port, process)
        finally:
            _end(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def status_of(address: str) -> int:
    """Returns: The status with which a server answers there; 0 if it does not answer."""
    try:
        return httpx.get(address, timeout=5, trust_env=False).status_code  # past proxies
    except httpx.HTTPError:
        return 0


def settings_from(texts: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns: FCOS_* variables, without that prefix, from NAME=VALUE."""
    if wrong := [text for text in texts if "=" not in text]:
        parser.error(f"a setting must be NAME=VALUE, but got {wrong[0]}")
    return dict(text.split("=", 1) for text in texts)


def photograph() -> bytes:
    """Returns: The picture that is sent: a JPEG of 640 x 480 and 73 kB."""
    from skimage import data  # which a GPU machine may lack; it brings a picture

    out = io.BytesIO()
    Image.fromarray(data.astronaut()).resize((640, 480)).save(out, "JPEG", quality=90)
    return out.getvalue()


def tell(pid: int, number: int) -> None:
    """Send a signal to a process and its children."""
    for one in family(pid):
        with suppress(ProcessLookupError):
            os.kill(one, number)


def family(pid: int) -> list[int]:
    """Returns: A process, its children and theirs. Linux only; elsewhere, just the process."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _wait(system: str, port: int, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Wait until a server is ready or, without a readiness address, until it answers anything."""
    path = "/readyz" if system == "service" else "/"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        status = status_of(f"http://127.0.0.1:{port}{path}")
        if status == 200:
            return
        if status and system != "service":
            time.sleep(3)  # its workers may still be loading the model
            return
        time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"{system} did not start:\n{log.read().decode(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    # Some leave their workers behind when only the parent is told to end, or have them in groups of their own.
    workers = family(process.pid)[1:]
    tell(process.pid, signal.SIGCONT)
    with suppress(ProcessLookupError):  # it has ended, and its workers with it
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

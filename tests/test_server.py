"""The process: what it does at SIGTERM and SIGHUP, under load."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.serving import ROOT, free_port, served, wait_until_ready
from tests.support import PICTURE, encoded, metadata, write_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


class Clients:
    """Threads that ask again and again, each on its own connection, until the service lets no more in.

    Attributes:
        answers: Of each answered request its status and its model's version.
        lost: Requests that were taken and never answered.
    """

    def __init__(self, address: str, count: int) -> None:
        self._host = urlsplit(address).netloc
        self.answers: list[tuple[int, str]] = []
        self.lost: list[BaseException] = []
        self.some = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while True:
            connection = http.client.HTTPConnection(self._host, timeout=60)
            try:
                connection.connect()
            except ConnectionError:
                return  # the port is closed
            try:
                while True:
                    try:
                        connection.request("POST", "/detect", PICTURE)
                        response = connection.getresponse()
                    except (ConnectionResetError, BrokenPipeError):
                        # An idle connection was closed as the request set out: it was never taken. Whether one that
                        # waits is answered, `benchmarks/promises.py` sees, and `test_benchmarks.py` with it.
                        break
                    document = json.loads(response.read())
                    self.answers.append((response.status, document.get("model", {}).get("version", "")))
                    self.some.release()
                    if response.will_close:
                        break
            except BaseException as error:
                self.lost.append(error)
                return
            finally:
                connection.close()

    def wait_for_answers(self, count: int) -> None:
        for _ in range(count):
            assert self.some.acquire(timeout=60)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_sigterm_under_load_loses_nothing(model_file: Path) -> None:
    with served(model=model_file, drain_s=0.3) as service:
        clients = Clients(service.address, 8)
        clients.wait_for_answers(20)
        os.kill(service.pid, signal.SIGTERM)
        readiness = set()
        while True:
            probe = http.client.HTTPConnection(urlsplit(service.address).netloc, timeout=60)
            try:
                probe.request("GET", "/readyz")
                readiness.add(probe.getresponse().status)
            except ConnectionError:
                break
            finally:
                probe.close()
        clients.join()
    assert 503 in readiness, "readiness goes first"
    assert not clients.lost
    assert {status for status, _ in clients.answers} == {200}


@contextlib.contextmanager
def hanging(model_file: Path) -> Generator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """A service in which a picture hangs, and the client that waits for it."""
    port = free_port()
    script = f"""
import time
import app.images, app.server
from app.settings import Settings
def hang(*_, **__):
    print("hangs", flush=True)
    time.sleep(3600)
app.images.decode = hang
app.server.FINISH_S, app.server.LAST_S = 1, 0.5
app.server.serve(Settings(model={str(model_file)!r}, port={port}, provider="cpu", drain_s=0, deadline_s=1))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
            client.request("POST", "/detect", PICTURE)
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            yield process, client
    finally:
        process.kill()


def test_sigterm_does_not_wait_for_what_never_comes_back(model_file: Path) -> None:
    with hanging(model_file) as (process, client):
        process.terminate()
        assert client.getresponse().status == 504
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert "Something hangs" in log


def test_a_second_ctrl_c_waits_for_nothing(model_file: Path) -> None:
    with hanging(model_file) as (process, client):
        process.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionError):
            while True:  # until the port is closed, so the first one has been seen
                socket.create_connection((client.host, client.port)).close()
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in log
    assert "Ctrl-C was pressed again" in log


@pytest.mark.parametrize("command", ["exec %s -m app <&- >&- 2>&-", "ulimit -S -n 64; exec %s -m app"])
def test_it_serves_many_where_a_shell_leaves_it_few_files_or_none(model_file: Path, command: str) -> None:
    port = free_port()
    settings = {"FCOS_MODEL": str(model_file), "FCOS_PORT": str(port), "FCOS_PROVIDER": "cpu", "FCOS_DRAIN_S": "0"}
    process = subprocess.Popen(["sh", "-c", command % shlex.quote(sys.executable)], cwd=ROOT, env=os.environ | settings)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
                assert b" 200 " in client.recv(65536)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_sigterm_does_not_wait_for_who_was_cut_off(model_file: Path) -> None:
    with contextlib.ExitStack() as stack:
        with served(model=model_file) as service:
            host, _, port = urlsplit(service.address).netloc.partition(":")
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            client.sendall(b"POST /detect HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")
            assert b" 400 " in client.recv(65536)
            begun_s = time.monotonic()
        assert time.monotonic() < begun_s + 10


def test_a_drawing_that_is_not_taken_keeps_its_place(model_file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    picture = encoded(Image.fromarray(noise), "JPEG")
    patient = served(model=model_file, max_queue=1, deadline_s=300)
    with patient as service, socket.socket() as idle, socket.socket() as slow:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = urlsplit(service.address).netloc.partition(":")
        idle.connect((host, int(port)))
        slow.connect((host, int(port)))
        head = b"POST /detect?draw=png HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n"
        slow.sendall(head % len(picture) + picture[:-1])
        idle.sendall(head % len(picture) + picture)
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        slow.sendall(picture[-1:])
        assert slow.recv(12) == b"HTTP/1.1 503", "a place is wanted by what has come, too"

        def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            with contextlib.closing(connection):
                connection.request(method, path, body)
                response = connection.getresponse()
                return response.status, response.read().decode()

        def status() -> int:
            return ask("POST", "/detect", picture)[0]

        def pixels_held() -> float:
            lines = ask("GET", "/metrics")[1].splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("fcos_in_flight_pixels "))

        assert status() == 503
        assert pixels_held() > noise.size / 4, "its file counts, too: noise cannot be compressed"
        idle.close()
        deadline_s = time.monotonic() + 60
        while status() != 200:
            assert time.monotonic() < deadline_s
        assert pixels_held() == 0


def test_nothing_is_written_past_the_log_or_in_answer_to_noise(
    model_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiff = bytearray(encoded(Image.effect_noise((64, 64), 80).convert("1"), "TIFF", compression="tiff_lzw"))
    tiff[20:400] = bytes(byte ^ 0x5A for byte in tiff[20:400])
    with served(model=model_file, log_format="json", log_level="info") as service:
        host, _, port = urlsplit(service.address).netloc.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/detect", bytes(tiff))
            assert connection.getresponse().status in (200, 422)
        samples = struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 300)  # per pixel
        for kind, body in {
            "multipart/form-data; boundary=b": b'--b\r\nContent-Disp[]osition: form-data; name="image"\r\n\r\n',
            "image/tiff": encoded(Image.new("RGB", (8, 8)), "TIFF").replace(*samples),
        }.items():
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/detect", body, {"Content-Type": kind})
                assert 400 <= connection.getresponse().status < 500
        with socket.create_connection((host, int(port))) as noise:
            noise.sendall(b"no HTTP\r\n\r\n")
            assert noise.recv(12) == b"HTTP/1.1 400"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["logger"] for line in lines} <= {"app", "app.service", "app.server"}


def test_sighup_swaps_the_model_under_load(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    newer = write_model(tmp_path / "newer.onnx", metadata(classes=["crimson", "green", "blue"]).to_json())
    with served(model=model) as service:
        clients = Clients(service.address, 4)
        clients.wait_for_answers(10)
        newer.replace(model)
        os.kill(service.pid, signal.SIGHUP)
        limit = time.monotonic() + 30
        while len({version for _, version in clients.answers}) < 2:
            assert time.monotonic() < limit
            clients.wait_for_answers(1)
        os.kill(service.pid, signal.SIGTERM)
        clients.join()
    assert not clients.lost
    assert {status for status, _ in clients.answers} == {200}


@pytest.mark.parametrize("nohup", [False, True])
def test_with_its_terminal_the_service_ends_unless_started_by_nohup(model_file: Path, nohup: bool) -> None:
    environment = os.environ | {"FCOS_MODEL": str(model_file), "FCOS_PORT": "0", "FCOS_DRAIN_S": "0"}
    other_end, terminal = os.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # which the process inherits
    process = subprocess.Popen(
        [sys.executable, "-m", "app"], cwd=ROOT, env=environment, stdin=terminal, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGHUP, before)
    os.close(terminal)
    assert process.stderr is not None
    with process, process.stderr as lines:
        assert any("is warm" in line for line in lines)
        os.close(other_end)
        process.send_signal(signal.SIGHUP)
        if nohup:
            assert any("is warm" in line for line in lines)  # the reloaded model
            process.terminate()
        else:
            assert "is warm" not in lines.read()
        assert process.wait(60) == 0


def test_the_log_is_json_where_asked_for(model_file: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_")}
    environment |= {
        "FCOS_MODEL": str(model_file), "FCOS_PROVIDER": "cpu", "FCOS_PORT": "0", "FCOS_LOG_FORMAT": "json",
        "FCOS_DRAIN_S": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "app"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = json.loads(process.stderr.readline())
    process.terminate()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert first["level"] == "info"
    assert "colours" in first["message"]
    assert all(json.loads(line)["time"].endswith("Z") for line in rest.splitlines())


def test_warnings_and_the_servers_errors_are_log_lines_and_pillows_warnings_are_none() -> None:
    script = (
        "import logging, warnings; from app.logs import configure; configure('warning', 'json'); warnings.warn('odd')\n"
        "logging.getLogger('app').info('below the level'); logging.getLogger('uvicorn.error').error('failed')\n"
        "warnings.warn_explicit('Corrupt EXIF data', UserWarning, 'TiffImagePlugin.py', 1, 'PIL.TiffImagePlugin')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    odd, failed = (json.loads(line)["message"] for line in done.stderr.splitlines())
    assert "odd" in odd and failed == "failed"


@pytest.mark.parametrize(("trusted", "seen"), [(None, "127.0.0.1"), ("127.0.0.1", "6.6.6.6")])
def test_nobody_names_the_client_but_a_proxy_that_is_trusted(
    model_file: Path,
    trusted: str | None,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with served(model=model_file, log_level="info", access_log="true") as service:
        connection = http.client.HTTPConnection(urlsplit(service.address).netloc, timeout=60)
        connection.request("GET", "/model", headers={"X-Forwarded-For": "6.6.6.6"})
        assert connection.getresponse().status == 200
        connection.close()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "GET /model" in line]
    assert line.endswith(f"from {seen}")

"""How many pictures a second this machine's processor can feed a GPU: the service, with one that takes no core.

    python benchmarks/feeding.py                             a GPU that takes 5 ms for any batch
    python benchmarks/feeding.py --gpu-ms 2 --clients 128

The model is run once, on the CPU. Then each batch waits for a while instead, and gets that run's outputs. All else is
the service's own, with the threads and batches that it has with CUDA; only copies to a GPU and back are not made. A GPU
that could do more than is printed here would idle.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import process_time
from unittest import mock

import httpx
import numpy as np
from numpy.typing import NDArray

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from app.detector import Detector
from app.postprocess import Heads
from app.providers import CUDA
from app.server import serve
from app.session import OnnxRunner
from app.settings import DEFAULT_MODEL, Settings
from benchmarks.command import as_command
from benchmarks.load import load
from benchmarks.systems import free_port, photograph, status_of

WARM_UP_S = 2.0
PLACES_PER_CLIENT = 2  # so that none is refused


@dataclass(frozen=True)
class Pretended(OnnxRunner):
    """A GPU that takes a while, and gives every picture of a canvas the same outputs."""

    gpu_s: float = 0.0
    outputs: dict[tuple[int, ...], Heads] = field(default_factory=dict)  # by height and width

    def __call__(self, canvases: NDArray[np.uint8], cores: int = 1) -> Heads:
        time.sleep(self.gpu_s)
        heads = self.outputs[canvases.shape[1:3]]
        return Heads(*(np.repeat(head, len(canvases), axis=0) for head in heads))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--picture", type=Path, help="a JPEG (default: a photograph of 640 x 480)")
    parser.add_argument("--gpu-ms", type=float, default=5.0, help="of a batch")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    given = photograph() if options.picture is None else options.picture.read_bytes()

    port = free_port()
    settings = Settings(
        model=options.model, port=port, max_queue=PLACES_PER_CLIENT * options.clients, drain_s=0, log_level="warning"
    )
    measuring = threading.Thread(target=_measure, args=(port, given, options), daemon=True)
    with mock.patch("app.service.open_runner", partial(_pretended, picture=given, gpu_s=options.gpu_ms / 1000)):
        measuring.start()
        return serve(settings)


def _pretended(settings: Settings, *, picture: bytes, gpu_s: float) -> Pretended:
    runner = OnnxRunner.load(settings.model)
    detector = Detector(runner.metadata, runner)
    shown, _ = detector.fit(detector.decode(picture))
    blank = {tuple(size): np.zeros((*size, 3), np.uint8) for size in runner.metadata.canvases}
    outputs = {size: runner(canvas[None]) for size, canvas in (blank | {shown.shape[:2]: shown}).items()}
    return Pretended(runner.session, runner.metadata, runner.version, CUDA, gpu_s=gpu_s, outputs=outputs)


def _measure(port: int, picture: bytes, options: argparse.Namespace) -> None:
    """Sends pictures to the service of this process, prints what came of it, and ends the service."""
    address = f"http://127.0.0.1:{port}"
    try:
        while status_of(f"{address}/readyz") != 200:
            time.sleep(0.1)
        with tempfile.TemporaryDirectory() as folder:
            sent = Path(folder) / "picture.jpg"
            sent.write_bytes(picture)
            same = ["--port", str(port), "--picture", str(sent), "--level", str(options.clients)]
            load("closed", *same, "--seconds", str(WARM_UP_S))
            before = np.array([process_time(), *_pictures_and_batches(address)])
            rows = load("closed", *same, "--seconds", str(options.seconds))
        core_s, pictures, batches = np.array([process_time(), *_pictures_and_batches(address)]) - before
        rate = sum(row.status == 200 for row in rows) / options.seconds
        print(
            f"{rate:.0f} answers/s, {core_s / pictures * 1000:.2f} ms of a core for each, "
            f"{pictures / batches:.1f} pictures in a batch"
        )
    finally:
        signal.raise_signal(signal.SIGTERM)


def _pictures_and_batches(address: str) -> tuple[float, float]:
    text = httpx.get(f"{address}/metrics", trust_env=False).text
    values = dict(line.split(" ") for line in text.splitlines() if line.startswith("fcos_batch_size_"))
    return float(values["fcos_batch_size_sum"]), float(values["fcos_batch_size_count"])


if __name__ == "__main__":
    as_command(main)

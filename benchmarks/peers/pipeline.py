"""What every peer runs: this project's own code, from a picture file's bytes to the answer's."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from app.cores import core_count
from app.detector import Detector
from app.outcome import Outcome
from app.schemas import ModelName
from app.session import OnnxRunner


class Pipeline:
    """Picture file → JSON. Any number of threads may use it."""

    def __init__(self, model: str, session_threads: int, provider: str = "cpu") -> None:
        self.runner = OnnxRunner.load(Path(model), provider, session_threads)
        self.runner.warm_up()
        self._detector = Detector(self.runner.metadata, self.runner)
        self._model = ModelName(name="model", version="0" * 8, provider=self.runner.provider)

    def __call__(self, data: bytes) -> bytes:
        decoded = self._detector.decode(data)
        found = self._detector.detect(decoded)
        timing_ms = {"decode": 0.0, "queue": 0.0, "inference": 0.0, "postprocess": 0.0}
        return Outcome(decoded.size, found, self.runner.metadata.classes, self._model, timing_ms).to_json()


def options(description: str | None) -> argparse.Namespace:
    """Returns: The options of every peer."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=core_count(), help="pictures at a time")
    parser.add_argument("--session-threads", type=int, default=1, help="for one picture in the model")
    parser.add_argument("--at-once", type=int, default=32, help="requests accepted at a time; the others are refused")
    parser.add_argument("--deadline-s", type=float, default=2, help="of a request, where the server knows such a thing")
    parser.add_argument("--picture", type=Path, help="for bare.py")
    return parser.parse_args()

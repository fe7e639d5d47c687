"""A session, or a decoder, that waits until the test lets it go."""

import threading
from typing import Any

import numpy as np
import pytest

from app import images
from app.postprocess import Heads
from app.session import OnnxRunner


class Held:
    """Holds the session's batches until it is opened, and remembers them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.batches: list[int] = []
        self.cores: list[int] = []
        self._monkeypatch = monkeypatch

    def install(self) -> None:
        run = OnnxRunner.run_batch

        def holding(runner: OnnxRunner, canvases: list[np.ndarray], cores: int = 1) -> Heads:
            self.batches.append(len(canvases))
            self.cores.append(cores)
            if not self.open.wait(20):
                self.open.set()  # a test that failed before it did so must not hold all the others up
            return run(runner, canvases, cores)

        self._monkeypatch.setattr(OnnxRunner, "run_batch", holding)


class HeldDecoder:
    """Holds the pictures that are to be decoded until it is opened."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = images.decode

        def holding(*arguments: Any, **options: Any) -> Any:
            self.begun.set()
            self.open.wait(20)
            return decode(*arguments, **options)

        monkeypatch.setattr(images, "decode", holding)

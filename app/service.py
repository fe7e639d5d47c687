"""Pictures in, answers out, each stage on its own threads: the event loop only moves bytes."""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.canvas import Placement
from app.detector import Detector
from app.errors import Refusal, StartError
from app.images import open_picture
from app.postprocess import Detections, Heads, Parameters
from app.schemas import Answer, ModelInfo, ModelName, PictureSize, Timing, detection_list
from app.session import OnnxRunner
from app.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One picture's answer, and the upright picture that it is about."""

    picture: Image.Image
    answer: Answer


class Service:
    """A model being served.

    One thread owns the session; others decode and post-process, while Pillow and numpy have released the GIL.

    Attributes:
        not_ready: Why no requests are answered; None once the model is warm.
    """

    def __init__(self, runner: OnnxRunner, settings: Settings) -> None:
        self.runner = runner
        self.detector = Detector(runner.metadata, runner)
        self.model = ModelName(name=runner.metadata.name, version=runner.version, provider=runner.provider)
        self.not_ready: str | None = "The model is being warmed up."
        self._max_pixels = settings.max_pixels
        self._picture_threads = ThreadPoolExecutor(settings.decode_threads or os.cpu_count() or 1, "picture")
        self._model_thread = ThreadPoolExecutor(1, "model")

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Opens the model file. Raises: StartError: It cannot be served."""
        return cls(OnnxRunner.load(settings.model, settings.provider, settings.threads), settings)

    async def warm_up(self) -> None:
        """Runs the canary picture on every canvas; requests are answered from then on, unless it comes out wrong."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._model_thread, self.runner.warm_up)
        except StartError as error:
            self.not_ready = str(error)
            log.error("%s", error)
        except Exception:
            self.not_ready = "The model failed on its first pictures; the log says how."
            log.exception("The model failed while it was warmed up.")
        else:
            self.not_ready = None

    def close(self) -> None:
        """Waits for what is being done and ends the threads."""
        self._model_thread.shutdown()
        self._picture_threads.shutdown()

    def require_ready(self) -> None:
        """Raises: Refusal: `not_ready`."""
        if self.not_ready is not None:
            raise Refusal("not_ready", f"{self.not_ready} Try again later.", headers={"Retry-After": "1"})

    async def detect(self, data: bytes, parameters: Parameters) -> Outcome:
        """Takes one picture through the pipeline.

        Args:
            data: A whole picture file, not to be trusted.

        Raises:
            Refusal: The picture cannot be read, or the service is not ready.
        """
        self.require_ready()
        loop = asyncio.get_running_loop()
        picture, canvas, placement, decode_ms = await loop.run_in_executor(self._picture_threads, self._open, data)
        queued = perf_counter()
        heads, begun, inference_ms = await loop.run_in_executor(self._model_thread, self._run, canvas)
        found, postprocess_ms = await loop.run_in_executor(
            self._picture_threads, self._finish, heads, placement, parameters
        )
        answer = Answer(
            detections=detection_list(found, self.runner.metadata.classes),
            image=PictureSize(width=picture.width, height=picture.height),
            model=self.model,
            timing_ms=Timing(
                decode=decode_ms,
                queue=_ms(begun - queued),
                inference=inference_ms,
                postprocess=postprocess_ms,
            ),
        )
        return Outcome(picture, answer)

    def _open(self, data: bytes) -> tuple[Image.Image, NDArray[np.uint8], Placement, float]:
        begun = perf_counter()
        picture = open_picture(data, self._max_pixels)
        canvas, placement = self.detector.fit(picture)
        return picture, canvas, placement, _ms(perf_counter() - begun)

    def _run(self, canvas: NDArray[np.uint8]) -> tuple[Heads, float, float]:
        begun = perf_counter()
        heads = self.detector.run(canvas[None])
        return heads, begun, _ms(perf_counter() - begun)

    def _finish(self, heads: Heads, placement: Placement, parameters: Parameters) -> tuple[Detections, float]:
        begun = perf_counter()
        found = self.detector.finish(heads.of(0), placement, parameters)
        return found, _ms(perf_counter() - begun)

    def info(self) -> ModelInfo:
        """Returns: What is served."""
        metadata = self.runner.metadata
        return ModelInfo(
            **self.model.model_dump(),
            provider_note=self.runner.fallback,
            classes=list(metadata.classes),
            precision=metadata.precision,
            canvases=list(metadata.canvases),
            resize=metadata.resize,
            defaults=metadata.defaults,
            metrics=metadata.metrics,
            training=metadata.training,
            checkpoint_sha256=metadata.checkpoint_sha256,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

"""Pictures in, outcomes out: whether there is room for a picture, which model takes it, and until when.

Everything here runs on the event loop, so counting needs no locks.
"""

import asyncio
import io
import logging
import math
from functools import cache, partial
from time import perf_counter
from typing import Self

from PIL import Image

from app.budget import Budget, Share
from app.engine import Engine
from app.errors import ArtifactError, Refusal, StartError
from app.job import Job
from app.memory import forget_garbage
from app.metrics import Metrics
from app.outcome import Outcome
from app.providers import CUDA, nvidia_is_here, reason_of
from app.schemas import DetectQuery, ModelInfo, ModelName
from app.session import OnnxRunner
from app.settings import Settings
from app.sharing import drawer_count, most_threads, session_threads, worker_count
from app.timers import Timers
from app.workers import Workers

log = logging.getLogger(__name__)

LOOK_FOR_ROOM_S = 0.05
# Expected times are means. A queue that just fits its deadline would end with pictures that are computed for nobody.
MARGIN = 1.25


class Service:
    """The model being served, and those before and after it.

    Attributes:
        timers: The deadlines of what is being answered.
        not_ready: Why no requests are answered; None once the model is warm.
        draining: The service is shutting down: it answers what comes, but wants no more.
        requests, uploading: How many there are, and how many of them are still sending their pictures.
    """

    def __init__(self, runner: OnnxRunner, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.not_ready: str | None = "The model is being warmed up."
        self.draining = False
        self.requests = self.uploading = 0
        self._in_flight = 0
        self.timers = Timers()
        self._pixels = Budget(settings.max_queue_pixels)
        self._workers = Workers(worker_count(settings), "picture")
        self._drawers = Workers(drawer_count(settings), "drawing")
        self._engine = self._new_engine(runner)
        self._reloading = asyncio.Lock()
        self._idle = asyncio.Event()
        # Asked for when somebody reads the metrics.
        self.metrics.waiting.set_function(lambda: self._engine.waiting)
        self.metrics.in_flight.set_function(lambda: self._in_flight)
        self.metrics.pixels.set_function(lambda: self._pixels.used)
        self.metrics.ready.set_function(
            lambda: not (self.not_ready or self.draining or self._engine.failing or self._engine.hangs)
        )

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Opens the model file. Raises: StartError: It cannot be served."""
        return cls(open_runner(settings), settings)

    @property
    def runner(self) -> OnnxRunner:
        return self._engine.runner

    @property
    def largest_batch(self) -> int:
        return self._engine.largest_batch

    @property
    def model(self) -> ModelName:
        return self._engine.model

    async def warm_up(self, *, every_shape: bool = True) -> None:
        """Runs the canary picture; requests are answered from then on, unless that goes wrong.

        Args:
            every_shape: If False, a CPU, on which a first run takes no longer, is not kept waiting for them.
        """
        async with self._reloading:
            try:
                await self._engine.warm_up(every_shape=every_shape)
            except StartError as error:
                self.not_ready = str(error)
                log.error("%s", error)
            except Exception:
                self.not_ready = "The model failed on its first pictures; the log says how."
                log.exception("The model failed while it was warmed up.")
            else:
                self._begin_answering()

    async def finish(self) -> None:
        """Waits for a reload that is running, then closes."""
        async with self._reloading:
            self.close()

    def close(self) -> None:
        """Waits for running work, then ends the threads."""
        self._engine.close()
        self._workers.close()
        self._drawers.close()

    def require_ready(self) -> None:
        """Raises: Refusal: `not_ready`."""
        if self.not_ready is not None:
            raise Refusal("not_ready", f"{self.not_ready} Try again later.", headers={"Retry-After": "1"})

    async def require_working(self) -> None:
        """If the model failed last time, tries it on a picture that is surely good.

        Raises: Refusal: `not_ready`: It fails on that one, too, or something hangs.
        """
        if self._engine.hangs:
            raise Refusal("not_ready", "The model, or a picture, hangs. Restart the service.")
        if not self._engine.failing:
            return
        try:
            await self.detect(_grey_picture(), DetectQuery())
        except Refusal:
            pass  # too busy to find out
        except Exception as error:
            raise Refusal(
                "not_ready",
                f"The model fails on every picture ({type(error).__name__}); the log says how. Restart the service.",
            ) from None

    @property
    def answering(self) -> int:
        """Requests whose pictures have arrived and whose answers have not been taken."""
        return self.requests - self.uploading

    def require_room(self, deadline: float, others: int) -> None:
        """Raises: Refusal: `overloaded`: all places are taken, or there could be no answer before the deadline;
        `deadline_exceeded`: it has passed.

        Args:
            others: The requests that are `answering`, without the one that asks.
        """
        if perf_counter() >= deadline:
            raise _late()
        taken = max(self._in_flight, others)
        expected_s = self._in_flight * self._engine.pace.picture_s
        if taken >= self.settings.max_queue:
            reason = f"Requests being answered: {taken}, of at most {self.settings.max_queue}"
        elif perf_counter() + MARGIN * expected_s > deadline:
            reason = f"Pictures being answered: {self._in_flight}, which takes about {expected_s:.1f} s"
        else:
            return
        raise Refusal(
            "overloaded",
            f"{reason}. Try again later.",
            headers={"Retry-After": str(max(1, math.ceil(expected_s)))},
        )

    async def detect(
        self,
        data: bytes,
        query: DetectQuery,
        *,
        deadline: float | None = None,
        draw: str | None = None,
    ) -> Outcome:
        """Takes one picture through the pipeline. If this is cancelled, the picture is dropped.

        Args:
            data: A whole picture file, not to be trusted.
            query: Gives the parameters for the model that takes the picture.
            deadline: On `time.perf_counter`'s clock; if None, what the settings say, from now on.
            draw: The media type, JPEG or PNG, if the picture with its boxes is wanted as well.

        Raises:
            Refusal: The picture cannot be read, or there is no room or no time for it, or the service is not ready.
        """
        self.require_ready()
        now = perf_counter()
        deadline = now + self.settings.deadline_s if deadline is None else deadline
        self.require_room(deadline, self.answering - 1)
        engine, loop = self._engine, asyncio.get_running_loop()
        parameters = query.parameters(engine.runner.metadata)
        job = Job(data, parameters, draw, deadline, now, loop.create_future(), Share(self._pixels))
        self._in_flight += 1
        engine.users += 1
        timer = self.timers.call_at(deadline, partial(_expire, job))
        try:
            engine.begin(job)
            return await job.answered
        except asyncio.CancelledError:
            if job.settled:  # its outcome came at the same moment, and reaches nobody
                job.release()
            raise
        finally:
            timer.cancel()
            if not job.settled:
                engine.abandon(job)
            self._in_flight -= 1
            engine.users -= 1
            if not engine.users:
                self._idle.set()
            # What is raised refers to this frame, and all of these refer to what is raised; see `forget_frames`.
            del job, timer

    async def detect_in_time(
        self, data: bytes, query: DetectQuery, *, deadline: float, draw: str | None = None
    ) -> Outcome:
        """Like `detect`, but if there is no room, waits for some until the deadline."""
        while True:
            try:
                return await self.detect(data, query, deadline=deadline, draw=draw)
            except Refusal as refusal:
                if refusal.code != "overloaded" or perf_counter() + LOOK_FOR_ROOM_S > deadline:
                    raise
            await asyncio.sleep(LOOK_FOR_ROOM_S)

    async def reload(self, *, wait: bool = False) -> ModelInfo:
        """Replaces the served model by the model file as it is now, without a gap.

        The new model is validated, warmed and checked beside the old one. Requests that began with the old model end
        with it. If anything is wrong with the file, the old model stays in service.

        Args:
            wait: For a running reload or the warm-up, which may have read an older file.

        Raises:
            Refusal: `model_refused` or `reload_running`.
        """
        if self._reloading.locked() and not wait:
            raise Refusal("reload_running", "The model file is already being loaded. Wait for that to end.")
        async with self._reloading:
            try:
                return await self._reload()
            except Exception as error:
                self.metrics.reloads["refused"].inc()
                if not isinstance(error, StartError):
                    raise
                log.error("The model was not reloaded: %s", error)
                raise Refusal("model_refused", f"{error} Version {self.model.version} is still served.") from None

    async def _reload(self) -> ModelInfo:
        runner = await asyncio.to_thread(open_runner, self.settings, on_cuda=self.runner.provider == CUDA)
        engine = self._new_engine(runner)
        try:
            await engine.warm_up()
        except BaseException as error:  # a cancelled reload is one
            await asyncio.to_thread(engine.close)
            if isinstance(error, StartError) or not isinstance(error, Exception):
                raise
            raise ArtifactError(f"{self.settings.model} failed on its first pictures ({reason_of(error)}).") from error
        old, self._engine = self._engine, engine
        self._begin_answering()
        self.metrics.reloads["done"].inc()
        while old.users:
            self._idle.clear()
            await self._idle.wait()
        await asyncio.to_thread(old.close)
        return self.info()

    def _new_engine(self, runner: OnnxRunner) -> Engine:
        return Engine(runner, self.settings, self._workers, self._drawers, self.metrics)

    def _begin_answering(self) -> None:
        """Requests are answered from here on, by the model that has been warmed up."""
        if self.not_ready is not None:  # it is the first one: nobody has been answered yet
            forget_garbage()
            self.not_ready = None
        model, precision = self.model, self.runner.metadata.precision
        self.metrics.serve_model(model.name, model.version, model.provider, precision)
        batch = self.largest_batch
        self.metrics.largest_batch.set(batch)
        log.info(
            "The model %s, version %s, %s, is warm on %s, in batches of up to %d",
            model.name, model.version, precision, model.provider, batch,
        )  # fmt: skip

    def info(self) -> ModelInfo:
        """Returns: What is served."""
        shown = dict(self.runner.metadata) | dict(self.model) | {"provider_note": self.runner.fallback}
        return ModelInfo.model_validate(shown)  # which leaves out what it has no field for


@cache
def _grey_picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(out, "PNG")
    return out.getvalue()


def open_runner(settings: Settings, *, on_cuda: bool = False) -> OnnxRunner:
    """Opens the model file as the settings say; with `on_cuda`, only on CUDA. Raises: StartError."""
    provider = "cuda" if on_cuda else settings.provider
    threads, widest = session_threads(settings), most_threads(settings)
    runner = OnnxRunner.load(settings.model, provider, threads, settings.cuda_options(), widest=widest)
    if runner.fallback is not None and not nvidia_is_here():
        log.info("There is no NVIDIA driver or GPU: the model runs on the CPU.")
    elif runner.fallback is not None:
        log.warning("CUDA cannot be used (%s): the model runs on the CPU.", runner.fallback)
    return runner


def _expire(job: Job) -> None:
    if not job.answered.done():
        job.answered.set_exception(_late())


def _late() -> Refusal:
    return Refusal("deadline_exceeded", "The picture could not be answered in time. Try again later.")

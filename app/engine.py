"""One model being served: its sessions' threads, its queue, and every picture's way through it.

    CUDA: decode (workers) → queue → session (its own thread) → post-processing (workers)
    CPU:  decode → queue → session → post-processing, all on workers

The event loop hands a picture in and gets its outcome back; it does nothing in between. On the CPU, session threads
would only compete with the workers for the same cores: so a worker that has decoded a picture runs what is queued, and
finishes it, as long as a session is free. Every further thread, and every hand-over, costs a small model dearly.

Concurrent pictures have a core each, which wastes least. A lone picture has all cores, which is fastest. A model too
quick for several cores gains from batches: then a worker first decodes what else has arrived, until there is a batch.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from app.batcher import Batch, Batcher
from app.detector import Detector
from app.draw import MOST_JPEG_PIXELS, drawing
from app.errors import Refusal, first_line
from app.images import decode
from app.job import Job
from app.metrics import Metrics
from app.negotiation import JPEG
from app.outcome import Outcome
from app.pace import Pace
from app.postprocess import PictureHeads
from app.providers import CUDA
from app.schemas import ModelName
from app.session import OnnxRunner
from app.settings import Settings
from app.sharing import QUICK_S, largest_batch, seconds_per_picture, session_count
from app.workers import Workers

log = logging.getLogger(__name__)

OWN_THREAD = frozenset({CUDA})  # providers whose session must always be run by the same thread
MOST_WORK_S = 30.0  # or the deadline, if that is longer
_CROWD_BATCHES = 4  # concurrent pictures are remembered for the time that this many batches take


class Engine:
    """A model with its queue.

    Attributes:
        users: Pictures that wait for this model's answer; it is closed only when there are none.
        failing: The model failed on a picture, and has not worked since.
        pace: How long pictures take at the moment.
    """

    def __init__(
        self, runner: OnnxRunner, settings: Settings, workers: Workers, drawers: Workers, metrics: Metrics
    ) -> None:
        self.runner = runner
        self.detector = Detector(runner.metadata, runner)
        self.model = ModelName(name=runner.metadata.name, version=runner.version, provider=runner.provider)
        self.users = 0
        self.failing = False
        self._running: dict[int, float] = {}  # thread → when its picture or batch began
        self._hanging_s = max(MOST_WORK_S, settings.deadline_s)
        self._max_pixels = settings.max_pixels
        self._workers = workers
        self._drawers = drawers
        self._metrics = metrics
        self._batch_is_set = settings.max_batch > 0
        self._cores = 1  # that a lone picture may have
        self._crowd, self._crowd_until = 1, 0.0  # the most pictures at a time, lately
        self._arrived: deque[Job] = deque()  # to be decoded
        self._batcher: Batcher[Job] = Batcher(settings.max_batch or largest_batch(runner.provider))
        self._warm: Future[None] = Future()
        self._sessions = session_count(settings, runner.provider)
        self.pace = Pace(self._sessions)
        self._free_sessions = threading.Semaphore(self._sessions)  # of those that workers run
        self._session = threading.Thread(target=self._serve, name="session") if runner.provider in OWN_THREAD else None

    @property
    def waiting(self) -> int:
        """Pictures that wait to be decoded, as nearly all of a queue does on the CPU, or for a session."""
        return len(self._arrived) + len(self._batcher)

    @property
    def largest_batch(self) -> int:
        return self._batcher.largest

    @property
    def hangs(self) -> bool:
        """Whether decoding a picture or running a batch takes longer than it ever should: a GPU may never finish."""
        return min(list(self._running.values()), default=math.inf) < perf_counter() - self._hanging_s

    async def warm_up(self, *, every_shape: bool = True) -> None:
        """Runs the canary picture in every shape, on CUDA always, and in the session's thread.

        Raises: What the session raised.
        """
        if self._session is None:
            await asyncio.to_thread(self._warm_up_on_cpu, every_shape)
        else:
            self._session.start()
            # Shielded: the thread sets the future's result, which would be an error if it were cancelled.
            await asyncio.shield(asyncio.wrap_future(self._warm))

    def _warm_up_on_cpu(self, every_shape: bool) -> None:
        """Warms up, and finds out what makes this model fast here: batches, or several cores for a picture."""
        seconds = seconds_per_picture(self.runner, times=3)
        self.pace.expect(seconds)
        quick = seconds < QUICK_S
        self._cores = 1 if quick else max(self.runner.wider, default=1)
        if not (quick or self._batch_is_set):
            self._batcher.largest = 1
        if every_shape:
            self.runner.warm_up(self._batcher.largest)

    def close(self) -> None:
        """Accepts no more pictures; returns once the session's thread has finished what is queued."""
        self._batcher.close()
        if self._session is not None and self._session.ident is not None:
            self._session.join()
            self._warm = Future()  # an error in it refers to that thread's frame, and the frame to the engine

    def begin(self, job: Job) -> None:
        """Takes a picture in; its outcome, or the error in its place, arrives in `job.answered`."""
        # Two clients that each send their next picture once they have an answer look like one at moments.
        if self.users >= self._crowd or job.begun > self._crowd_until:
            self._crowd, self._crowd_until = self.users, job.begun + _CROWD_BATCHES * self.pace.batch_s
        self._arrived.append(job)
        self._workers.submit(self._work)

    def abandon(self, job: Job) -> None:
        """Drops a picture that nobody waits for any more, unless a session has it already."""
        job.abandoned = True
        job.data = b""
        self._drop_if_queued(job)

    def _drop_if_queued(self, job: Job) -> None:
        if self._batcher.cancel(job):
            self._drop(job)

    def _drop(self, job: Job) -> None:
        job.release()
        self._metrics.dropped.inc()

    def _work(self) -> None:
        """On a worker, once for every picture that has arrived."""
        self._decode(self._arrived.popleft())
        if self._session is None:
            self._run_queued()

    def _decode(self, job: Job) -> None:
        if job.abandoned:
            self._drop(job)
            return
        thread = threading.get_ident()
        job.decode_begun = self._running[thread] = perf_counter()
        try:
            decoded = self.detector.decode(job.data, self._max_pixels, job.reserve)
            job.canvas, job.placement = self.detector.fit(decoded)
            del decoded
            job.pixels.shrink(job.placement.canvas.area)
            job.decode_ended = perf_counter()
            self._batcher.put(job.placement.canvas, job, job.deadline)
        except Exception as error:
            job.fail(error)
            return
        finally:
            del self._running[thread]
        if job.abandoned:  # while it was decoded
            self._drop_if_queued(job)

    def _serve(self) -> None:
        """The session's thread, on CUDA."""
        try:
            self.runner.warm_up(self._batcher.largest)
            self.pace.expect(seconds_per_picture(self.runner, self._batcher.largest), self._batcher.largest)
        except BaseException as error:
            self._warm.set_exception(error)
        else:
            self._warm.set_result(None)
        while (batch := self._batcher.take(self._expected_s)) is not None:
            self._run_batch(batch)
            del batch

    def _run_queued(self) -> None:
        """On a worker: runs what is queued if a session is free; if none is, a worker that has one comes back here."""
        while self._worth_running() and self._free_sessions.acquire(blocking=False):
            try:
                batch = self._batcher.take(self._expected_s, wait=False)
                if batch is not None:
                    self._run_batch(batch)
            finally:
                self._free_sessions.release()

    def _worth_running(self) -> bool:
        """Whether there is a batch, or all that could fill it is decoded: asked again after each picture is decoded.

        If the pictures of few users were all in batches, sessions would idle while answers go out and the next pictures
        come in. So half of them may wait. A single session has no other to compete with, and gains from larger batches.
        """
        enough = self._batcher.largest
        if self._sessions > 1:
            enough = min(enough, max(1, self.users // (2 * self._sessions)))
        return len(self._batcher) >= (enough if self._arrived else 1)

    def _expected_s(self) -> float:
        return self.pace.batch_s

    def _run_batch(self, batch: Batch[Job]) -> None:
        for job in batch.late:
            job.fail(Refusal("deadline_exceeded", "The picture waited too long for the model. Try again later."))
            self._metrics.dropped.inc()
        if batch.items:
            thread = threading.get_ident()
            self._running[thread] = perf_counter()
            try:
                self._run(batch.items)
            finally:
                del self._running[thread]

    def _run(self, jobs: Sequence[Job]) -> None:
        cores = max(1, self._cores // self._crowd)
        begun = perf_counter()
        try:
            heads = self.runner.run_batch([job.decoded for job in jobs], cores)
        except Exception as error:
            self._metrics.failed_batches.inc()
            if len(jobs) == 1:
                self.failing = True
                log.exception("The model failed on a picture.")
                jobs[0].fail(error)
                return
            log.warning("A batch of %d failed; its pictures are run one by one: %s", len(jobs), first_line(error))
            for job in jobs:  # one of them may be the cause, and must not fail the others
                self._run([job])
            return
        ended = perf_counter()
        self.pace.note(begun, ended, len(jobs), cores, arrived=max(job.begun for job in jobs))
        self._metrics.batch_size.observe(len(jobs))
        self._metrics.pictures.inc(len(jobs))
        for index, job in enumerate(jobs):
            job.canvas = None
            job.run_begun, job.run_ended = begun, ended
            if self._session is None:
                self._finish(job, heads.of(index))
            else:
                self._workers.submit(partial(self._finish, job, heads.of(index)), urgent=True)

    def _finish(self, job: Job, heads: PictureHeads) -> None:
        if job.abandoned:
            job.release()
            return
        try:
            begun = perf_counter()
            if not _all_finite(heads):
                raise FloatingPointError("the model gave values that are not finite")
            assert job.placement is not None
            found = self.detector.finish(heads, job.placement, job.parameters)
            timing_ms = job.timing_ms(begun, perf_counter())
            for stage, milliseconds in timing_ms.items():
                self._metrics.stages[stage].observe(milliseconds / 1000)
            self._metrics.detections.observe(len(found))
            self.failing = False
            outcome = Outcome(job.placement.picture, found, self.runner.metadata.classes, self.model, timing_ms)
        except Exception as error:
            self.failing = True
            log.exception("Post-processing failed.")
            job.fail(error)
            return
        if job.draw is None:
            job.finish(outcome)
        else:  # drawing may take longer than all before it, and must not delay requests without it
            self._drawers.submit(partial(self._draw, job, job.draw, outcome))

    def _draw(self, job: Job, media_type: str, outcome: Outcome) -> None:
        """Answers with the drawn picture. The pipeline keeps no pixels, so it is decoded once more, in full size."""
        job.release()
        if job.abandoned:
            return
        begun = perf_counter()
        try:
            drawn = self._drawn(job, media_type, outcome)
        except Refusal as refusal:
            job.fail(refusal)
        except Exception as error:
            log.exception("Drawing failed.")
            job.fail(error)
        else:
            seconds = perf_counter() - begun
            self._metrics.stages["draw"].observe(seconds)
            timing_ms = outcome.timing_ms | {"draw": round(seconds * 1000, 3)}
            job.finish(replace(outcome, drawn=drawn, held=job.pixels, timing_ms=timing_ms))

    def _drawn(self, job: Job, media_type: str, outcome: Outcome) -> bytes:
        """Raises: Refusal."""
        if media_type == JPEG and max(outcome.size) > MOST_JPEG_PIXELS:
            raise Refusal(
                "picture_too_large",
                f"A JPEG's sides have at most {MOST_JPEG_PIXELS} pixels, but the picture is {outcome.size.width} x "
                f"{outcome.size.height}. Ask for PNG.",
            )
        area = outcome.size.area

        def reserve(pixels: int) -> None:
            """What decoding takes, of which the picture stays, and WebP's own; and the drawn picture's file."""
            job.reserve(pixels + area)

        picture = decode(job.data, self._max_pixels, reserve=reserve).picture
        return drawing(picture, outcome.answer.detections, media_type)


def _all_finite(heads: PictureHeads) -> bool:
    """Whether all values are finite, told by sums, which a single other value makes infinite or NaN: it is faster."""
    with np.errstate(invalid="ignore"):
        return all(math.isfinite(head.sum()) for head in heads)

"""One picture on its way through the engine."""

import asyncio
import traceback
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.budget import Share
from app.canvas import Placement
from app.errors import Refusal, forget_frames
from app.outcome import Outcome
from app.postprocess import Parameters


@dataclass(eq=False)
class Job:
    """Belongs to one thread at a time, but `answered`, `abandoned` and `settled` to the event loop, which also clears
    the `data` of an abandoned job.

    Attributes:
        draw: The media type of the picture with its boxes, if that is wanted.
        deadline: On `time.perf_counter`'s clock; nobody wants the outcome after it.
        begun: When the picture was handed in, on the same clock, as all times here.
        abandoned: Nobody waits for the outcome any more.
        settled: The engine has nothing more to do with the picture.
        pixels: The share of the pixel budget that the picture holds.
    """

    data: bytes
    parameters: Parameters
    draw: str | None
    deadline: float
    begun: float
    answered: "asyncio.Future[Outcome]"
    pixels: Share
    abandoned: bool = False
    settled: bool = False
    canvas: NDArray[np.uint8] | None = None
    placement: Placement | None = None
    decode_begun: float = 0.0
    decode_ended: float = 0.0
    run_begun: float = 0.0
    run_ended: float = 0.0

    @property
    def decoded(self) -> NDArray[np.uint8]:
        """The canvas, which a job has from its decoding to its run."""
        assert self.canvas is not None
        return self.canvas

    def reserve(self, pixels: int) -> None:
        """Enlarges the share. Raises: Refusal: `overloaded`: The budget has not that many pixels left."""
        if not self.pixels.grow(pixels):
            budget = self.pixels.budget
            raise Refusal(
                "overloaded",
                f"{budget.used} pixels are being processed, and at most {budget.limit} may be. Try again later.",
                headers={"Retry-After": "1"},
            )

    def release(self) -> None:
        """Frees the canvas and the share of the pixel budget."""
        self.canvas = None
        self.pixels.shrink(0)

    def finish(self, outcome: Outcome) -> None:
        """From any thread. A drawn picture counts for the budget until the outcome is let go."""
        self.pixels.shrink(len(outcome.drawn or b"") // 4)
        self.answered.get_loop().call_soon_threadsafe(self._settle, outcome, None)

    def fail(self, error: Exception) -> None:
        """From any thread."""
        self.release()
        if not isinstance(error, Refusal):  # a failure: the log must say where it came from
            error.add_note("".join(traceback.format_exception(error)))
        forget_frames(error)
        self.answered.get_loop().call_soon_threadsafe(self._settle, None, error)

    def _settle(self, outcome: Outcome | None, error: Exception | None) -> None:
        self.settled = True
        self.data = b""
        if self.answered.done():  # its client has left, or its deadline has passed
            self.pixels.shrink(0)
            return
        if outcome is not None:
            self.answered.set_result(outcome)
        else:
            assert error is not None
            self.answered.set_exception(error)

    def timing_ms(self, finish_begun: float, finished: float) -> dict[str, float]:
        """Returns: What each stage took. `queue` is all the waiting: for a thread, the session, a thread again."""
        waited = (
            (self.decode_begun - self.begun)
            + (self.run_begun - self.decode_ended)
            + (finish_begun - self.run_ended)
        )  # fmt: skip
        return {
            "decode": _ms(self.decode_ended - self.decode_begun),
            "queue": _ms(waited),
            "inference": _ms(self.run_ended - self.run_begun),
            "postprocess": _ms(finished - finish_begun),
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

"""A client of the service: this file and httpx, nothing else.

with Client("http://127.0.0.1:8000") as client:
    for found in client.detect("cat.jpg", score_threshold=0.5).detections:
        print(found.label, found.score, found.box.xyxy)

`AsyncClient` has the same methods as coroutines. What is answered with 503 or 429 and Retry-After is tried again.
"""

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx

Picture = bytes | str | os.PathLike[str]  # a whole picture file's bytes, or its path
Query = dict[str, Any]
T = TypeVar("T")

DEFAULT_ADDRESS = "http://127.0.0.1:8000"
LONGEST_WAIT_S = 30.0
_ANSWERS_PER_PLACE = 10  # after so many, one that a refusal took away is tried again


@dataclass(frozen=True)
class Box:
    """Pixels of the upright picture, from its top-left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.xmin, self.ymin, self.xmax, self.ymax


@dataclass(frozen=True)
class Detection:
    label: str
    class_id: int
    score: float  # in (0, 1]
    box: Box


@dataclass(frozen=True)
class Answer:
    """What was found in one picture, best first."""

    detections: tuple[Detection, ...]
    width: int  # of the upright picture, which is the frame of the boxes
    height: int
    model: dict[str, str]  # name, version, provider
    timing_ms: dict[str, float]  # milliseconds of each stage

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Args: document: An answer of POST /detect. Members that are not known here are passed over."""
        detections = tuple(
            Detection(one["label"], one["class_id"], one["score"], _box(one["box"])) for one in document["detections"]
        )
        size = document["image"]
        return cls(detections, size["width"], size["height"], document["model"], document["timing_ms"])


class ServiceProblem(Exception):
    """The service's refusal of a request, or of one picture of a batch; or an answer that is not the service's own.

    Attributes:
        code: Stable, for programs: `not_a_picture`, `unknown_class`, ...; `unknown` of what the service did not send.
        status: The HTTP status.
        detail: What is wrong and what to do, for people.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.code = str(document.get("code", "unknown"))
        self.status = int(document.get("status", 0))
        self.detail = str(document.get("detail", "The service gave no reason."))
        super().__init__(f"{self.detail} ({self.code}, {self.status})")


class Client:
    """Talks to the service over one pool of connections.

    Args:
        address: Where the service is.
        api_key: Where it asks for one.
        timeout_s: To connect, and between any two pieces of what is sent or received.
        retries: Of an answer of 503 or 429 with Retry-After.
        transport: How httpx reaches the service, where that is not the network.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        timeout_s: float = 60,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=address, headers=_headers(api_key), timeout=timeout_s, transport=transport)
        self._retries = retries
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def detect(
        self,
        picture: Picture,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Iterable[str] | None = None,
        class_agnostic: bool = False,
    ) -> Answer:
        """Finds objects in a picture. A parameter that is None has the model's default.

        Raises:
            ServiceProblem: The service refuses the picture or the parameters, or stays busy.
            httpx.TransportError: It cannot be reached.
            OSError: The file cannot be read.
        """
        query = _query(score_threshold, iou_threshold, max_detections, classes, class_agnostic)
        return _parsed(self._send("POST", "/detect", params=query, content=_read(picture)), Answer.of)

    def detect_batch(self, pictures: Sequence[Picture], **parameters: Any) -> list[Answer | ServiceProblem]:
        """Finds objects in several pictures in one request; `parameters` are those of `detect`.

        Returns: In order, each picture's answer or, not raised, its problem.
        """
        response = self._send("POST", "/detect/batch", params=_query(**parameters), files=_form(pictures))
        return _parsed(response, _results)

    def draw(self, picture: Picture, kind: Literal["png", "jpeg"] = "png", **parameters: Any) -> bytes:
        """Returns: The picture with its boxes, as the bytes of a file; `parameters` are those of `detect`."""
        query = _query(**parameters) | {"draw": kind}
        return _picture(self._send("POST", "/detect", params=query, content=_read(picture)))

    def model(self) -> dict[str, Any]:
        """Returns: What is served: class names, canvases, provider, version, AP, ..."""
        return _parsed(self._send("GET", "/model"), dict)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            response = self._http.request(method, path, **request)
            wait_s = _wait_s(response)
            if wait_s is None or attempt == self._retries:
                break
            self._sleep(wait_s)
        return _checked(response)


class AsyncClient:
    """`Client`, with coroutines.

    Args:
        at_once: How many requests there are at a time at most, however many coroutines ask: more than the service has
            places for would be refused, and their pictures all be in memory. Refusals make them fewer for a while, or
            new pictures would take the places that the refused ones wait for.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        timeout_s: float = 60,
        retries: int = 3,
        at_once: int = 16,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=address, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )
        self._retries = retries
        self._at_once = at_once
        self._places = asyncio.Semaphore(at_once)
        self._lacking = 0  # places that refusals took away
        self._to_take = 0  # of these, once they are free
        self._refused = 0  # that wait for their turn
        self._answered = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def detect(
        self,
        picture: Picture,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Iterable[str] | None = None,
        class_agnostic: bool = False,
    ) -> Answer:
        """See `Client.detect`."""
        query = _query(score_threshold, iou_threshold, max_detections, classes, class_agnostic)
        return _parsed(await self._send("POST", "/detect", query, lambda: {"content": _read(picture)}), Answer.of)

    async def detect_batch(self, pictures: Sequence[Picture], **parameters: Any) -> list[Answer | ServiceProblem]:
        """See `Client.detect_batch`."""
        query = _query(**parameters)
        return _parsed(await self._send("POST", "/detect/batch", query, lambda: {"files": _form(pictures)}), _results)

    async def draw(self, picture: Picture, kind: Literal["png", "jpeg"] = "png", **parameters: Any) -> bytes:
        """See `Client.draw`."""
        query = _query(**parameters) | {"draw": kind}
        return _picture(await self._send("POST", "/detect", query, lambda: {"content": _read(picture)}))

    async def model(self) -> dict[str, Any]:
        """See `Client.model`."""
        return _parsed(await self._send("GET", "/model"), dict)

    async def _send(
        self, method: str, path: str, query: Query | None = None, read: Callable[[], dict[str, Any]] = dict
    ) -> httpx.Response:
        await self._places.acquire()
        refused = False
        try:
            body = await asyncio.to_thread(read)
            for attempt in range(self._retries + 1):
                response = await self._http.request(method, path, params=query, **body)
                wait_s = _wait_s(response)
                if wait_s is None or attempt == self._retries:
                    break
                if not refused:
                    refused = True
                    self._note_refusal()
                await asyncio.sleep(wait_s)
        finally:
            self._refused -= refused
            self._give_place_back()
        return _checked(response)

    def _note_refusal(self) -> None:
        self._refused += 1
        if self._lacking < self._at_once - 1:
            self._lacking += 1
            self._to_take += 1

    def _give_place_back(self) -> None:
        if self._to_take:
            self._to_take -= 1
            return
        self._places.release()
        self._answered += 1
        if self._lacking and not self._refused and self._answered % _ANSWERS_PER_PLACE == 0:
            self._lacking -= 1
            self._places.release()


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _query(
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
    classes: Iterable[str] | None = None,
    class_agnostic: bool = False,
) -> Query:
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names, but is the string {classes!r}: write [{classes!r}]")
    classes = None if classes is None else list(classes)
    if classes == []:  # in a query it would be nothing, which means all of them
        raise ValueError("classes is empty, which finds nothing: leave it out to find all")
    values = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "max_detections": max_detections,
        "classes": classes,
        "class_agnostic": class_agnostic or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _read(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _form(pictures: Sequence[Picture]) -> list[tuple[str, tuple[str, bytes]]]:
    if isinstance(pictures, (str, bytes, Path)):
        raise ValueError("detect_batch takes a list of pictures, but got one: write [picture], or use detect")
    if not pictures:
        raise ValueError("there are no pictures to detect objects in: give at least one")
    return [("images", (f"{number}", _read(picture))) for number, picture in enumerate(pictures)]


def _box(sides: dict[str, float]) -> Box:
    return Box(sides["xmin"], sides["ymin"], sides["xmax"], sides["ymax"])


def _results(document: dict[str, Any]) -> list[Answer | ServiceProblem]:
    return [
        ServiceProblem(result["problem"]) if "problem" in result else Answer.of(result)
        for result in document["results"]
    ]


def _parsed(response: httpx.Response, reading: Callable[[dict[str, Any]], T]) -> T:
    """Raises: ServiceProblem: It is no answer of the service's: a login page, say."""
    try:
        return reading(response.json())
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _not_the_services(response) from None


def _picture(response: httpx.Response) -> bytes:
    """Raises: ServiceProblem: It is none."""
    if not response.headers.get("Content-Type", "").startswith("image/"):
        raise _not_the_services(response)
    return response.content


def _wait_s(response: httpx.Response) -> float | None:
    """Returns: How long to wait before the next attempt; None where there is to be none."""
    if response.status_code not in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        return None
    try:
        asked_s = float(response.headers["Retry-After"])
    except (KeyError, ValueError):  # an HTTP date is allowed too, but the service sends none
        return None
    if not 0 <= asked_s < math.inf:
        return None
    # Clients that were refused together must not come back together.
    return min(asked_s, LONGEST_WAIT_S) * random.uniform(1, 1.5)  # noqa: S311


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        document = response.json()
    except ValueError:  # a proxy's page, say
        document = None
    if not isinstance(document, dict):
        raise _not_the_services(response)
    raise ServiceProblem({**document, "status": response.status_code})


def _not_the_services(response: httpx.Response) -> ServiceProblem:
    detail = f"The answer is not the service's: {response.text[:200]!r}. See what stands between."
    if response.has_redirect_location:
        detail = f"Something answers that the service is at {response.headers['Location']}: give that address."
    return ServiceProblem({"code": "unknown", "status": response.status_code, "detail": detail})

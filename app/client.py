"""A client of the service: this file, httpx, and Python 3.11 or newer.

with Client("http://127.0.0.1:8000") as client:
    for found in client.detect("cat.jpg", score_threshold=0.5).detections:
        print(found.label, found.score, found.box.xyxy)

`AsyncClient` has the same methods as coroutines. A request is tried again if it is answered with 503 or 429 and
Retry-After, or if the connection breaks before an answer: asking twice changes nothing in the service.
"""

import asyncio
import io
import math
import os
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar

import httpx

# A whole picture file's bytes, its path, or the file itself, opened in binary mode.
Picture = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes]
T = TypeVar("T")

DEFAULT_ADDRESS = "http://127.0.0.1:8000"
LONGEST_WAIT_S = 30.0
_BROKEN_WAIT_S = 1.0  # nothing says for how long; a starting service asks for the same
_LATE_S = 0.5  # after a deadline, to wait for the service's own refusal
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_ANSWERS_PER_PLACE = 10  # after this many answers, a place that a refusal took away comes back
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # the service replaces any other by its own


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
        """Args: document: An answer of POST /detect. Unknown members are ignored."""
        detections = tuple(
            Detection(one["label"], one["class_id"], one["score"], _box(one["box"])) for one in document["detections"]
        )
        size = document["image"]
        return cls(detections, size["width"], size["height"], document["model"], document["timing_ms"])


class ServiceProblem(Exception):
    """The service's refusal of a request, or of one picture of a batch; or an answer that is not the service's own.

    Attributes:
        code: Stable, for programs: `not_a_picture`, `unknown_class`, ...; `unknown` if the service did not send it.
        status: The HTTP status.
        detail: What is wrong and what to do, for people.
        document: The whole problem document: `nearest` of an unknown class, ...
        request_id: The request's id in the service's log; None if the answer has none.
    """

    def __init__(self, document: dict[str, Any], request_id: str | None = None) -> None:
        super().__init__(document, request_id)
        self.code = str(document.get("code", "unknown"))
        self.status = int(document.get("status", 0))
        self.detail = str(document.get("detail", "The service gave no reason."))
        self.document = document
        self.request_id = request_id

    def __str__(self) -> str:
        # An id that is not the service's may be of any length.
        own = self.request_id is not None and _REQUEST_ID.fullmatch(self.request_id)
        request = f", request {self.request_id}" if own else ""
        return f"{self.detail} ({self.code}, {self.status}{request})"


class Client:
    """Talks to the service over one pool of connections.

    Args:
        address: Where the service is, with its http:// or https://.
        api_key: If the service requires one.
        timeout_s: To connect, and between any two pieces of what is sent or received.
        retries: How often to try again after 503 or 429 with Retry-After, a connection that broke, or one that was
            refused though this client has had an answer. A service that was never there is not waited for.
        transport: How httpx reaches the service, if not over the network.
        sleep: Waits between attempts; for tests.

    Raises:
        ValueError: The address or the key cannot be one.
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
        self._connect = partial(
            httpx.Client, base_url=_url(address), headers=_headers(api_key), timeout=timeout_s, transport=transport
        )
        self._http, self._process = self._connect(), os.getpid()
        self._retries = retries
        self._sleep = sleep
        self._reached = False  # by any request

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
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Finds objects in a picture. A parameter that is None takes the model's default.

        Args:
            deadline_s: How long an answer is of use, from when the picture is first sent. After it the service refuses,
                nothing is tried again, and a service that does not answer is not waited for. If it is None or longer
                than the service's own deadline, that one applies.
            request_id: The request's id in the service's log: up to 64 letters, digits, `.`, `_` and `-`.

        Raises:
            ServiceProblem: The service refuses the picture or the parameters, or stays busy.
            httpx.TransportError: The service cannot be reached, or the connection breaks each time.
            OSError: The file cannot be read.
            TypeError, ValueError: An argument cannot be sent.
        """
        asked = _Asked(score_threshold, iou_threshold, max_detections, classes, class_agnostic, deadline_s, request_id)
        return _parsed(self._send("POST", "/detect", asked, content=_read(picture)), Answer.of)

    def detect_batch(self, pictures: Sequence[Picture], **parameters: Any) -> list[Answer | ServiceProblem]:
        """Finds objects in several pictures in one request; `parameters` are those of `detect`.

        Returns: In order, each picture's answer, or its problem, which is not raised.
        """
        return _results(self._send("POST", "/detect/batch", _Asked(**parameters), files=_form(pictures)))

    def draw(self, picture: Picture, kind: Literal["png", "jpeg"] = "png", **parameters: Any) -> bytes:
        """Returns: The picture with its boxes, as the bytes of a file; `parameters` are those of `detect`."""
        return _picture(self._send("POST", "/detect", _Asked(**parameters, draw=kind), content=_read(picture)))

    def model(self) -> dict[str, Any]:
        """Returns: What is served: class names, canvases, provider, version, AP, ..."""
        return _parsed(self._send("GET", "/model", _Asked()), dict)

    def _send(self, method: str, path: str, asked: "_Asked", **body: Any) -> httpx.Response:
        # A forked process has its parent's connections: on them, each would get answers to the other's pictures.
        if self._process != os.getpid():
            self._http, self._process = self._connect(), os.getpid()
        request = self._http.build_request(method, path, params=asked.query, headers=asked.headers, **body)
        attempts = _Attempts(request, self._retries, asked.deadline_s)
        while True:
            try:
                response = self._http.send(attempts.next())
                self._reached = True
                wait_s = attempts.after_s(response)
                if wait_s is None:
                    return _checked(response)
            except httpx.TransportError as error:
                wait_s = attempts.after_break_s(error, self._reached)
            self._sleep(wait_s)


class AsyncClient:
    """`Client`, with coroutines.

    Args:
        at_once: The most requests at a time, however many coroutines ask: more than the service has places for would be
            refused, and all their pictures be in memory. Refusals and broken connections lower it for a while, or new
            pictures would take the places that the refused ones wait for.
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
        self._connect = partial(
            httpx.AsyncClient, base_url=_url(address), headers=_headers(api_key), timeout=timeout_s, transport=transport
        )
        self._at_once = at_once
        self._http, self._places = self._connect(), _Places(at_once)
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the last request
        self._retries = retries
        self._reached = False  # by any request

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
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """See `Client.detect`."""
        asked = _Asked(score_threshold, iou_threshold, max_detections, classes, class_agnostic, deadline_s, request_id)
        return _parsed(await self._send("POST", "/detect", asked, lambda: {"content": _read(picture)}), Answer.of)

    async def detect_batch(self, pictures: Sequence[Picture], **parameters: Any) -> list[Answer | ServiceProblem]:
        """See `Client.detect_batch`."""
        asked = _Asked(**parameters)
        return _results(await self._send("POST", "/detect/batch", asked, lambda: {"files": _form(pictures)}))

    async def draw(self, picture: Picture, kind: Literal["png", "jpeg"] = "png", **parameters: Any) -> bytes:
        """See `Client.draw`."""
        asked = _Asked(**parameters, draw=kind)
        return _picture(await self._send("POST", "/detect", asked, lambda: {"content": _read(picture)}))

    async def model(self) -> dict[str, Any]:
        """See `Client.model`."""
        return _parsed(await self._send("GET", "/model", _Asked()), dict)

    async def _send(
        self, method: str, path: str, asked: "_Asked", read: Callable[[], dict[str, Any]] = dict
    ) -> httpx.Response:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):  # connections and places are of the loop, and process, that they began in
            self._http, self._places = self._connect(), _Places(self._at_once)
        self._loop, http = loop, self._http
        async with self._places.one() as note_refusal:
            body = await asyncio.to_thread(read)
            request = http.build_request(method, path, params=asked.query, headers=asked.headers, **body)
            attempts = _Attempts(request, self._retries, asked.deadline_s)
            while True:
                try:
                    response = await http.send(attempts.next())
                    self._reached = True
                    wait_s = attempts.after_s(response)
                    if wait_s is None:
                        return _checked(response)
                except httpx.TransportError as error:
                    wait_s = attempts.after_break_s(error, self._reached)
                note_refusal()
                await asyncio.sleep(wait_s)


@dataclass
class _Asked:
    """What a call asks for, besides its pictures. Raises: ValueError: It cannot be sent."""

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    classes: Iterable[str] | None = None
    class_agnostic: bool = False
    deadline_s: float | None = None
    request_id: str | None = None
    draw: str | None = None

    def __post_init__(self) -> None:
        names, deadline_s, request_id = self.classes, self.deadline_s, self.request_id
        if isinstance(names, str):
            raise ValueError(f"classes must be a list of names, but is the string {names!r}: write [{names!r}]")
        self.classes = None if names is None else list(names)
        if self.classes == []:  # a query would have none, which means all of them
            raise ValueError("classes is empty, which finds nothing: leave it out to find all")
        if deadline_s is not None and not 0 < deadline_s < math.inf:
            raise ValueError(f"deadline_s is {deadline_s}: give seconds, more than 0, or leave it out")
        if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
            raise ValueError(f"request_id is {request_id!r}: give 1 to 64 letters (a to z), digits, '.', '_' or '-'")

    @property
    def query(self) -> dict[str, Any]:
        values = dict(vars(self))
        del values["deadline_s"], values["request_id"]  # which are headers
        return {name: value for name, value in values.items() if value is not None and value is not False}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.request_id is None else {"X-Request-Id": self.request_id}


class _Attempts:
    """The attempts at one request, all the same: how many are left, and until when an answer is of use."""

    def __init__(self, request: httpx.Request, retries: int, deadline_s: float | None) -> None:
        if request.method == "POST":  # a form has its own; if there is none, some gateways fill in a wrong one
            request.headers.setdefault("Content-Type", "application/octet-stream")
        self._request = request
        self._timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        self._left = retries
        self._until = math.inf if deadline_s is None else time.monotonic() + deadline_s

    def next(self) -> httpx.Request:
        """Returns: The request, with the time that is left as its deadline."""
        if self._until < math.inf:
            left_s = max(self._until - time.monotonic(), 0.001)
            self._request.headers["X-Deadline-Ms"] = str(math.ceil(left_s * 1000))
            # A service that answers says itself when it is late; one that does not must not be waited for longer.
            longest_s = left_s + _LATE_S
            self._request.extensions["timeout"] = {
                step: longest_s if timeout_s is None else min(timeout_s, longest_s)
                for step, timeout_s in self._timeouts.items()
            }
        return self._request

    def after_s(self, response: httpx.Response) -> float | None:
        """Returns: How long to wait before the next attempt; None if this response is final."""
        return self._wait_s(_busy_s(response))

    def after_break_s(self, error: httpx.TransportError, reached: bool) -> float:
        """Returns: The same, if there was no response. Raises: httpx.TransportError: There is no next attempt."""
        # A service that restarts is waited for; one that was never there, or is too slow, is not.
        restarts = isinstance(error, _BROKEN) or (reached and isinstance(error, httpx.ConnectError))
        wait_s = self._wait_s(_BROKEN_WAIT_S if restarts else None)
        if wait_s is None:
            raise _unanswered(error) from error
        return wait_s

    def _wait_s(self, asked_s: float | None) -> float | None:
        """Args: asked_s: How long the last attempt's outcome asks to wait; None if it is final."""
        if asked_s is None or self._left <= 0:
            return None
        self._left -= 1
        # Clients that were refused together must not come back together.
        wait_s = min(asked_s, LONGEST_WAIT_S) * random.uniform(1, 1.5)  # noqa: S311
        return wait_s if time.monotonic() + wait_s < self._until else None


class _Places:
    """How many requests an `AsyncClient` has at a time: `most`, and fewer for a while after refusals."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._lacking = 0  # that refusals took away
        self._to_take = 0  # of these, once they are free
        self._refused = 0  # requests that wait to be tried again
        self._answered = 0

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[Callable[[], None]]:
        """Waits for a place, and keeps it for a request. Yields: What to call when that is refused; once counts."""
        await self._free.acquire()
        refused = False

        def note_refusal() -> None:
            nonlocal refused
            if not refused:
                refused = True
                self._refused += 1
                if self._lacking < self._most - 1:
                    self._lacking += 1
                    self._to_take += 1

        try:
            yield note_refusal
        finally:
            self._refused -= refused
            if self._to_take:
                self._to_take -= 1
            else:
                self._free.release()
                self._answered += 1
                if self._lacking and not self._refused and self._answered % _ANSWERS_PER_PLACE == 0:
                    self._lacking -= 1
                    self._free.release()


def _url(address: str) -> str:
    if not re.match("https?://", address, re.IGNORECASE):  # httpx would take a host's name for a scheme
        raise ValueError(f"address is {address!r}: begin it with http:// or https://")
    return address


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()  # as read from a file, with the line's end, or from a variable that is not set
    if not key.isascii() or not key.isprintable():
        raise ValueError("api_key holds characters that a header cannot: a key is ASCII letters, digits and symbols")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _read(picture: Picture) -> bytes:
    """Raises: TypeError: It neither holds nor names a picture; OSError: The file cannot be read."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, (str, os.PathLike)):
        return Path(picture).read_bytes()
    data = picture.read() if hasattr(picture, "read") and not isinstance(picture, io.TextIOBase) else None
    if not isinstance(data, bytes):
        raise TypeError(
            f"A picture is a file's bytes, its path, or a file opened in binary mode, but this is a "
            f"{type(picture).__name__}. Pixels must be encoded first, as PNG or JPEG."
        )
    return data


def _form(pictures: Sequence[Picture]) -> list[tuple[str, tuple[str, bytes]]]:
    # A file is iterable, too: it would give its lines.
    if isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(pictures, "read"):
        raise ValueError("detect_batch takes a list of pictures, but got one: write [picture], or use detect")
    if not pictures:
        raise ValueError("there are no pictures to detect objects in: give at least one")
    return [("images", (f"{number}", _read(picture))) for number, picture in enumerate(pictures)]


def _box(sides: dict[str, float]) -> Box:
    return Box(sides["xmin"], sides["ymin"], sides["xmax"], sides["ymax"])


def _results(response: httpx.Response) -> list[Answer | ServiceProblem]:
    def read(result: dict[str, Any]) -> Answer | ServiceProblem:
        return _problem(result["problem"], response) if "problem" in result else Answer.of(result)

    return _parsed(response, lambda document: [read(result) for result in document["results"]])


def _parsed(response: httpx.Response, reading: Callable[[dict[str, Any]], T]) -> T:
    """Raises: ServiceProblem: It is not the service's answer, but for example a login page."""
    try:
        return reading(response.json())
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise _not_the_services(response) from None


def _picture(response: httpx.Response) -> bytes:
    """Raises: ServiceProblem: It is not a picture."""
    if not response.headers.get("Content-Type", "").startswith("image/"):
        raise _not_the_services(response)
    return response.content


def _busy_s(response: httpx.Response) -> float | None:
    """Returns: How long the service asks to wait; None if it is not busy, or does not say."""
    if response.status_code not in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        return None
    asked = response.headers.get("Retry-After", "")
    try:
        # The service gives seconds; a proxy in front of it may give a date.
        asked_s = float(asked) if asked[:1].isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, asked_s)


def _unanswered(error: httpx.TransportError) -> httpx.TransportError:
    """Returns: The same error, with the address, which httpx leaves out."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    message = f"The service at {url.scheme}://{url.netloc.decode()} gave no answer: {reason}"
    return type(error)(message, request=error.request)


def _checked(response: httpx.Response) -> httpx.Response:
    """Raises: ServiceProblem: It is a refusal."""
    if response.is_success:
        return response
    try:
        document = response.json()
    except (ValueError, RecursionError):  # such as a proxy's page
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("detail"), str):
        raise _not_the_services(response)
    raise _problem({**document, "status": response.status_code}, response)


def _problem(document: dict[str, Any], response: httpx.Response) -> ServiceProblem:
    return ServiceProblem(document, response.headers.get("X-Request-Id"))


def _not_the_services(response: httpx.Response) -> ServiceProblem:
    try:
        text = response.text
    except UnicodeError:  # a charset that its bytes are not of
        text = response.content.decode("latin-1")
    detail = f"The answer is not the service's: {text[:200]!r}. Check for a proxy in between."
    if response.has_redirect_location:
        detail = f"The answer says that the service is at {response.headers['Location']}: use that address."
    return _problem({"code": "unknown", "status": response.status_code, "detail": detail}, response)

"""Every refusal: code, HTTP status, title and message; and the errors that keep the service from starting.

Nothing here deals with HTTP itself: `problems.py` answers requests with a `Refusal`'s problem document (RFC 9457).
"""

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

NO_THREADS = "The system allows no more threads: raise the limit, a container's (pids) or the user's (ulimit -u)."


class StartError(Exception):
    """The service cannot start. The message is one sentence for the person who started it; the exit code is 2."""


class ArtifactError(StartError):
    """The model file is missing, not ours, or breaks the contract of `artifact.py`."""


class ProviderError(StartError):
    """The execution provider that was asked for is not available."""


class SettingsError(StartError):
    """A setting has a value that cannot be used, or is unknown."""


class Kind(NamedTuple):
    """What one kind of refusal is to a client of the service.

    Attributes:
        status: The HTTP status.
        more: A sentence that follows the message: where the service says more.
    """

    status: int
    title: str
    more: str = ""


# Clients may rely on the codes: never rename one.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "empty_body": Kind(400, "No picture was sent"),
        "malformed_request": Kind(400, "The request cannot be read"),
        "unauthorized": Kind(401, "A key is required"),
        "forbidden": Kind(403, "This is not allowed here"),
        "not_found": Kind(404, "There is nothing at this address"),
        "method_not_allowed": Kind(405, "This address does not take this method"),
        "not_acceptable": Kind(406, "No acceptable kind of answer"),
        "request_timeout": Kind(408, "The request took too long to arrive"),
        "reload_running": Kind(409, "The model is being reloaded already"),
        "picture_too_large": Kind(413, "The picture has too many pixels"),
        "body_too_large": Kind(413, "The request is too large"),
        "unsupported_media_type": Kind(415, "The request's content type is not accepted"),
        "not_a_picture": Kind(415, "The bytes are not a picture that can be read"),
        "corrupt_picture": Kind(422, "The picture is damaged"),
        "invalid_parameter": Kind(422, "A parameter cannot be used"),
        "unknown_class": Kind(422, "The model does not know this class", "GET /model lists all."),
        "model_refused": Kind(422, "The model file cannot be served"),
        "too_many_requests": Kind(429, "This key has too many requests at a time"),
        "internal_error": Kind(500, "The service failed"),
        "not_ready": Kind(503, "The service is not ready"),
        "overloaded": Kind(503, "The service has all the work that it can handle"),
        "deadline_exceeded": Kind(504, "There was no answer in time"),
    }
)


class Refusal(Exception):
    """A request, or one picture, that gets no answer.

    Args:
        code: One of `KINDS`.
        message: One or two sentences for the client: what is wrong, and what to do.
        headers: HTTP headers that go with the answer.
        members: Further members of the problem document.
    """

    def __init__(self, code: str, message: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = KINDS[code]
        self.headers = dict(headers or {})
        self.members = members

    def problem(self) -> dict[str, Any]:
        """Returns: The problem document, as RFC 9457 lays it out."""
        return {
            "type": f"urn:fcos-detect:problem:{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": f"{self.message} {self.kind.more}".rstrip(),
            "code": self.code,
            **self.members,
        }


def failed(what: str) -> Refusal:
    """Returns: The refusal of a request or a picture on which the service itself failed."""
    return Refusal("internal_error", f"The service failed on this {what}; its log says how.")


def forget_frames(error: BaseException) -> None:
    """Keeps an error from holding what it passed through, such as the picture that could not be decoded.

    The frames that handle the error refer to it, and it to them: all that they hold, pictures of any size, would wait
    for the garbage collector, and count for no bound meanwhile.
    """
    reason: BaseException | None = error
    while reason is not None:
        traceback.clear_frames(reason.__traceback__)
        reason = reason.__context__
    error.__traceback__ = error.__cause__ = error.__context__ = None  # to frames that run: these cannot be cleared


def first_line(error: BaseException) -> str:
    """Returns: The first line of a library's exception; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def first_fault(error: ValidationError) -> str:
    """Returns: The first fault of a validation in a few words: where, what value, what was expected."""
    fault = error.errors(include_url=False)[0]
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    where = ".".join(str(key) for key in fault["loc"])
    if not where:
        return message
    if fault["type"] == "missing":
        return f"`{where}` is missing"
    if fault["type"] == "extra_forbidden":
        return f"`{where}` is not known"
    value = repr(fault["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"`{where}` has value {value} ({message})"

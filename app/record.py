"""What is known about a request while it is answered."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

_KEY = "fcos.record"


@dataclass
class Record:
    """One request.

    Attributes:
        path: Of the address, as routes and `addresses` have it: below where the application is mounted.
        headers: By name in lower case; of a repeated one the last, or all values of a list.
        begun, deadline: On `time.perf_counter`'s clock; only pictures have a deadline.
        timing_ms: Of the stages so far.
        status: Of the answer; 0 before it has begun.
        code: Of its refusal, one of `errors.KINDS`; empty if it was not refused.
        key: The first digits of the SHA-256 of the key that it brought; empty if none is required.
        trace_id: Of its trace, if there is one.
    """

    request_id: str
    path: str
    headers: Mapping[bytes, bytes]
    begun: float
    deadline: float = math.inf
    timing_ms: dict[str, float] = field(default_factory=dict)
    status: int = 0
    code: str = ""
    key: str = ""
    trace_id: str = ""


def note_record(scope: Scope, record: Record) -> None:
    scope[_KEY] = record


def record_of(scope: Scope) -> Record:
    record: Record = scope[_KEY]
    return record


def header(scope: Scope, name: bytes) -> str:
    """Returns: A request's header; empty if it has none of that name."""
    return record_of(scope).headers.get(name, b"").decode("latin-1").strip(" \t")


def content_length(scope: Scope) -> int | None:
    """Returns: How long a request's body is said to be; None if it is not said."""
    text = header(scope, b"content-length")
    # Any number of zeros may stand before it, but Python reads no number of more than 4,300 digits.
    return int(text.lstrip("0")[:20] or "0") if text.isdecimal() else None

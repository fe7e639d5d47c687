"""The pictures of a request: its body, or files of a form."""

import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import Refusal
from app.images import FORMATS_TEXT
from app.record import header

FIELD = "image"  # of POST /detect
FIELDS = "images"  # of POST /detect/batch; repeated
MOST_PICTURES = 32  # of one POST /detect/batch

_CURLS = "application/x-www-form-urlencoded"  # what `curl --data-binary` says unless it is told otherwise
BINARY = {"schema": {"type": "string", "format": "binary"}}
_LONGEST_TYPE = 1000  # characters of a content type: one of 60,000 takes Starlette's parser 40 ms, twice
_CHARSETS = frozenset((b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1"))  # of a form's names
_MOST_BOUNDARIES = 1000  # far more than a form of too many pictures has, which is told so
_LOOKED_AT = 1000  # bytes, among which every picture has some that are no text
_LONGEST_PADDING = 128  # spaces and tabs behind a boundary
_INDEX = re.compile(r"\[[0-9]*\]\Z")  # as PHP and axios write repeated fields: images[], images[0]


def body_docs(description: str, field: str, schema: Mapping[str, object], **content: object) -> dict[str, object]:
    """Returns: OpenAPI's `requestBody` of a form with one field, and of further kinds of content."""
    form = {
        "schema": {"type": "object", "properties": {field: schema}, "required": [field], "additionalProperties": False}
    }
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {"multipart/form-data": form, **content},
        }
    }


PICTURE_BODY = body_docs(
    f"A picture. {FORMATS_TEXT} can be read; of an animated one, the first frame is taken. A body without a content "
    f"type, or with curl's {_CURLS}, is read as a picture, too.",
    FIELD,
    BINARY["schema"] | {"description": "The picture file."},
    **{"image/*": BINARY, "application/octet-stream": BINARY},
)
PICTURES_BODY = body_docs(
    f"Pictures, at most {MOST_PICTURES}, each a file in the field `{FIELDS}`.",
    FIELDS,
    # With bounds, clients generated for Go do not compile.
    {"type": "array", "items": BINARY["schema"], "description": f"Picture files, at most {MOST_PICTURES}."},
)


async def picture_bytes(request: Request) -> bytes:
    """Reads the picture from a multipart field or from the body.

    A body without a content type, or with the one that curl puts there, is taken as a picture: its bytes decide what
    it is anyway. No browser sends it from another site more easily than a multipart form.

    Raises:
        Refusal: `empty_body`, `malformed_request`, `not_a_picture` or `unsupported_media_type`.
    """
    media_type = _media_type(request)
    if media_type == "multipart/form-data":
        return (await _files(request, FIELD, most=1))[0]
    data = await request.body()
    if not data:
        raise Refusal(
            "empty_body",
            f"The request has no body. Send the picture as the body, or in the multipart field `{FIELD}`.",
        )
    if media_type == _CURLS and _is_text(data[:_LOOKED_AT]):
        raise Refusal(
            "not_a_picture",
            f"The body is a form's text, not a picture. With curl: --data-binary @cat.jpg, or -F {FIELD}=@cat.jpg.",
        )
    if media_type not in ("", "application/octet-stream", _CURLS) and not media_type.startswith("image/"):
        raise Refusal(
            "unsupported_media_type",
            f"The content type {media_type[:100]} is not accepted. Send the picture's bytes as `image/*`, "
            f"such as `Content-Type: image/jpeg`, or as multipart/form-data in the field `{FIELD}`.",
        )
    return data


def _is_text(data: bytes) -> bool:
    return data.isascii() and data.decode().isprintable()


async def pictures_bytes(request: Request) -> list[bytes]:
    """Reads the pictures of a form, in order.

    Raises:
        Refusal: `malformed_request` or `unsupported_media_type`.
    """
    media_type = _media_type(request)
    if media_type != "multipart/form-data":
        raise Refusal(
            "unsupported_media_type",
            f"The content type {media_type[:100] or '(none)'} is not accepted here. Send the pictures as "
            f"multipart/form-data, each in a field `{FIELDS}`; with curl: -F {FIELDS}=@a.jpg -F {FIELDS}=@b.jpg.",
        )
    return await _files(request, FIELDS, most=MOST_PICTURES)


def _media_type(request: Request) -> str:
    """Raises: Refusal: `unsupported_media_type`: the body is encoded."""
    encoding = header(request.scope, b"content-encoding").lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            "unsupported_media_type",
            f"The body has the content encoding {encoding[:100]}. Send it unencoded: pictures are already compressed.",
        )
    return header(request.scope, b"content-type").partition(";")[0].strip().lower()


class _InMemory(MultiPartParser):
    """Starlette's, but what it reads stays in memory, which is bounded, and never fills a disk; and a part that has a
    content type, or only a `filename*`, is a file, too: RFC 7578 (4.2) asks for a filename but does not demand it."""

    spool_max_size = sys.maxsize
    ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        disposition = part.content_disposition or b""
        if b"filename*=" in disposition or any(name == b"content-type" for name, _ in part.item_headers):
            part.content_disposition = disposition + b'; filename=""'  # which nobody reads
        super().on_headers_finished()

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        for file in self._files_to_close_on_error:  # also that of a form that ends too soon
            file.close()


async def _with_few_boundaries(stream: AsyncIterator[bytes], boundary: bytes) -> AsyncGenerator[bytes]:
    """Passes a form on, unless it has more boundaries than any form, or spaces without end behind one: Starlette's
    parser goes through these byte by byte, and nobody else is answered meanwhile.

    Raises: MultiPartException.
    """
    delimiter = b"\r\n--" + boundary
    count, known = 0, b"\r\n"  # the first boundary has no line before it
    async for piece in stream:
        data, place = known + piece, -1
        while (place := data.find(delimiter, place + 1)) >= 0:
            after = data[place + len(delimiter) :][:_LONGEST_PADDING]
            count += place + len(delimiter) > len(known)  # the others have been counted
            if count > _MOST_BOUNDARIES or (len(after) == _LONGEST_PADDING and not after.strip(b" \t")):
                raise MultiPartException("There are too many boundaries in the form.")
        known = data[-len(delimiter) - _LONGEST_PADDING :]
        yield piece


async def _files(request: Request, field: str, most: int) -> list[bytes]:
    content_type = header(request.scope, b"content-type")
    if len(content_type) > _LONGEST_TYPE:
        raise Refusal("malformed_request", f"The header Content-Type has more than {_LONGEST_TYPE} characters.")
    _, options = parse_options_header(content_type)
    # Python would remember for ever that any other name is not a charset.
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise HTTPException(400, "The form's charset cannot be read: leave it out")
    # Of several Content-Type headers the one that was looked at.
    headers = Headers({"content-type": content_type})
    stream = _with_few_boundaries(request.stream(), options.get(b"boundary", b""))
    parser = _InMemory(headers, stream, max_files=most)
    try:
        files = await _files_of(await parser.parse(), field)
        if not parser.ended:
            raise Refusal(
                "malformed_request",
                "The form breaks off: its closing boundary is missing. Send all of it.",
            )
        return files
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None  # as Starlette's own `form` does; `problems` words it
    finally:
        parser.close()


async def _files_of(form: FormData, field: str) -> list[bytes]:
    unknown = [name for name in form if _INDEX.sub("", name) != field]
    if unknown:
        raise Refusal(
            "malformed_request",
            f"The form has {unknown[0][:100]!r}, but only `{field}` is accepted; parameters go into the query.",
        )
    uploads = [upload for _, upload in form.multi_items()]
    if not uploads:
        raise Refusal("malformed_request", f"The form has no complete field `{field}`. Send the picture file in it.")
    files = []
    for upload in uploads:
        if not isinstance(upload, UploadFile):
            raise Refusal(
                "malformed_request",
                f"The field `{field}` has neither a file name nor a content type, so it is text, not a file. "
                f"With curl: -F {field}=@cat.jpg, with the @.",
            )
        files.append(await upload.read())
    return files

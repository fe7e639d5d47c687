"""The pages for people: the playground at `/` and the API's description at `/docs`, all of it from app/static.

Nothing comes from elsewhere, so the pages work offline, and their content security policy allows nothing else.
"""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.negotiation import preference

STATIC = Path(__file__).with_name("static")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
COMPRESSED = {".html", ".css", ".js", ".svg"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    # Browsers ask again each time, and get 304: a page of one version never runs with modules of another.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Asset(NamedTuple):
    """A static file in memory; `compressed` is None if compressing gains nothing."""

    content: bytes
    compressed: bytes | None
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "Asset":
        content = path.read_bytes()
        compressed = gzip.compress(content, mtime=0) if path.suffix in COMPRESSED else None
        etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'  # weak: the same whether compressed or not
        return cls(content, compressed, MEDIA_TYPES[path.suffix], etag)

    def respond(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        accepted = request.headers.get("accept-encoding", "")
        if self.compressed is not None and accepted and preference("gzip", accepted) > 0:
            headers["Content-Encoding"] = "gzip"
            return Response(self.compressed, headers=headers, media_type=self.media_type)
        return Response(self.content, headers=headers, media_type=self.media_type)


def install(app: FastAPI) -> None:
    """Adds `/`, `/docs` and `/static/NAME`. The files are read once: any other name is not found."""
    assets = {path.name: Asset.read(path) for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES}

    async def playground(request: Request) -> Response:
        return assets["index.html"].respond(request)

    async def docs(request: Request) -> Response:
        return assets["docs.html"].respond(request)

    async def static(request: Request) -> Response:
        asset = assets.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404)
        return asset.respond(request)

    app.router.routes.extend([Route("/", playground), Route("/docs", docs), Route("/static/{name}", static)])

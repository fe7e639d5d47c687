"""The pages for people: the playground at `/` and the API's description at `/docs`, all of it from app/static.

Nothing comes from elsewhere, so the pages work offline, and their content security policy allows nothing else.
"""

import mimetypes
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).with_name("static")
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
}


def install(app: FastAPI) -> None:
    """Adds `/`, `/docs` and `/static/NAME`."""
    mimetypes.add_type("text/javascript", ".js")  # which some systems call something else
    files = StaticFiles(directory=STATIC)

    async def answer(request: Request, name: str | None) -> Response:
        response = await files.get_response(name or request.path_params["name"], request.scope)
        response.headers.update(HEADERS)
        return response

    names = {"/": "index.html", "/docs": "docs.html", "/static/{name}": None}
    middleware = [Middleware(GZipMiddleware)]
    app.router.routes.extend(
        Route(path, partial(answer, name=name), middleware=middleware) for path, name in names.items()
    )

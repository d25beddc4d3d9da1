"""The page and its questions over HTTP, for this machine's own browser alone."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.templates import fill
from emcid_jax.editing.bank.concepts import Concept
from emcid_jax.explore.session import Session
from emcid_jax.explore.studio import Question, Studio
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import section
from emcid_jax.storage.json_text import loads

HOSTS = ["127.0.0.1", "localhost"]
MOST_BYTES = 1_000_000
"""Of a question."""
PARTS = {"app.js": "text/javascript", "style.css": "text/css"}
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every answer: a page loads nothing from elsewhere, and stands in nobody's frame."""
_INSIDE = "this should not happen; the terminal says more"


def make_app(session: Session) -> Starlette:
    """The application for one session. Foreign hosts and origins are refused."""
    studio = Studio(session)
    page = _page(session)

    async def index(request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in PARTS:
            return Response("no such file", 404)
        return Response(_file(name), media_type=PARTS[name])

    async def read(request: Request) -> Response:
        try:
            asked = await _question(request)
            return JSONResponse(await run_in_threadpool(studio.read, asked))
        except Exception as error:
            return JSONResponse({"error": _said(error)}, 400)

    async def draw(request: Request) -> Response:
        try:
            asked = await _question(request)
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        return StreamingResponse(_lines(studio.draw, asked), media_type="application/x-ndjson")

    routes = [
        Route("/", index),
        Route("/page/{name}", part),
        Route("/read", read, methods=["POST"]),
        Route("/draw", draw, methods=["POST"]),
    ]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(_OwnOrigin)]
    return Starlette(routes=routes, middleware=guards)


class _OwnOrigin:
    """Refuses what another site's page sends, and puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Request(scope).headers
        origin = headers.get("origin")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        if origin is not None and origin != f"http://{headers.get('host')}":
            answer = JSONResponse({"error": f"origin {origin} is not this page"}, 403)
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


async def _question(request: Request) -> Question:
    """What was asked. UserError if it is no question; a form of another site is none."""
    if request.headers.get("content-type") != "application/json":
        raise UserError("content-type must be application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise UserError(f"a question has at most {MOST_BYTES} bytes")
    try:
        values = loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise UserError(f"a question is a JSON object ({error})") from error
    return section(values, Question, "question")


def _lines(
    draw: Callable[[Question], Iterator[dict[str, Any]]], asked: Question
) -> Iterator[bytes]:
    """A line of JSON per picture; what goes wrong is the last one."""
    try:
        for event in draw(asked):
            yield json.dumps(event).encode() + b"\n"
    except Exception as error:
        yield json.dumps({"error": _said(error)}).encode() + b"\n"


def _said(error: Exception) -> str:
    """What the page tells of an error; a mistake in the code is for the terminal."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error)
    return _INSIDE


def _file(name: str) -> bytes:
    return (resources.files("emcid_jax.explore") / "page" / name).read_bytes()


def _name(placed: tuple[int, Concept]) -> str:
    return normalised(placed[1].request.source)


def _page(session: Session) -> str:
    """index.html with the session's concepts in it; jinja2 escapes every name."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    first = (*session.concepts.active, *session.concepts.concepts)[0].request
    return environment.from_string(_file("index.html").decode()).render(
        folder=str(session.folder),
        model=session.model,
        solver=session.config.solver,
        concepts=sorted(enumerate(session.concepts.concepts), key=_name),
        prompt=fill(first.templates[0], first.source).prompt,
        steps=session.steps,
        guidance=session.guidance,
    )

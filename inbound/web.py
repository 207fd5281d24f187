"""
A FastAPI door whose JSON is exact and whose every error is a problem document (RFC 9457).

Bodies are read by `wire.decimal_json`: a price never passes through a float, NaN is malformed.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inbound.stranger import stranger
from wire import decimal_json
from wire.model import Body
from wire.problems import PROBLEMS, ProblemDocument, problem_document

BODY_BYTES_MAX = 256 * 1024
HEADER_BYTES_MAX = 48 * 1024
PLACE_CHARS_MAX = 300

logger = logging.getLogger("livery.inbound")

# What the framework itself refuses, by status.
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 400: "malformed_json"}

Translate = Callable[[Exception], ProblemDocument]


class JsonReply(Response):
    """A reply whose `content` is wire documents, decimals included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content.to_json() if isinstance(content, Body) else decimal_json.dumps(content)


class ProblemReply(JsonReply):
    media_type = "application/problem+json"

    def __init__(self, problem: ProblemDocument, headers: Mapping[str, str] | None = None) -> None:
        retry = {} if problem.retry_after is None else {"retry-after": str(problem.retry_after)}
        super().__init__(problem, status_code=problem.status, headers={**retry, **(headers or {})})


class ExactRoute(APIRoute):
    """
    A route whose JSON body keeps its decimals, and is called JSON by who sends it.

    What a web page may send to another site without asking first is never called JSON.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def exact(request: Request) -> Response:
            if self.body_field is not None and _has_body(request) and not _is_json(request):
                sent = request.headers.get("content-type", "")[:100]
                return ProblemReply(problem_document("not_json_content", f"the Content-Type is {sent!r}"))
            return await handle(_ExactRequest(request.scope, request.receive))

        return exact


class _ExactRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return decimal_json.loads(body)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def create_door(
    *,
    title: str,
    version: str,
    description: str,
    errors: Sequence[type[Exception]],
    translate: Translate,
    hosts: Collection[str] | None = None,
    statuses: Collection[int] = (),
    bodies: Mapping[str, int] | None = None,
    **options: Any,
) -> FastAPI:
    """
    Return a FastAPI application that answers every error with a problem document.

    Args:
        errors: the exceptions of the room behind the door; `translate` makes a document of one.
        hosts: the names, besides loopback's, under which the door is reached; other people's web pages are then kept
            out. None is a door of any name, for callers who prove who they are.
        statuses: what the door's own middlewares answer besides.
        bodies: the largest body in bytes under a prefix of the path, where that is not BODY_BYTES_MAX; of several
            prefixes the longest counts.
    """
    answered = {404, 409, 415, 422, 503, *statuses, *(() if hosts is None else (403, 421))}
    app = FastAPI(
        title=title,
        version=version,
        description=description,
        redirect_slashes=False,
        # Their pages run scripts of other hosts, which would then speak with the door as one of its own.
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": ProblemDocument} for code in sorted(answered)},
        **options,
    )
    app.router.route_class = ExactRoute

    async def refuse(request: Request, error: Exception) -> Response:
        return ProblemReply(translate(error))

    for kind in errors:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_request)
    app.add_exception_handler(ClientDisconnect, _let_go)
    app.add_exception_handler(Exception, _fail)
    if hosts is not None:
        app.add_middleware(_Strangers, hosts=frozenset(hosts))
    app.add_middleware(_Sizes, bodies=bodies or {})
    return app


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ProblemReply(problem_document("malformed_json", str(first.get("ctx", {}).get("error", "not JSON"))))
    place = [str(part) for part in first["loc"] if part != "body"]
    return ProblemReply(
        problem_document("invalid_field", f"{'.'.join(place)[:PLACE_CHARS_MAX] or 'body'}: {first['msg']}")
    )


async def _refuse_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _STATUS_CODES.get(error.status_code, "internal")
    headers = {"allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    return ProblemReply(problem_document(code, f"{request.method} {request.url.path}"[:300]), headers)


def _methods(request: Request) -> list[str]:
    """Return the methods of a path. The framework names only those of the first route that stands there."""
    routes = request.app.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _let_go(request: Request, error: Exception) -> Response:
    """Who asked went away in the middle of its body; nobody reads this."""
    return ProblemReply(problem_document("malformed_json", "the connection ended before the body did"))


async def _fail(request: Request, error: Exception) -> Response:
    logger.error("unexpected error at %s %s", request.method, request.url.path, exc_info=error)
    return ProblemReply(problem_document("internal", type(error).__name__))


class _Sizes:
    """Refuses requests whose headers or body are larger than any honest one's."""

    def __init__(self, app: ASGIApp, bodies: Mapping[str, int]) -> None:
        self._app = app
        self._bodies = sorted(bodies.items(), key=lambda row: -len(row[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        bytes_max = next((most for prefix, most in self._bodies if path.startswith(prefix)), BODY_BYTES_MAX)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES_MAX:
            await _refuse_size("header_too_large", HEADER_BYTES_MAX)(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > bytes_max:
            await _refuse_size("body_too_large", bytes_max)(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > bytes_max:
                raise HTTPException(413)
            return message

        await self._app(scope, receive_counted, send)


class _Strangers:
    """Refuses requests that web pages of others send, see `inbound.stranger`."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = stranger(scope["scheme"], scope["headers"], self._hosts) if scope["type"] == "http" else None
        answer = self._app if refusal is None else ProblemReply(problem_document(*refusal))
        await answer(scope, receive, send)


def _refuse_size(code: str, bytes_max: int) -> Response:
    return ProblemReply(problem_document(code, f"at most {bytes_max} bytes in all"))


assert all(code in PROBLEMS for code in _STATUS_CODES.values())

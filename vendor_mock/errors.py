"""
From what went wrong to a problem document: the one place where the vendor API's errors get their body.

    VendorApiError      a request that cannot be served; `code` is a key of `wire.problems.PROBLEMS`
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cashier.core.errors import Unavailable
from storage.errors import StorageError
from wire.problems import problem_document

RETRY_AFTER_S = 1


class VendorApiError(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def problem(code: str, detail: str, *, retry_after_s: int | None = None) -> Response:
    """Return the error `code` as an HTTP response."""
    document = problem_document(code, detail, retry_after_s)
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if code == "bad_vendor_secret":
        headers["www-authenticate"] = "Bearer"
    return Response(document.to_json(), document.status, headers, media_type="application/problem+json")


async def _refused(_: Request, error: Any) -> Response:
    return problem(error.code, str(error))


async def _invalid(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return problem("invalid_field", f"{where}: {first['msg']}")


async def _http(request: Request, error: Any) -> Response:
    if error.status_code == 405:
        response = problem("method_not_allowed", f"{request.method} {request.url.path}")
        response.headers.update(error.headers or {})
        return response
    return problem("not_found", request.url.path)


async def _unavailable(_: Request, error: Any) -> Response:
    return problem(error.code, str(error), retry_after_s=RETRY_AFTER_S)


async def _storage(_: Request, error: Any) -> Response:
    return problem("store_unavailable", "the vendors' own database does not answer", retry_after_s=RETRY_AFTER_S)


async def _internal(_: Request, error: Any) -> Response:
    return problem("internal", type(error).__name__)


_HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    VendorApiError: _refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Unavailable: _unavailable,
    StorageError: _storage,
    Exception: _internal,
}


def install_errors(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)

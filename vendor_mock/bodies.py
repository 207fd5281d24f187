"""
Request bodies as exact JSON: decimals stay decimals, NaN and endless bodies are refused.

FastAPI's own body parameters would read numbers as floats; these are dependencies, described to OpenAPI by hand.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from vendor_mock.errors import VendorApiError
from wire import decimal_json
from wire.model import Body

BODY_BYTES_MAX = 1024 * 1024
BodyT = TypeVar("BodyT", bound=Body)


async def read_bytes(request: Request) -> bytes:
    """
    Return the body, once and whole.

    Raises:
        VendorApiError: body_too_large, told before the rest of it is read.
    """
    kept: bytes | None = getattr(request.state, "body", None)
    if kept is not None:
        return kept
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise VendorApiError("body_too_large", f"a body has at most {BODY_BYTES_MAX} bytes")
    request.state.body = bytes(body)
    return bytes(body)


def parse(kind: type[BodyT], body: bytes) -> BodyT:
    """
    Return the `kind` in `body`.

    Raises:
        VendorApiError: malformed_json, or invalid_field naming the first wrong one.
    """
    try:
        value = decimal_json.loads(body)
    except ValueError as error:
        raise VendorApiError("malformed_json", f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise VendorApiError("invalid_field", f"{where}: {first['msg']}") from None


def reads(kind: type[BodyT]) -> Callable[[Request], Awaitable[BodyT]]:
    """Return the FastAPI dependency that reads a `kind` from the body."""

    async def read(request: Request) -> BodyT:
        return parse(kind, await read_bytes(request))

    return read


def described(kind: type[Body]) -> dict[str, Any]:
    """Return what OpenAPI is told (`openapi_extra`) of a route that reads a `kind`."""
    schema = kind.model_json_schema(by_alias=True)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

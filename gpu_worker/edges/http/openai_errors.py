"""What the OpenAI API's doors refuse, as the replies that its clients read."""

import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.inference.text.service import NotHead
from wire import openai_answers as answers
from wire.openai import Refused

_LOG = logging.getLogger("livery.gpu_worker.openai")

RETRY_AFTER_S = 1
# What our codes are called in this API, where it has a name for the thing.
_CODES = {"not_ready": "server_not_ready", "no_capacity": "rate_limit_exceeded", "unauthenticated": "invalid_api_key"}
# Who is told so may ask again, a little later.
_LATER = (429, 503)
_CLIENT_LEFT = 499
# The field that the prompt comes in, where it is called otherwise.
_PROMPTS = {"/chat/completions": "messages", "/embeddings": "input"}
INTERNAL = answers.error("the server failed; its log says why", "server_error", code="internal")


class OpenAiReply(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(content: Any) -> bytes:
    """Return `content` as JSON; a Decimal, which is money, is written as the number that it is."""
    return orjson.dumps(content, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(f"{value:f}".encode())
    raise TypeError(type(value).__name__)


class RefusedRequest(Exception):
    """A request that is not even tried. `status` is HTTP's."""

    def __init__(self, refused: Refused, status: int = 400) -> None:
        super().__init__(refused.message)
        self.refused = refused
        self.status = status


def refusal(refused: Refused, status: int = 400, headers: Mapping[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = answers.error(refused.message, kind, refused.param, refused.code)
    return OpenAiReply(body, status_code=status, headers=dict(headers or {}))


def inference_error(error: InferenceError, prompt_param: str | None = None) -> answers.JsonObject:
    """Return the body that tells of `error`; `prompt_param` is the field that the prompt came in."""
    param = prompt_param if error.param == "prompt" or error.code == "context_length_exceeded" else error.param
    more = {"head": error.url} if isinstance(error, NotHead) and error.url else {}
    return answers.error(str(error), CODES[error.code].openai, param, _CODES.get(error.code, error.code), **more)


def prompt_param(path: str) -> str:
    return next((param for end, param in _PROMPTS.items() if path.endswith(end)), "prompt")


async def refuse_inference(request: Request, error: Exception) -> Response:
    assert isinstance(error, InferenceError)
    code = CODES[error.code]
    headers = {"x-should-retry": "true" if code.retryable else "false"}
    if code.http in _LATER:
        headers |= {"retry-after": str(RETRY_AFTER_S), "retry-after-ms": str(RETRY_AFTER_S * 1_000)}
    if isinstance(error, NotHead) and error.url:
        headers["location"] = error.url.rstrip("/") + request.url.path
    body = inference_error(error, prompt_param(request.url.path))
    return OpenAiReply(body, status_code=code.http, headers=headers)


async def refuse_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedRequest)
    return refusal(error.refused, error.status)


async def refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"[:300]
    return refusal(Refused(message), error.status_code, error.headers)


async def let_go(request: Request, error: Exception) -> Response:
    """Who asked has gone; nobody reads this."""
    return Response(status_code=_CLIENT_LEFT)


def failed(where: str, error: Exception) -> answers.JsonObject:
    """Return what is told of an error of ours, which the log tells in full."""
    _LOG.error("unexpected error at %s", where, exc_info=error)
    return INTERNAL

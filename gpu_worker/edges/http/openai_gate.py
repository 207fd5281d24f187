"""Before every route of the OpenAI API: who may pass, how large a header may be, and how long the answer took."""

import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_worker.edges.bearer import bearer_fault, page_fault
from gpu_worker.edges.http.openai_errors import OpenAiReply, failed, refusal
from gpu_worker.inference.text.service import Service
from inbound.web import HEADER_BYTES_MAX
from wire.openai import Refused

_PATH = re.compile(r"/v1(/.*)?|/chat/completions|/completions|/models(/.*)?", re.DOTALL)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_CHALLENGE = {"www-authenticate": "Bearer"}


class OpenAiPaths:
    """Hands the paths of the OpenAI API to `openai` and all others to `app`."""

    def __init__(self, app: ASGIApp, openai: ASGIApp) -> None:
        self._app = app
        self._openai = openai

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_openai = scope["type"] == "http" and _PATH.fullmatch(scope["path"]) is not None
        await (self._openai if is_openai else self._app)(scope, receive, send)


class Gate:
    """Wraps the application of these paths. Whatever fails in it is told in OpenAI's words."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(16)}"
        has_begun = False

        async def send_named(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - began_s) * 1_000))
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_named)
        except Exception as error:
            if has_begun:
                raise
            body = failed(scope["path"], error)
            await OpenAiReply(body, status_code=500)(scope, receive, send_named)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX:
            return refusal(Refused(f"the headers are larger than {HEADER_BYTES_MAX} bytes in all"), 431)
        fault = bearer_fault(headers, self._service.secret)
        if fault is not None:
            missing = "no API key was sent: set `Authorization: Bearer <key>`"
            message = missing if fault == "missing" else "the API key is wrong"
            return refusal(Refused(message, code="invalid_api_key"), 401, _CHALLENGE)
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        is_invited = len(origins) == 1 and origins[0] in self._service.origins
        if not is_invited and (foreign := page_fault(scope, self._service.secret)) is not None:
            return refusal(Refused(foreign[1], code=foreign[0]), 403)
        return None

"""Before every route of the OpenAI API: who may pass, how large a header may be, and how long the answer took."""

import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_worker.core.inference.callers import Caller, Refusal, Use
from gpu_worker.edges.http.admission import http_visit, openai_refusal, page_fault, quota_headers
from gpu_worker.edges.http.openai_errors import OpenAiReply, RefusedRequest, failed, refusal
from gpu_worker.inference.text.service import Service
from inbound.web import HEADER_BYTES_MAX
from wire.credits import CREDITS_PATH
from wire.openai import Refused

_PATH = re.compile(r"/v1(/.*)?|/(?:chat/completions|completions|embeddings)/?|/models(/.*)?", re.DOTALL)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class OpenAiPaths:
    """Hands the paths of the OpenAI API to `openai` and all others to `app`."""

    def __init__(self, app: ASGIApp, openai: ASGIApp) -> None:
        self._app = app
        self._openai = openai

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_openai = scope["type"] == "http" and _PATH.fullmatch(scope["path"]) is not None
        await (self._openai if is_openai else self._app)(scope, receive, send)


class Gate:
    """
    Wraps the application of these paths. Whatever fails in it is told in OpenAI's words.

    `request.state.admitted` is the Caller, or the Refusal of a request that is to be paid for: `caller_of` gives it.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(16)}"
        has_begun = False
        found: Caller | Refusal | Response | None = None

        async def send_named(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - began_s) * 1_000))
                if isinstance(found, Caller):
                    headers.update(quota_headers(self._service.admission.quota(found)))
            await send(message)

        try:
            found = await self._admitted(scope)
            await (found if isinstance(found, Response) else self._app)(scope, receive, send_named)
        except Exception as error:
            if has_begun:
                raise
            body = failed(scope["path"], error)
            await OpenAiReply(body, status_code=500)(scope, receive, send_named)

    async def _admitted(self, scope: Scope) -> Caller | Refusal | Response:
        """Return who asks, its refusal where it is the paid door's to tell, or what it is answered instead."""
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX:
            return refusal(Refused(f"the headers are larger than {HEADER_BYTES_MAX} bytes in all"), 431)
        # Whoever buys credit asks the model for nothing.
        is_shop = scope["path"].startswith(CREDITS_PATH)
        use: Use = "infer" if scope["method"] == "POST" and not is_shop else "look"
        found = await self._service.admission.admit(http_visit(scope), use)
        if isinstance(found, Refusal) and found.why != "unpaid":
            return openai_refusal(found)
        if isinstance(found, Caller):
            origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
            is_invited = len(origins) == 1 and origins[0] in self._service.origins
            if not is_invited and (foreign := page_fault(scope, found)) is not None:
                return refusal(Refused(foreign[1], code=foreign[0]), 403)
        scope.setdefault("state", {})["admitted"] = found
        return found


def caller_of(request: Request) -> Caller:
    """Return who was admitted. Raises RefusedRequest: it has to pay."""
    found: Caller | Refusal = request.state.admitted
    if isinstance(found, Refusal):
        raise RefusedRequest(Refused(found.detail, code="payment_required"), 402)
    return found

"""
The worker's own inference API: generate and its figures under `/api/v1`, whether it is ready, and Prometheus' text.

Names, limits and statuses are those of the Plumise agent's HTTP API; errors are problem documents as everywhere else.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gpu_worker.core.inference.asking import as_completion
from gpu_worker.core.inference.callers import Refusal, Use
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.http.admission import http_visit, page_fault, problem_refusal
from gpu_worker.edges.http.metrics import metrics_text
from gpu_worker.edges.http.openai_errors import failed
from gpu_worker.inference.text.answering import Metered, begin
from gpu_worker.inference.text.report import metrics_reply, pipeline_status
from gpu_worker.inference.text.service import NotHead, Service
from inbound.events import EventStream, while_connected
from inbound.web import ExactRoute, ProblemReply
from wire.generate import PROMPT_PATH, GenerateReply, GenerateRequest
from wire.problems import PROBLEMS, problem_document

RETRY_AFTER_S = 1
PROMETHEUS_KIND = "text/plain; version=0.0.4; charset=utf-8"
_DONE = b"data: [DONE]\n\n"
_SAID = "the server failed; its log says why"


class _Route(ExactRoute):
    """A route behind admission, before a body is read; its refusals are the same in any application."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            use: Use = "infer" if request.method == "POST" else "own"
            found = await _service(request).admission.admit(http_visit(request.scope), use)
            if isinstance(found, Refusal):
                return problem_refusal(found)
            if (foreign := page_fault(request.scope, found)) is not None:
                return ProblemReply(problem_document(*foreign))
            request.state.caller = found
            try:
                return await handle(request)
            except InferenceError as error:
                return _refusal(request, error)

        return handler


def _service(request: Request) -> Service:
    service: Service = request.app.state.inference
    return service


TheService = Annotated[Service, Depends(_service)]
# The application's own document is about buyers, who know of none of these.
closed = APIRouter(route_class=_Route, include_in_schema=False)
free = APIRouter(include_in_schema=False)


@closed.post(PROMPT_PATH)
async def generate(request: Request, service: TheService, body: GenerateRequest) -> Response:
    """Continue a text; with `stream` as Server-Sent Events, a token's text each, then `[DONE]`."""
    began_s = service.monotonic()
    service.answering()
    asked, usual = as_completion(body)
    answer = await while_connected(request.receive, begin(service, asked, request.state.caller, usual))
    if body.stream:
        return EventStream(_events(request, answer), closing=answer.close)
    try:
        words = await while_connected(request.receive, _gathered(answer))
    finally:
        await answer.close()
    reply = GenerateReply(
        generated_text=words,
        num_tokens=answer.tokens,
        latency_ms=round((service.monotonic() - began_s) * 1_000, 3),
    )
    return _json(reply.model_dump())


@closed.get("/api/v1/pipeline/status")
async def status(service: TheService) -> Response:
    """Which layers this worker has, and who has the others."""
    return _json((await pipeline_status(service)).model_dump(by_alias=True))


@closed.get("/api/v1/metrics")
async def metrics(service: TheService) -> Response:
    """What was done since the start."""
    return _json(metrics_reply(service).model_dump())


@closed.get("/metrics")
async def prometheus(request: Request, service: TheService) -> Response:
    """The same and more, for Prometheus."""
    capability = getattr(request.app.state, "capability", None)
    machine = None if capability is None else await capability.machine()
    return Response(metrics_text(service, machine), media_type=PROMETHEUS_KIND)


@free.get("/readyz")
async def ready(request: Request) -> Response:
    """Whether requests are served now: 200, else 503."""
    service = _service(request)
    if service.is_served:
        return _json({"status": "ready"}, 200, {})
    status = "draining" if service.is_draining else "no_route" if service.is_ready else "loading"
    return _json({"status": status}, 503, {"retry-after": str(RETRY_AFTER_S)})


async def _gathered(answer: Metered) -> str:
    return "".join([piece.text async for piece in answer.pieces()])


async def _events(request: Request, answer: Metered) -> AsyncIterator[bytes]:
    """Yield the text as events; one that breaks off ends with an error, and without [DONE]."""
    try:
        async for piece in answer.pieces():
            if piece.text:
                yield _event({"token": piece.text})
        yield _DONE
    except InferenceError as error:
        yield _event({"error": str(error), "code": error.code})
    except Exception as error:
        failed(request.url.path, error)
        yield _event({"error": _SAID, "code": "internal"})


def _event(body: dict[str, str]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _refusal(request: Request, error: InferenceError) -> Response:
    # Who has shown a pass that is used up has shown a wrong one.
    code = {"unauthenticated": "forbidden"}.get(error.code, error.code)
    code = code if code in PROBLEMS else "internal"
    retry = RETRY_AFTER_S if PROBLEMS[code].status == 503 else None
    headers = {}
    if isinstance(error, NotHead) and error.url:
        headers["location"] = error.url.rstrip("/") + request.url.path
    return ProblemReply(problem_document(code, str(error), retry), headers)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")

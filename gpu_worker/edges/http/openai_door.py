"""
The OpenAI API over the models that this worker serves: chat completions, completions, embeddings, models.

The paths are there with and without /v1 in front. Every answer of them, also the framework's own refusals, has
OpenAI's bodies.
"""

from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gpu_worker.core.inference.callers import Caller, Refusal
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.http import credits_door
from gpu_worker.edges.http import openai_errors as errors
from gpu_worker.edges.http.openai_body import read_body
from gpu_worker.edges.http.openai_gate import Gate, caller_of
from gpu_worker.edges.http.openai_shapes import ChatShape, CompletionShape, Shape
from gpu_worker.edges.http.paid_door import PaidDoor
from gpu_worker.inference.text.answering import Metered, begin
from gpu_worker.inference.text.embedding import embed
from gpu_worker.inference.text.engine import ModelCard, Piece
from gpu_worker.inference.text.service import Service
from inbound.events import EventStream, while_connected
from wire import openai_answers as answers
from wire.lenient import Lenient
from wire.openai import COMPLETION_TOKENS, ChatRequest, CompletionRequest, Refused, read_request
from wire.openai_embeddings import EmbeddingsRequest, embeddings_answer

# What a web page's program may read of an answer's headers.
EXPOSED = (
    "x-request-id",
    "openai-processing-ms",
    "x-gpu-weights-hash",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "payment-required",
    "payment-response",
    "x-payment-response",
    "payment-receipt",
    "www-authenticate",
)
_DONE = b"data: [DONE]\n\n"


def openai_app(service: Service, paid: PaidDoor | None = None) -> ASGIApp:
    """
    Return the application of these paths, `openai_gate.OpenAiPaths` tells which they are.

    Args:
        paid: sells answers to who has no key, None: nothing is sold.
    """
    routes = (
        ("/chat/completions", chat_completions, "POST"),
        ("/completions", completions, "POST"),
        ("/embeddings", embeddings, "POST"),
        ("/models", models, "GET"),
        ("/models/{name:path}", model, "GET"),
    )
    app = Starlette(
        routes=[
            *(Route(f"{v1}{path}", do, methods=[method]) for v1 in ("/v1", "") for path, do, method in routes),
            *([] if paid is None else credits_door.routes()),
        ],
        exception_handlers={
            InferenceError: errors.refuse_inference,
            errors.RefusedRequest: errors.refuse_request,
            HTTPException: errors.refuse_path,
            ClientDisconnect: errors.let_go,
        },
    )
    app.router.redirect_slashes = False
    app.state.service, app.state.paid = service, paid
    gate = Gate(app, service)
    if not service.origins:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=service.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    service.answering()
    body = await read_body(request)
    asked: ChatRequest = _asked(request, ChatRequest, body)
    return await _sold(request, body, asked, ChatShape(bool(asked.logprobs)))


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    service.answering()
    body = await read_body(request)
    asked: CompletionRequest = _asked(request, CompletionRequest, body)
    return await _sold(request, body, asked, CompletionShape(asked.logprobs is not None), COMPLETION_TOKENS)


async def embeddings(request: Request) -> Response:
    service: Service = request.app.state.service
    service.answering()
    caller = caller_of(request)
    asked: EmbeddingsRequest = _asked(request, EmbeddingsRequest, await read_body(request))
    making = embed(service, asked.model, asked.input, asked.dimensions, caller)
    card, made = await while_connected(request.receive, making)
    is_packed = asked.encoding_format == "base64"
    return errors.OpenAiReply(embeddings_answer(card.name, made.vectors, made.tokens, as_base64=is_packed))


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    service.must_be_head()
    return errors.OpenAiReply(answers.model_list([_model(service, card) for card in service.cards()]))


async def model(request: Request) -> Response:
    service: Service = request.app.state.service
    service.must_be_head()
    return errors.OpenAiReply(_model(service, service.card(request.path_params["name"])))


def _model(service: Service, card: ModelCard) -> answers.JsonObject:
    told = answers.model_object(card.name, service.created, card.context)
    return told if service.billing is None else {**told, "pricing": service.billing.prices.document()}


def _asked(request: Request, kind: type[Lenient], body: bytes) -> Any:
    """Return the request in the body. Raises RefusedRequest."""
    asked = read_request(kind, body)
    if isinstance(asked, Refused):
        raise errors.RefusedRequest(asked)
    request.app.state.service.card(asked.model)
    return asked


async def _sold(
    request: Request,
    body: bytes,
    asked: ChatRequest | CompletionRequest,
    shape: Shape,
    tokens_usual: int | None = None,
) -> Response:
    """Return the answer for who may have it, or what is to be paid for it."""
    paid: PaidDoor | None = request.app.state.paid

    async def serve(caller: Caller) -> Response:
        return await _answer(request, asked, shape, tokens_usual, caller)

    if paid is not None and isinstance(request.state.admitted, Refusal):
        return await paid.sell(request, body, asked, tokens_usual, serve)
    return await serve(caller_of(request))


async def _answer(
    request: Request,
    asked: ChatRequest | CompletionRequest,
    shape: Shape,
    tokens_usual: int | None,
    caller: Caller,
) -> Response:
    service: Service = request.app.state.service
    answer = await while_connected(request.receive, begin(service, asked, caller, tokens_usual))
    heading = answers.Heading(
        id=f"{shape.prefix}-{answer.session}",
        created=int(service.clock()),
        model=answer.model,
        fingerprint=f"fp_{answer.model_hash[:12]}" if answer.model_hash else None,
    )
    headers = {"x-gpu-weights-hash": answer.model_hash} if answer.model_hash else {}
    if asked.stream:
        events = _events(request.url.path, answer, shape, heading, asked.tells_usage)
        return EventStream(events, closing=answer.close, headers=headers)
    try:
        piece = await while_connected(request.receive, _gathered(answer))
    finally:
        await answer.close()
    assert answer.finish_reason is not None
    return errors.OpenAiReply(shape.whole(heading, piece, answer.finish_reason, _usage(answer)), headers=headers)


async def _gathered(answer: Metered) -> Piece:
    pieces = [piece async for piece in answer.pieces()]
    return Piece(
        text="".join(piece.text for piece in pieces),
        told=tuple(told for piece in pieces for told in piece.told),
        reasoning="".join(piece.reasoning for piece in pieces),
        calls=tuple(part for piece in pieces for part in piece.calls),
    )


def _usage(answer: Metered) -> answers.Usage:
    return answers.Usage(
        answer.prompt_tokens, answer.tokens, answer.cached_tokens, answer.cost, answer.reasoning_tokens
    )


async def _events(
    path: str, answer: Metered, shape: Shape, heading: answers.Heading, tells_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the answer as events. One that breaks off ends with an error, and without [DONE]."""
    # Whoever asks for the usage gets the field in every chunk, empty but in the last one.
    every = {"usage": None} if tells_usage else {}
    try:
        for chunk in shape.opening(heading):
            yield _event({**chunk, **every})
        async for piece in answer.pieces():
            for chunk in shape.chunks(heading, piece):
                yield _event({**chunk, **every})
        yield _event({**shape.last(heading, answer.finish_reason or "stop"), **every})
        if tells_usage:
            yield _event(answers.usage_chunk(heading, shape.kind, _usage(answer)))
        yield _DONE
    except InferenceError as error:
        yield _event(errors.inference_error(error, errors.prompt_param(path)))
    except Exception as error:
        yield _event(errors.failed(path, error))


def _event(body: answers.JsonObject) -> bytes:
    return b"data: " + errors.dumps(body) + b"\n\n"

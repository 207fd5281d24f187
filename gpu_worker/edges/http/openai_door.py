"""
The OpenAI API over the model that this worker serves: chat completions, completions, models.

The paths are there with and without /v1 in front. Every answer of them, also the framework's own refusals, has
OpenAI's bodies.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gpu_worker.core.inference.asking import openai_sampling
from gpu_worker.core.inference.calls import FORCED, CallFinder, Format, format_of
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.http import openai_errors as errors
from gpu_worker.edges.http.openai_gate import Gate
from gpu_worker.edges.http.openai_shapes import ChatShape, CompletionShape, Shape
from gpu_worker.inference.ports import Text
from gpu_worker.inference.text.generation import Ask, Generation, Piece, begin
from gpu_worker.inference.text.prompts import chat_prompt, decoded, text_prompt
from gpu_worker.inference.text.service import Service
from inbound.events import EventStream, while_connected
from wire import openai_answers as answers
from wire.generate import PROMPT_BODY_BYTES_MAX
from wire.openai import COMPLETION_TOKENS, ChatRequest, Choosing, CompletionRequest, Refused, read_request

_DONE = b"data: [DONE]\n\n"


def openai_app(service: Service) -> ASGIApp:
    """Return the application of these paths, `openai_gate.OpenAiPaths` tells which they are."""
    routes = (
        ("/chat/completions", chat_completions, "POST"),
        ("/completions", completions, "POST"),
        ("/models", models, "GET"),
        ("/models/{name:path}", model, "GET"),
    )
    app = Starlette(
        routes=[Route(f"{v1}{path}", do, methods=[method]) for v1 in ("/v1", "") for path, do, method in routes],
        exception_handlers={
            InferenceError: errors.refuse_inference,
            errors.RefusedRequest: errors.refuse_request,
            HTTPException: errors.refuse_path,
            ClientDisconnect: errors.let_go,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    gate = Gate(app, service)
    if not service.origins:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=service.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "openai-processing-ms", "x-gpu-weights-hash", "retry-after"),
    )


class Begun(NamedTuple):
    """An answer that is being made, and how it is told."""

    generation: Generation
    shape: Shape


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    generator, text = service.speaker()
    asked: ChatRequest = await _read(request, ChatRequest)

    async def start() -> Begun:
        prompt = await chat_prompt(text, asked, generator.info.context)
        form = _format(asked, text)
        ask = _ask(service, asked, prompt, () if form is None else form.marks)
        return Begun(await begin(service, ask), _chat_shape(service, asked, form))

    return await _answer(request, asked, await while_connected(request.receive, start()))


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    generator, text = service.speaker()
    asked: CompletionRequest = await _read(request, CompletionRequest)

    async def start() -> Begun:
        prompt = await text_prompt(text, asked, generator.info.context)
        ask = _ask(service, asked, prompt)
        echo = "" if not asked.echo else asked.only_prompt
        shown = echo if isinstance(echo, str) else decoded(text, echo)
        shape = CompletionShape(tells_tokens=asked.logprobs is not None, echo=shown)
        return Begun(await begin(service, ask), shape)

    return await _answer(request, asked, await while_connected(request.receive, start()))


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    service.must_be_head()
    return errors.OpenAiReply(answers.model_list([_model(service)]))


async def model(request: Request) -> Response:
    service: Service = request.app.state.service
    service.must_be_head()
    _check_model(service, request.path_params["name"])
    return errors.OpenAiReply(_model(service))


def _model(service: Service) -> answers.JsonObject:
    context = None if service.generator is None else service.generator.info.context
    return answers.model_object(service.model, service.created, context)


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.model):
        refused = Refused(f"The model {str(name)[:200]!r} does not exist here", "model", "model_not_found")
        raise errors.RefusedRequest(refused, 404)


async def _read(request: Request, kind: type[Choosing]) -> Any:
    """Return the request in the body. Raises RefusedRequest."""
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page may send anything else to another site without asking it first.
    if sent != "application/json":
        raise errors.RefusedRequest(Refused("send the body with `Content-Type: application/json`"), 415)
    too_large = errors.RefusedRequest(Refused(f"the body is larger than {PROMPT_BODY_BYTES_MAX} bytes"), 413)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > PROMPT_BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > PROMPT_BODY_BYTES_MAX:
            raise too_large
    asked = read_request(kind, bytes(body))
    if isinstance(asked, Refused):
        raise errors.RefusedRequest(asked)
    _check_model(request.app.state.service, asked.model)
    return asked


def _format(asked: ChatRequest, text: Text) -> Format | None:
    """Return how calls of tools stand in the answer, None where none are looked for."""
    return FORCED if asked.demands_call else format_of(text.template) if asked.offered_tools else None


def _chat_shape(service: Service, asked: ChatRequest, form: Format | None) -> ChatShape:
    if form is None:
        return ChatShape(tells_tokens=bool(asked.logprobs))

    def new_id() -> str:
        drawn = service.new_id()
        # Some templates take no longer ones back.
        return f"call_{drawn}" if form.id_chars is None else drawn[: form.id_chars]

    finder = CallFinder(form, [tool.function.name for tool in asked.offered_tools], asked.calls_max)
    return ChatShape(tells_tokens=bool(asked.logprobs), finder=finder, new_id=new_id)


def _ask(
    service: Service, asked: ChatRequest | CompletionRequest, prompt: tuple[int, ...], shows: tuple[str, ...] = ()
) -> Ask:
    _, text = service.speaker()
    sampling = openai_sampling(asked, text.eos, service.new_seed())
    return Ask(
        prompt=prompt,
        tokens_max=asked.tokens_max,
        sampling=sampling,
        stops=asked.stop or (),
        tokens_usual=COMPLETION_TOKENS if isinstance(asked, CompletionRequest) else None,
        shows=shows,
    )


async def _answer(request: Request, asked: Choosing, begun: Begun) -> Response:
    service: Service = request.app.state.service
    generation, shape = begun
    heading = answers.Heading(
        f"{shape.prefix}-{generation.session}", int(service.clock()), service.model, f"fp_{generation.model_hash[:12]}"
    )
    headers = {"x-gpu-weights-hash": generation.model_hash}
    if asked.stream:
        events = _events(request.url.path, generation, shape, heading, asked.tells_usage)
        return EventStream(events, closing=generation.close, headers=headers)
    try:
        piece = await while_connected(request.receive, _gathered(generation))
    finally:
        await generation.close()
    usage = answers.Usage(generation.prompt_tokens, generation.tokens)
    assert generation.finish_reason is not None
    return errors.OpenAiReply(shape.whole(heading, piece, generation.finish_reason, usage), headers=headers)


async def _gathered(generation: Generation) -> Piece:
    pieces = [piece async for piece in generation.pieces()]
    return Piece("".join(piece.text for piece in pieces), tuple(told for piece in pieces for told in piece.told))


async def _events(
    path: str, generation: Generation, shape: Shape, heading: answers.Heading, tells_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the answer as events. One that breaks off ends with an error, and without [DONE]."""
    # Whoever asks for the usage gets the field in every chunk, empty but in the last one.
    every = {"usage": None} if tells_usage else {}
    try:
        for chunk in shape.opening(heading):
            yield _event({**chunk, **every})
        async for piece in generation.pieces():
            for chunk in shape.chunks(heading, piece):
                yield _event({**chunk, **every})
        for chunk in shape.last(heading, generation.finish_reason or "stop"):
            yield _event({**chunk, **every})
        if tells_usage:
            usage = answers.Usage(generation.prompt_tokens, generation.tokens)
            yield _event(answers.usage_chunk(heading, shape.kind, usage))
        yield _DONE
    except InferenceError as error:
        yield _event(errors.inference_error(error, errors.prompt_param(path)))
    except Exception as error:
        yield _event(errors.failed(path, error))


def _event(body: answers.JsonObject) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"

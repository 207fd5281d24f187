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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gpu_worker.core.inference.asking import openai_sampling
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges import openai_errors as errors
from gpu_worker.edges.openai_gate import Gate
from gpu_worker.edges.openai_shapes import ChatShape, CompletionShape, Shape
from gpu_worker.inference.text.generation import Ask, Generation, begin
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
    return Gate(app, service)


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
        return Begun(await begin(service, _ask(service, asked, prompt)), ChatShape(tells_tokens=bool(asked.logprobs)))

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


def _ask(service: Service, asked: ChatRequest | CompletionRequest, prompt: tuple[int, ...]) -> Ask:
    _, text = service.speaker()
    sampling = openai_sampling(asked, text.eos, service.new_seed())
    return Ask(
        prompt=prompt,
        tokens_max=asked.tokens_max,
        sampling=sampling,
        stops=asked.stop or (),
        tokens_usual=COMPLETION_TOKENS if isinstance(asked, CompletionRequest) else None,
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
        text, told = await while_connected(request.receive, _gathered(generation))
    finally:
        await generation.close()
    usage = answers.Usage(generation.prompt_tokens, generation.tokens)
    assert generation.finish_reason is not None
    return errors.OpenAiReply(shape.whole(heading, text, told, generation.finish_reason, usage), headers=headers)


async def _gathered(generation: Generation) -> tuple[str, list[answers.Told]]:
    texts: list[str] = []
    told: list[answers.Told] = []
    async for piece in generation.pieces():
        texts.append(piece.text)
        told += piece.told
    return "".join(texts), told


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
            yield _event({**shape.chunk(heading, piece.text, piece.told), **every})
        yield _event({**shape.last(heading, generation.finish_reason or "stop"), **every})
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

"""
llama-cpp-python behind the paths of llama.cpp's own server, as far as this worker asks them. One request is computed
at a time: that package batches nothing.
"""

import asyncio
import hmac
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from gpu_worker.core.inference.llama import LlamaSpec
from gpu_worker.core.quantization.estimate import cells_of
from gpu_worker.edges.engines.llama_asgi import (
    Json,
    Receive,
    Refused,
    Scope,
    Send,
    begin,
    gone,
    part,
    read_object,
    reply,
)

HOST = "127.0.0.1"
# ggml's numbers of types.
_CACHE = {"f16": 1, "q8_0": 8, "q4_0": 2}
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty", "repeat_penalty",
)  # fmt: skip


class Source:
    """The server, an ASGI application over one model. `key` is the bearer that it asks for."""

    def __init__(self, llama: Any, key: str, adapter: Any) -> None:
        self._llama, self._key = llama, key.encode()
        self._context = llama.n_ctx()
        self._template = llama.metadata.get("tokenizer.chat_template", "")
        self._format = adapter
        self._one = asyncio.Lock()
        self._busy = self._steps = self._read = self._drawn = 0
        self._routes: Mapping[str, Callable[[Json], Awaitable[Any]]] = {
            "/props": self._props,
            "/slots": self._slots,
            "/apply-template": self._render,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/v1/embeddings": self._embed,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            if not hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._key):
                raise Refused(401, "authentication_error", "Invalid API Key")
            if scope["path"] == "/metrics":
                return await reply(send, 200, self._metrics().encode(), b"text/plain")
            body = await read_object(receive) if scope["method"] == "POST" else {}
            if scope["path"] in ("/v1/chat/completions", "/v1/completions"):
                return await self._complete(body, "chat" in scope["path"], receive, send)
            route = self._routes.get(scope["path"])
            if route is None:
                raise Refused(404, "not_found_error", "File Not Found")
            await reply(send, 200, json.dumps(await route(body)).encode())
        except Refused as refused:
            await reply(send, refused.status, refused.body())

    async def _props(self, body: Json) -> Json:
        caps = {"supports_tools": "tools" in self._template}
        return {"chat_template": self._template, "chat_template_caps": caps}

    async def _slots(self, body: Json) -> list[Json]:
        return [{"id": 0, "n_ctx": self._context, "is_processing": self._busy > 0}]

    def _metrics(self) -> str:
        figures = {
            "n_decode_total": self._steps,
            "prompt_tokens_total": self._read,
            "tokens_predicted_total": self._drawn,
            "requests_processing": min(1, self._busy),
            "requests_deferred": max(0, self._busy - 1),
        }
        return "".join(f"llamacpp:{name} {value}\n" for name, value in figures.items())

    async def _render(self, body: Json) -> Json:
        told = {name: body[name] for name in ("messages", "tools") if name in body}
        options = body.get("chat_template_kwargs") or {}
        try:
            return {"prompt": (await asyncio.to_thread(self._format, **options, **told)).prompt}
        except Exception as error:  # whatever a template does
            raise Refused(400, "invalid_request_error", "the chat template refuses this chat") from error

    async def _tokenize(self, body: Json) -> Json:
        return {"tokens": await asyncio.to_thread(self._tokens, str(body.get("content", "")))}

    async def _detokenize(self, body: Json) -> Json:
        data = self._llama.detokenize(self._known(body.get("tokens")), special=True)
        return {"content": data.decode(errors="replace")}

    async def _embed(self, body: Json) -> Json:
        inputs = body.get("input")
        texts = [each if isinstance(each, str) else _Tokens(self._known(each)) for each in inputs or ()]
        async with self._one:
            vectors, count = await asyncio.to_thread(self._llama.embed, texts, normalize=True, return_count=True)
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}

    def _tokens(self, text: str) -> list[int]:
        # A template may write the first token itself.
        bos = self._llama.detokenize([self._llama.token_bos()], special=True).decode(errors="replace")
        return list(self._llama.tokenize(text.encode(), add_bos=not (bos and text.startswith(bos)), special=True))

    def _known(self, tokens: Any) -> list[int]:
        most = self._llama.n_vocab()
        if not isinstance(tokens, list) or not all(type(each) is int and 0 <= each < most for each in tokens):
            raise Refused(400, "invalid_request_error", "these are no tokens of the model's")
        return tokens

    async def _complete(self, body: Json, is_chat: bool, receive: Receive, send: Send) -> None:
        if body.get("logprobs"):
            raise Refused(400, "invalid_request_error", "log probabilities are not told")
        prompt = (await self._render(body))["prompt"] if is_chat else body.get("prompt")
        tokens = await asyncio.to_thread(self._tokens, prompt) if isinstance(prompt, str) else self._known(prompt)
        if len(tokens) >= self._context:
            raise Refused(400, "exceed_context_size_error", "the prompt exceeds the available context size")
        options = await asyncio.to_thread(self._options, body)
        self._busy += 1
        try:
            async with self._one:
                await self._tell(self._chunks(tokens, options, is_chat, receive), send)
        finally:
            self._busy -= 1

    def _options(self, body: Json) -> Json:
        """Return what is drawn, and how. Raises Refused."""
        from llama_cpp import LlamaGrammar

        options = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
        options["max_tokens"] = body.get("max_tokens")
        bias = {int(token): float(value) for token, value in (body.get("logit_bias") or {}).items()}
        if body.get("ignore_eos"):
            bias[self._llama.token_eos()] = -1e9
        self._known(list(bias))
        options["logit_bias"] = bias or None
        form = body.get("response_format") or {}
        schema = body.get("json_schema") or (form.get("json_schema") or {}).get("schema")
        if schema is None and form.get("type") == "json_object":
            schema = {"type": "object"}
        if schema is not None:
            try:
                options["grammar"] = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
            except Exception as error:  # whatever the schema says
                raise Refused(400, "invalid_request_error", "the schema cannot be used") from error
        return options

    async def _chunks(
        self, tokens: list[int], options: Json, is_chat: bool, receive: Receive
    ) -> AsyncGenerator[Json, None]:
        """Yield the chunks of the answer; it is given up when who asked is gone."""
        loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue[Json | Exception | None](), threading.Event()

        def tell(each: Json | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, each)

        def work() -> None:
            try:
                for chunk in self._drawn_chunks(tokens, options, is_chat):
                    if stop.is_set():
                        break
                    tell(chunk)
                tell(None)
            except Exception as error:  # told to who asked, as far as it is theirs
                tell(error)

        leaving = asyncio.create_task(gone(receive, stop))
        working = asyncio.create_task(asyncio.to_thread(work))
        try:
            while (chunk := await queue.get()) is not None:
                if isinstance(chunk, Exception):
                    raise Refused(500, "server_error", "llama.cpp broke the answer off") from chunk
                yield chunk
        finally:
            stop.set()
            leaving.cancel()
            await working

    def _drawn_chunks(self, tokens: list[int], options: Json, is_chat: bool) -> Iterator[Json]:
        llama = self._llama
        llama.drawn = llama.cached = 0
        reason = None
        for chunk in llama.create_completion(prompt=tokens, stream=True, **options):
            [choice] = chunk["choices"]
            text, reason = choice["text"], choice["finish_reason"]
            if text:
                yield {"choices": [_choice(text, None, is_chat)], "usage": self._usage(tokens)}
        yield {"choices": [_choice("", reason or "stop", is_chat)]}
        yield {"choices": [], "usage": self._usage(tokens)}
        self._steps += llama.drawn
        self._read += len(tokens) - llama.cached
        self._drawn += llama.drawn

    def _usage(self, tokens: list[int]) -> Json:
        drawn, cached = self._llama.drawn, self._llama.cached
        return {
            "prompt_tokens": len(tokens),
            "completion_tokens": drawn,
            "total_tokens": len(tokens) + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def _tell(self, chunks: AsyncGenerator[Json, None], send: Send) -> None:
        """Send the chunks as events; what is refused before the first one has a status of its own."""
        is_begun = False
        async with aclosing(chunks) as coming:
            try:
                async for chunk in coming:
                    if not is_begun:
                        await begin(send, 200, b"text/event-stream")
                        is_begun = True
                    await part(send, b"data: " + json.dumps(chunk).encode() + b"\n\n", more=True)
            except Refused as refused:
                if not is_begun:
                    raise
                await part(send, b"data: " + refused.body() + b"\n\n", more=True)
        await part(send, b"data: [DONE]\n\n", more=False)


class _Tokens(list[int]):
    """A text that is tokens already, as `Llama.embed` reads texts."""

    def encode(self, *_: str) -> "_Tokens":
        return self


def _choice(text: str, reason: str | None, is_chat: bool) -> Json:
    told: Json = {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
    return {"index": 0, **told, "finish_reason": reason}


def opened(spec: LlamaSpec, adapters: Sequence[tuple[str, float]]) -> Source:
    """Return the server with its model loaded. What llama.cpp says of it goes to stderr."""
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    class Counted(llama_cpp.Llama):  # type: ignore[misc]  # it has no types
        """Counts what it draws, and what of a prompt it has computed before."""

        drawn = cached = 0

        def generate(self, tokens: Any, *args: Any, **more: Any) -> Iterator[int]:
            self.cached = self.longest_token_prefix(self._input_ids.tolist(), list(tokens[:-1]))
            for token in super().generate(tokens, *args, **more):
                self.drawn += 1
                yield token

        def tokenize(self, text: Any, add_bos: bool = True, special: bool = False) -> list[int]:
            return list(text) if isinstance(text, _Tokens) else super().tokenize(text, add_bos, special)

    if len(adapters) > 1:
        raise SystemExit("more than one adapter (lora) is not served by llama-cpp-python")
    batch = max(spec.batch, cells_of(spec.context)) if spec.embeds else spec.batch
    llama = Counted(
        model_path=spec.path,
        n_ctx=cells_of(spec.context),
        n_batch=batch,
        n_ubatch=batch,
        n_gpu_layers=spec.gpu_layers,
        n_threads=spec.threads,
        n_threads_batch=spec.threads,
        embedding=spec.embeds,
        flash_attn=True,
        type_k=_CACHE[spec.kv_dtype],
        type_v=_CACHE[spec.kv_dtype],
        **{name: value for path, scale in adapters for name, value in (("lora_path", path), ("lora_scale", scale))},
    )
    words = {
        name: llama.detokenize([token], special=True).decode(errors="replace") if token >= 0 else ""
        for name, token in (("bos_token", llama.token_bos()), ("eos_token", llama.token_eos()))
    }
    return Source(llama, spec.key, Jinja2ChatFormatter(llama.metadata.get("tokenizer.chat_template", ""), **words))


def serve(spec: LlamaSpec, adapters: Sequence[tuple[str, float]], ready: Callable[[str], None]) -> None:
    """Serve for ever; `ready` is told where."""
    asyncio.run(_serve(opened(spec, adapters), ready))


async def _serve(source: Source, ready: Callable[[str], None]) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(source, host=HOST, port=0, lifespan="off", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    ready(f"http://{HOST}:{port}")
    await serving

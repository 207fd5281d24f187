"""
An Ollama's own API over HTTP: what is installed, what is loaded, and the lines of what it makes.

Its answers are held to the limits below. What it says of an error tells which of ours it is, and is not passed on.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from gpu_worker.core.inference.codes import InferenceError
from outbound.errors import Broken, OutboundError, TimedOut, Unreachable
from outbound.http import HttpClient
from wire.ollama import EmbeddedBody, Failed, Line, Pulled, Shown, Tag, Tags, Version

PORT = 11434
ASK_S = 10.0
LIST_BYTES_MAX = 32 * 1024 * 1024
LINE_BYTES_MAX = 4 * 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024

_PORT = re.compile(r":\d{1,5}$")
# A sign in what Ollama says, in lower case, then the code and the sentence that a client gets for it.
_SIGNS = (
    (
        "context length",
        "context_length_exceeded",
        "The prompt is longer than this model's context length. Please reduce the length of the prompt.",
    ),
    ("more system memory", "upstream_error", "the model needs more memory than the machine has that serves it"),
    ("out of memory", "upstream_error", "the model needs more memory than the machine has that serves it"),
    ("does not support tools", "invalid_argument", "this model knows no tools"),
    ("does not support chat", "invalid_argument", "this model makes embeddings alone"),
    ("does not support generate", "invalid_argument", "this model makes embeddings alone"),
    ("does not support embed", "invalid_argument", "this model makes no embeddings"),
    ("does not support thinking", "invalid_argument", "this model does not think aloud"),
)
_STATUSES = {
    400: ("invalid_argument", "the engine of this model does not take this request"),
    404: ("not_ready", "the model is not there any more where it is served"),
    413: ("context_length_exceeded", "The prompt is longer than this model's context length."),
    429: ("no_capacity", "the engine of this model has no place left; ask again"),
    503: ("no_capacity", "the engine of this model has no place left; ask again"),
}
_BROKEN = ("upstream_error", "the engine of this model does not answer as it should")

_Body = TypeVar("_Body", bound=BaseModel)


class OllamaClient:
    """
    Args:
        base_url: where Ollama is, as `url_of` reads it.
        silence_s: so long nothing may come while it makes something.
    """

    def __init__(self, base_url: str, http: HttpClient, silence_s: float = 120) -> None:
        self.base_url = url_of(base_url)
        self._http, self._silence_s = http, silence_s

    async def version(self) -> Version:
        return _read(Version, await self._asked("GET", "/api/version", None, ASK_S))

    async def installed(self) -> tuple[Tag, ...]:
        return _read(Tags, await self._asked("GET", "/api/tags", None, ASK_S)).models

    async def loaded(self) -> tuple[Tag, ...]:
        return _read(Tags, await self._asked("GET", "/api/ps", None, ASK_S)).models

    async def show(self, name: str) -> Shown:
        return _read(Shown, await self._asked("POST", "/api/show", {"model": name}, ASK_S))

    async def load(self, name: str, keep_alive: str, context: int, *, embeds: bool, timeout_s: float) -> None:
        """Load a model, or keep a loaded one loaded for `keep_alive` more."""
        body = {"model": name, "keep_alive": keep_alive, "options": {"num_ctx": context}}
        if embeds:
            await self._asked("POST", "/api/embed", {**body, "input": []}, timeout_s)
        else:
            await self._asked("POST", "/api/generate", {**body, "stream": False}, timeout_s)

    async def embed(self, name: str, inputs: list[str], keep_alive: str, context: int) -> EmbeddedBody:
        body = {"model": name, "input": inputs, "truncate": False, "keep_alive": keep_alive}
        body["options"] = {"num_ctx": context}
        return _read(EmbeddedBody, await self._asked("POST", "/api/embed", body, self._silence_s, LIST_BYTES_MAX * 2))

    async def pull(self, name: str) -> AsyncGenerator[Pulled, None]:
        """Yield how far a pull is, up to its end. Leaving it stops the pull, which the next one goes on with."""
        async with self.opened("/api/pull", {"model": name, "stream": True}) as lines:
            async for line in lines:
                told = _read(Pulled, line)
                if told.error is not None:
                    raise fault(400, told.error)
                yield told
                if told.status == "success":
                    return
        raise InferenceError(*_BROKEN)

    @asynccontextmanager
    async def opened(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the lines of what is made for `body`. Raises InferenceError, also while they are read."""
        content = orjson.dumps(body)
        headers = {"content-type": "application/json"}
        with _told():
            async with self._http.stream(
                "POST", self.base_url + path, headers=headers, content=content, silence_s=self._silence_s
            ) as answer:
                if answer.status != 200:
                    raise fault(answer.status, await _beginning(answer.chunks))
                yield _lines(answer.chunks)

    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float, bytes_max: int = LIST_BYTES_MAX
    ) -> bytes:
        with _told():
            reply = await self._http.request(
                method,
                self.base_url + path,
                headers={} if body is None else {"content-type": "application/json"},
                content=None if body is None else orjson.dumps(body),
                timeout_s=timeout_s,
                body_bytes_max=bytes_max,
            )
        if reply.status != 200:
            raise fault(reply.status, _said(reply.content))
        return reply.content


def url_of(host: str) -> str:
    """Return where an Ollama is, from what its own programs call OLLAMA_HOST: `gpu-box`, `0.0.0.0:11434`, a URL."""
    if "://" in host:
        return host.rstrip("/")
    host = host.strip("/") or "127.0.0.1"
    return f"http://{host}" if _PORT.search(host) else f"http://{host}:{PORT}"


def read_line(line: bytes) -> Line:
    """Return a line of an answer. Raises InferenceError: it is none, or tells of an error."""
    told = _read(Line, line)
    if told.error is not None:
        raise fault(500, told.error)
    return told


def fault(status: int, said: str) -> InferenceError:
    """Return what an error of Ollama's is to a client of ours; what it said stays here."""
    lower = said.lower()
    for sign, code, detail in _SIGNS:
        if sign in lower:
            return InferenceError(code, detail)
    return InferenceError(*_STATUSES.get(status, _BROKEN))


def _said(content: bytes) -> str:
    try:
        return Failed.model_validate_json(content).error
    except ValidationError:
        return ""


def _read(model: type[_Body], content: bytes) -> _Body:
    try:
        return model.model_validate_json(content)
    except ValidationError:
        raise InferenceError(*_BROKEN) from None


async def _beginning(chunks: AsyncIterator[bytes]) -> str:
    """Return the error that a body tells of, empty where it tells none in its first bytes."""
    received = bytearray()
    async for chunk in chunks:
        received += chunk
        if len(received) > ERROR_BYTES_MAX:
            return ""
    return _said(bytes(received))


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines of a body. Raises InferenceError: one is too long."""
    rest = b""
    with _told():
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise InferenceError(*_BROKEN)
            for line in whole:
                if line.strip():
                    yield line
        if rest.strip():
            yield rest


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the way to Ollama raises into a request's refusals."""
    try:
        yield
    except Unreachable:
        raise InferenceError("upstream_error", "the engine of this model cannot be reached") from None
    except Broken:
        raise InferenceError("upstream_error", "the answer of this model's engine broke off") from None
    except TimedOut:
        raise InferenceError("upstream_timeout", "the engine of this model fell silent") from None
    except OutboundError:
        raise InferenceError(*_BROKEN) from None

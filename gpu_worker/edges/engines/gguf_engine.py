"""Whole models out of GGUF files: one llama.cpp a model, each in a child process of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
from types import MappingProxyType
from typing import TypeVar

from gpu_worker.core.errors import Bug, OwnersFault
from gpu_worker.core.inference.calls import Format, format_of
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.llama import PACKAGES, Package
from gpu_worker.edges.engines.gguf_kept import KeptLlama
from gpu_worker.edges.engines.gguf_setup import GgufSetup, GgufTimes
from gpu_worker.edges.engines.upstream_calls import found
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.inference.text.engine import Answer, Ask, Embedded, EngineCounts, EngineLoad, ModelCard, Piece
from gpu_worker.model_port import Tell
from outbound.http import HttpClient
from wire.openai import ChatRequest, CompletionRequest

AskedT = TypeVar("AskedT")

_MODULES: Mapping[Package, str] = {"xllamacpp": "xllamacpp", "llama-cpp-python": "llama_cpp"}
_EXTRAS: Mapping[Package, str] = {"xllamacpp": "gguf", "llama-cpp-python": "gguf-source"}


def package_of(wanted: str) -> Package:
    """
    Return the package that carries llama.cpp; `auto`: the first of PACKAGES that is installed.

    Raises:
        OwnersFault: it is not installed.
    """
    for package in PACKAGES:
        if wanted in (package, "auto") and find_spec(_MODULES[package]) is not None:
            return package
    extra = next((_EXTRAS[package] for package in PACKAGES if package == wanted), "gguf")
    raise OwnersFault(f"llama.cpp is not installed here: pip install 'livery[{extra}]'")


class GgufEngine:
    """
    Implements `WholeEngine`.

    Args:
        setups: of the models, the default one first.
        package: what carries llama.cpp, auto: what is installed.
    """

    kind = "gguf"
    names: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, setups: Sequence[GgufSetup], http: HttpClient, *, package: str = "auto", times: GgufTimes | None = None
    ) -> None:
        self._setups, self._http, self._package = tuple(setups), http, package
        self._times = times or GgufTimes()
        self._kept: dict[str, KeptLlama] = {}
        self._open: set[_Answer] = set()
        self._broken: asyncio.Future[str] | None = None
        self._tell: Tell = lambda what, done, total: None

    async def open(self, tell: Tell) -> None:
        package = package_of(self._package)
        self._tell, self._broken = tell, asyncio.get_running_loop().create_future()
        self._kept = {setup.name: KeptLlama(setup, package, self._http, self._times) for setup in self._setups}
        # One after the other: each reads its file, and the memory is asked once for what it has.
        for kept in self._kept.values():
            if kept.setup.preload:
                kept.start(tell, self._ended)
                await kept.opened()

    async def keep(self) -> None:
        """Wait for what cannot be mended: every model is looked after by itself. Raises Bug: one of them cannot be."""
        assert self._broken is not None
        raise Bug(await asyncio.shield(self._broken))

    async def close(self) -> None:
        for kept in self._kept.values():
            await kept.close()

    def cards(self) -> Sequence[ModelCard]:
        return tuple(kept.card for kept in self._kept.values()) or tuple(
            ModelCard(name=setup.name, context=setup.context, is_loaded=False) for setup in self._setups
        )

    async def begin(self, ask: Ask) -> Answer:
        kept = self._model(ask.model)

        async def begun(upstream: OpenAiUpstream) -> Answer:
            # llama-cpp-python tells what a model says, and looks for no calls in it.
            form = None if kept.finds_calls else _form(ask, kept.template)
            return await upstream.begin(ask) if form is None else await found(upstream, ask, form, {})

        inner = await self._asked(kept, ask, begun)
        answer = _Answer(inner, kept.card.model_hash, self._open)
        self._open.add(answer)
        return answer

    async def count(self, ask: Ask) -> int | None:
        return await self._asked(self._model(ask.model), ask, lambda upstream: upstream.count(ask))

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        kept = self._model(model)

        async def embedded(upstream: OpenAiUpstream) -> Embedded:
            for each in inputs:
                await _check_input(upstream, each, kept.setup.context)
            return await upstream.embed(model, inputs)

        return await self._asked(kept, None, embedded)

    async def _asked(
        self, kept: KeptLlama, ask: Ask | None, call: Callable[[OpenAiUpstream], Awaitable[AskedT]]
    ) -> AskedT:
        """Return what llama.cpp answers; where it ended before it did, the next one is asked, once."""
        upstream = await kept.upstream()
        if ask is not None:
            _check(ask, kept)
        try:
            with kept.asking():
                return await call(upstream)
        except InferenceError as error:
            if error.code != "upstream_error" or not await kept.has_lost(upstream):
                raise
        upstream = await kept.upstream()
        with kept.asking():
            return await call(upstream)

    def load(self) -> EngineLoad:
        kept = [each for each in self._kept.values() if each.card.is_loaded]
        return EngineLoad(
            running=len(self._open),
            cache_used=sum(answer.prompt_tokens + answer.tokens for answer in self._open),
            cache_max=sum(each.setup.context * each.slots for each in kept),
            is_there=bool(kept),
        )

    @property
    def counts(self) -> EngineCounts:
        total = EngineCounts()
        for each in (kept.counts for kept in self._kept.values()):
            total.steps += each.steps
            total.rows += each.rows
            total.restarts += each.restarts
            total.prefix_queries += each.prefix_queries
            total.prefix_hits += each.prefix_hits
        return total

    def _model(self, name: str) -> KeptLlama:
        kept = self._kept.get(name)
        if kept is None:
            raise InferenceError("model_not_found", f"{name} is not served here", "model")
        kept.start(self._tell, self._ended)
        return kept

    def _ended(self, kept: KeptLlama) -> None:
        assert self._broken is not None
        if kept.setup.preload and not self._broken.done():
            self._broken.set_result(str(kept.fault))


class _Answer:
    """Implements `Answer` over another, and is in `open` until it is closed."""

    def __init__(self, inner: Answer, model_hash: str, open_answers: set["_Answer"]) -> None:
        self.model_hash = model_hash
        self._inner, self._open = inner, open_answers

    @property
    def prompt_tokens(self) -> int:
        return self._inner.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._inner.cached_tokens

    @property
    def tokens(self) -> int:
        return self._inner.tokens

    @property
    def finish_reason(self) -> str | None:
        return self._inner.finish_reason

    def pieces(self) -> AsyncIterator[Piece]:
        return self._inner.pieces()

    async def close(self) -> None:
        self._open.discard(self)
        await self._inner.close()


def _check(ask: Ask, kept: KeptLlama) -> None:
    """Refuse what llama.cpp would pass over, or take for something else. Raises InferenceError."""
    request = ask.request
    if kept.embeds:
        raise InferenceError("invalid_argument", f"{ask.model} makes embeddings, no texts", "model")
    if isinstance(request, ChatRequest) and request.offered_tools and not kept.knows_tools:
        raise InferenceError("invalid_argument", "this model's template knows no tools", "tools")


def _form(ask: Ask, template: str) -> Format | None:
    """Return how calls are written where some may come, None: none may, or they are demanded, which is seen to."""
    request = ask.request
    if not isinstance(request, ChatRequest) or not request.offered_tools or request.demands_call:
        return None
    form = format_of(template)
    if form is None:
        raise InferenceError("invalid_argument", "how this model writes calls is not known here", "tools")
    return form


async def _check_input(upstream: OpenAiUpstream, text: str | tuple[int, ...], context: int) -> None:
    """Refuse what is to be pooled and cannot be computed in one piece. Raises InferenceError."""
    count = len(text.encode()) if isinstance(text, str) else len(text)
    if isinstance(text, str) and count > context:
        ask = Ask(request=CompletionRequest(prompt=text), model=upstream.cards()[0].name, session="")
        count = await upstream.count(ask) or 0
    if count > context:
        detail = f"this model makes vectors of {context} tokens at most, not of {count}"
        raise InferenceError("context_length_exceeded", detail, "input")

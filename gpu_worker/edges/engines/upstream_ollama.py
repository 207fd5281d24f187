"""
An Ollama as the engine of a worker: it is asked what it has, told to fetch what is missing, and answers requests.

Who asks for a model that is not loaded waits a while, then hears how far it is; it gets there beside the requests.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.ollama_body import Terms, path_and_body, tokens_max_of
from gpu_worker.edges.engines.ollama_answer import OllamaAnswer
from gpu_worker.edges.engines.ollama_client import OllamaClient
from gpu_worker.edges.engines.ollama_models import KEEP_ALIVE, Model, OllamaModels
from gpu_worker.inference.text.engine import Ask, Embedded, EngineCounts, EngineLoad, ModelCard
from gpu_worker.model_port import Tell
from outbound.http import HttpClient
from wire.ollama import other_names
from wire.openai import ChatRequest

LOOK_S = 30.0
AGAIN_S = 2.0
WIDTH_MAX = 65_536
# Older ones cut a prompt that is too long, and answer what is left of it.
VERSION_MIN = (0, 13)

logger = logging.getLogger("livery.worker.ollama")


class OllamaEngine:
    """
    Implements `TextEngine`, and a life: `open`, `keep`, `close`.

    Args:
        models: what is served, the default one first; `preload` are those of them, or others, that `open` loads.
        context, quant, memory_bytes: as in `OllamaModels`.
        wait_s: how long `open` waits for Ollama to be there.
        ready_s: how long a request waits for its model to be there.
    """

    kind = "ollama"

    def __init__(
        self,
        base_url: str,
        http: HttpClient,
        models: Sequence[str],
        *,
        preload: Sequence[str] = (),
        context: int | None = None,
        quant: str = "auto",
        memory_bytes: Callable[[], int | None] = lambda: None,
        silence_s: float = 120,
        wait_s: float = 60,
        ready_s: float = 30,
    ) -> None:
        self._client = OllamaClient(base_url, http, silence_s)
        self._held = OllamaModels(
            self._client, dict.fromkeys((*models, *preload)), context=context, quant=quant, memory_bytes=memory_bytes
        )
        self._preloaded = tuple(self._held.models[name] for name in dict.fromkeys((*models[:1], *preload)))
        self._wait_s, self._ready_s = wait_s, ready_s
        self._running = 0
        self._is_there = True
        self._counts = EngineCounts()

    @property
    def counts(self) -> EngineCounts:
        return self._counts

    @property
    def names(self) -> Mapping[str, str]:
        """What models may be called besides, by what is installed of them."""
        return other_names({model.name: model.variant for model in self._held.models.values()})

    def load(self) -> EngineLoad:
        return EngineLoad(running=self._running, is_there=self._is_there)

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(model.card() for model in self._held.models.values())

    async def open(self, tell: Tell) -> None:
        """Find what is installed, fetch and load what is to be there at once. Raises OwnersFault."""
        await self._found(tell)
        try:
            await self._held.look()
            for model in self._preloaded:
                await self._held.prepare(model, tell)
            for model in self._held.models.values():
                if model.tag is not None and model not in self._preloaded:
                    await self._held.describe(model)
        except InferenceError as error:
            raise OwnersFault(f"Ollama at {self._client.base_url}: {error}") from error

    async def keep(self) -> None:
        """Look every half a minute what is there, for ever. An Ollama that is gone may come back."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Read what is there, and have what was preloaded stay so. Returns whether Ollama answers."""
        was_there, url = self._is_there, self._client.base_url
        try:
            await self._held.look()
        except InferenceError as error:
            if was_there:
                logger.warning("there is no Ollama any more at %s: %s", url, error)
            self._is_there = False
            self._held.lose()
            return False
        self._is_there = True
        try:
            for model in self._preloaded:
                if model.loaded is not None:
                    await self._held.load(model, LOOK_S)
                elif not was_there:
                    # It was started again, and has nothing in memory.
                    await self._held.prepare(model, _untold)
        except (InferenceError, OwnersFault) as error:
            logger.warning("Ollama at %s: %s", url, error)
        return True

    async def close(self) -> None:
        await self._held.close()

    async def begin(self, ask: Ask) -> OllamaAnswer:
        model, request = await self._ready(ask.model), ask.request
        if not model.can("completion"):
            raise InferenceError("invalid_argument", "this model makes embeddings alone", "model")
        if isinstance(request, ChatRequest) and request.offered_tools and not model.can("tools"):
            raise InferenceError("invalid_argument", "this model knows no tools", "tools")
        terms = Terms(
            model=model.variant,
            context=model.context,
            tokens_max=tokens_max_of(request.tokens_max, ask.tokens_usual, model.context),
            thinks="thinking" in model.shown.capabilities,
            keep_alive=KEEP_ALIVE,
        )
        path, body = path_and_body(request, terms)
        left = self._counted()
        answer = OllamaAnswer(
            ask,
            self._client.opened(path, body),
            tokens_max=terms.tokens_max,
            context=model.context,
            model_hash=model.model_hash,
            on_close=left,
        )
        try:
            await answer.open()
        except BaseException as error:
            left()
            if isinstance(error, InferenceError) and error.code == "not_ready":
                # It was taken away: the next request has it fetched again.
                model.tag = model.loaded = None
            raise
        return answer

    async def count(self, ask: Ask) -> int | None:
        """Ollama has no way to ask."""
        return None

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        texts = [each for each in inputs if isinstance(each, str)]
        if len(texts) != len(inputs):
            raise InferenceError("invalid_argument", "this model's engine takes text alone", "input")
        served = await self._ready(model)
        if not served.can("embedding"):
            raise InferenceError("invalid_argument", f"{model} makes no embeddings", "model")
        left = self._counted()
        try:
            made = await self._client.embed(served.variant, texts, KEEP_ALIVE, served.context)
        finally:
            left()
        widths = {len(vector) for vector in made.embeddings}
        if len(made.embeddings) != len(texts) or len(widths) > 1 or not all(0 < width <= WIDTH_MAX for width in widths):
            raise InferenceError("upstream_error", "the engine of this model does not answer as it should")
        tokens = min(made.prompt_eval_count, served.context * len(texts))
        return Embedded(vectors=made.embeddings, tokens=tokens)

    def _counted(self) -> Callable[[], None]:
        """Count something that goes on. Returns what ends it, once."""
        open_ones = [None]
        self._running += 1

        def left() -> None:
            if open_ones:
                open_ones.pop()
                self._running -= 1

        return left

    async def _found(self, tell: Tell) -> None:
        """Return once Ollama is there. Raises OwnersFault: it is not, or too old."""
        url, tries = self._client.base_url, max(1, int(self._wait_s / AGAIN_S))
        for at in range(tries):
            try:
                version = await self._client.version()
                break
            except InferenceError:
                tell("waiting for Ollama", at, tries)
                if at + 1 < tries:
                    await asyncio.sleep(AGAIN_S)
        else:
            raise OwnersFault(
                f"there is no Ollama at {url}: start it (ollama serve), or say where it is with OLLAMA_HOST"
            )
        if version.numbers is not None and version.numbers < VERSION_MIN:
            oldest = ".".join(map(str, VERSION_MIN))
            raise OwnersFault(
                f"Ollama at {url} is {version.version}: from {oldest} on a prompt that is too long is refused, not cut"
            )

    async def _ready(self, name: str) -> Model:
        """Return a model that is loaded. Raises InferenceError: it is not in time, and is told when."""
        model = self._held.models.get(name)
        if model is None:
            raise InferenceError("model_not_found", f"The model {name[:200]!r} does not exist here", "model")
        if model.loaded is None:
            try:
                async with asyncio.timeout(self._ready_s):
                    await self._held.prepare(model, _untold)
            except TimeoutError:
                raise InferenceError("not_ready", f"{name} is being loaded: {model.progress}; ask again") from None
            except OwnersFault as error:
                logger.warning("%s cannot be served: %s", name, error)
                raise InferenceError("not_ready", f"{name} cannot be loaded now") from error
        return model


def _untold(what: str, done: int, total: int) -> None:
    pass

"""One GGUF model, its llama.cpp kept alive: loaded, looked after, started again when it ends, hangs or is stuck."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpu_worker.config import program_environment
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.llama import Package
from gpu_worker.edges.engines.gguf_file import GgufModel
from gpu_worker.edges.engines.gguf_setup import GgufSetup, GgufTimes, read_files, spec_of
from gpu_worker.edges.engines.llama_process import LlamaProcess
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.inference.text.engine import EngineCounts, ModelCard
from gpu_worker.model_port import Tell
from outbound.http import HttpClient, OutboundError

# A file of a gigabyte may take twenty seconds more to load.
START_S, LOAD_BYTES_PER_S = 60.0, 50_000_000
STARTS_MAX = 5
LOST_S = 0.5
BACKOFF_S_MAX = 30.0
LIVED_S = 60.0
METRICS_BYTES_MAX = 1024 * 1024
_FIGURE = re.compile(r"^llamacpp:(\w+) ([0-9.e+]{1,24})$", re.MULTILINE)

_LOG = logging.getLogger("livery.gpu_worker")


@dataclass(slots=True)
class _Child:
    """A llama.cpp that serves. `tools` says whether its template knows them."""

    process: LlamaProcess
    upstream: OpenAiUpstream
    key: str
    template: str = ""
    tools: bool = False
    steps: int = 0
    rows: int = 0


class KeptLlama:
    """`package` carries llama.cpp. It lives from `start` on, until `close`."""

    def __init__(self, setup: GgufSetup, package: Package, http: HttpClient, times: GgufTimes) -> None:
        self.setup, self.package = setup, package
        self.fault: OwnersFault | None = None
        self._http, self._times = http, times
        self._model: GgufModel | None = None
        self._hash = ""
        self._child: _Child | None = None
        self._ready = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._given_up: OpenAiUpstream | None = None
        self._asked: dict[object, float] = {}
        self._past = EngineCounts()

    @property
    def card(self) -> ModelCard:
        setup = self.setup
        return ModelCard(
            name=setup.name,
            context=setup.context,
            model_hash=self._hash,
            embeds=self.embeds,
            is_loaded=self._ready.is_set(),
            quant=self._model.weights.quant if self._model else "",
            bytes=self._model.bytes if self._model else 0,
            vram_bytes=setup.vram_bytes,
        )

    @property
    def slots(self) -> int:
        """How many answers it computes together: llama-cpp-python one at a time."""
        return self.setup.slots if self.package == "xllamacpp" else 1

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors, and no texts: its file says how they are pooled."""
        values = self._model.header.values if self._model else {}
        pooling = values.get(f"{values.get('general.architecture')}.pooling_type")
        return isinstance(pooling, int) and pooling > 0

    @property
    def counts(self) -> EngineCounts:
        past, child = self._past, self._child
        if child is None:
            return past
        now = child.upstream.counts
        return EngineCounts(
            steps=past.steps + child.steps,
            rows=past.rows + child.rows,
            restarts=past.restarts,
            prefix_queries=past.prefix_queries + now.prefix_queries,
            prefix_hits=past.prefix_hits + now.prefix_hits,
        )

    def start(self, tell: Tell, on_end: Callable[["KeptLlama"], None]) -> None:
        """Begin to live, where it does not. `on_end` is called when it cannot go on: `fault` says why."""
        if self._life is not None and not self._life.done():
            return
        self.fault = None

        def ended(life: asyncio.Task[None]) -> None:
            error = None if life.cancelled() else life.exception()
            if error is not None:
                self.fault = error if isinstance(error, OwnersFault) else OwnersFault(f"{self.setup.name}: {error!r}")
                on_end(self)

        self._life = asyncio.create_task(self._live(tell))
        self._life.add_done_callback(ended)

    async def opened(self) -> None:
        """Return once it serves. Raises OwnersFault: it cannot."""
        assert self._life is not None
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({self._life, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            await self._life

    async def close(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})

    async def upstream(self) -> OpenAiUpstream:
        """Return what requests are sent to. Raises InferenceError: it is not ready in time."""
        try:
            async with asyncio.timeout(self._times.ready_s):
                await self._ready.wait()
        except TimeoutError:
            raise InferenceError("not_ready", f"{self.setup.name} is being loaded: ask again soon") from None
        assert self._child is not None
        return self._child.upstream

    async def has_lost(self, upstream: OpenAiUpstream) -> bool:
        """
        Return whether what `upstream` asks has ended by itself: that is heard a moment after its connections broke.

        What was ended here, because it hung, may hang over the same request again.
        """
        child = self._child
        if child is not None and child.upstream is upstream:
            try:
                async with asyncio.timeout(LOST_S):
                    await child.process.ended()
            except TimeoutError:
                return False
            # Who waits for the next one must not be given this one again.
            self._ready.clear()
        return upstream is not self._given_up

    @property
    def knows_tools(self) -> bool:
        return self._child is not None and self._child.tools

    @property
    def template(self) -> str:
        """Its chat template."""
        return "" if self._child is None else self._child.template

    @property
    def finds_calls(self) -> bool:
        return self.package == "xllamacpp"

    @contextmanager
    def asking(self) -> Iterator[None]:
        """As long as llama.cpp is asked and has not begun to answer: who waits too long there is stuck."""
        mark = object()
        self._asked[mark] = time.monotonic()
        try:
            yield
        finally:
            del self._asked[mark]

    async def _live(self, tell: Tell) -> None:
        name = self.setup.name
        self._model, self._hash = await asyncio.to_thread(read_files, self.setup, tell)
        fails, is_first = 0, True
        while True:
            tell(f"loading {name}", 0, 1)
            began_s = time.monotonic()
            try:
                child = await self._started()
            except OwnersFault:
                fails += 1
                if is_first or fails >= STARTS_MAX:
                    raise
            else:
                tell(f"loading {name}", 1, 1)
                reason = await self._served(child)
                _LOG.warning("%s is loaded again: %s", name, reason)
                # What ends soon after it was loaded is not loaded as fast as the machine can, but for ever.
                is_short = time.monotonic() - began_s < LIVED_S
                is_first, fails = False, min(fails + 1, STARTS_MAX - 2) if is_short else 0
            # The first time at once.
            await asyncio.sleep(min(self._times.backoff_s * 2.0**fails, BACKOFF_S_MAX) if fails > 1 else 0)

    async def _served(self, child: _Child) -> str:
        """Serve with `child`, and return why it is of no use any more."""
        try:
            self._child = child
            self._ready.set()
            return await self._gone(child)
        finally:
            self._ready.clear()
            self._past, self._child = self.counts, None
            self._past.restarts += 1
            await child.process.end()

    async def _started(self) -> _Child:
        setup, times, key = self.setup, self._times, secrets.token_urlsafe(32)
        spec = spec_of(setup, self.package, key, embeds=self.embeds)
        start_s = times.start_s or START_S + self.card.bytes / LOAD_BYTES_PER_S
        environment = program_environment(setup.threads, setup.visible)
        process = await LlamaProcess.start(spec, environment, start_s=start_s)
        upstream = OpenAiUpstream(
            process.url,
            key,
            self._http,
            silence_s=times.silence_s,
            kind="gguf",
            flavour="llamacpp",
            cards=(self.card,),
            wait_s=times.ready_s,
        )
        child = _Child(process, upstream, key)
        try:
            # It says how many tokens its model knows.
            await upstream.open(lambda what, done, total: None)
            told = await self._get(child, "/props")
            child.template = str(told.get("chat_template", ""))
            child.tools = bool(told.get("chat_template_caps", {}).get("supports_tools"))
        except (OutboundError, ValueError, AttributeError, OwnersFault):
            await process.end()
            raise OwnersFault(f"{setup.name} was loaded, and does not answer") from None
        return child

    async def _gone(self, child: _Child) -> str:
        """Return why `child` is of no use any more, once that is so; it is ended then."""
        ended = asyncio.create_task(child.process.ended())
        try:
            while True:
                await asyncio.wait({ended}, timeout=min(5.0, self._times.health_s / 4))
                if ended.done():
                    return ended.result()
                if why := await self._hung(child):
                    # What has just ended does not answer either.
                    await asyncio.wait({ended}, timeout=LOST_S)
                    if ended.done():
                        return ended.result()
                    self._given_up = child.upstream
                    return why
        finally:
            ended.cancel()
            child.process.kill()

    async def _hung(self, child: _Child) -> str:
        """Return why `child` does not go on, empty: it does."""
        try:
            busy = await self._looked(child)
        except (OutboundError, ValueError):
            return f"it did not answer within {self._times.health_s:g} s"
        now_s = time.monotonic()
        late = sum(now_s - since_s > self._times.stuck_s for since_s in self._asked.values())
        return "a request hangs in it" if late > busy else ""

    async def _looked(self, child: _Child) -> int:
        """Return how many requests it computes or lets wait. Raises OutboundError, ValueError: it does not say so."""
        figures = {name: float(value) for name, value in _FIGURE.findall(await self._text(child, "/metrics"))}
        child.steps = int(figures.get("n_decode_total", 0))
        child.rows = int(figures.get("prompt_tokens_total", 0) + figures.get("tokens_predicted_total", 0))
        return int(figures["requests_processing"] + figures["requests_deferred"]) if figures else 0

    async def _get(self, child: _Child, path: str) -> Any:
        import orjson

        return orjson.loads(await self._text(child, path))

    async def _text(self, child: _Child, path: str) -> str:
        reply = await self._http.request(
            "GET",
            child.process.url + path,
            headers={"authorization": f"Bearer {child.key}"},
            content=None,
            timeout_s=self._times.health_s,
            body_bytes_max=METRICS_BYTES_MAX,
        )
        return reply.content.decode(errors="replace")

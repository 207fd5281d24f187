"""Two hundred streams at once on an engine that costs nothing: what is lost, and what memory they take."""

import asyncio
import json
import multiprocessing
import os
import statistics
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

from bench.decode.report import Scene
from bench.serving.asked import Asked
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Ask, Embedded, EngineCounts, EngineLoad, ModelCard, Piece
from gpu_worker.inference.text.service import Service

MODEL = "counting"
EVERY_S = 0.05
LOOKS = 8
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Counting:
    """Implements `TextEngine`: its answers are the numbers from 0 on, one each `EVERY_S`."""

    kind = "openai"
    counts = EngineCounts()

    def cards(self) -> Sequence[ModelCard]:
        return (ModelCard(name=MODEL, context=8_192),)

    async def begin(self, ask: Ask) -> "CountingAnswer":
        return CountingAnswer(ask.request.tokens_max or 1)

    async def count(self, ask: Ask) -> int:
        return 8

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        raise InferenceError("invalid_argument", "it only counts")

    def load(self) -> EngineLoad:
        return EngineLoad()


class CountingAnswer:
    prompt_tokens, cached_tokens, model_hash = 8, 0, ""

    def __init__(self, most: int) -> None:
        self.tokens, self._most = 0, most
        self.finish_reason: str | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        while self.tokens < self._most:
            self.tokens += 1
            yield Piece(f"{self.tokens - 1} ", tokens=1)
            await asyncio.sleep(EVERY_S)
        self.finish_reason = "length"

    async def close(self) -> None:
        pass


def crowd(asked: Asked) -> Scene:
    """Return how many chunks were lost, and the memory of the door while the streams run."""
    scene = Scene(
        "crowd", f"{asked.streams} streams at once through the door, {asked.chunks} chunks each, a fake engine"
    )
    near, far = multiprocessing.Pipe()
    door = multiprocessing.get_context("spawn").Process(target=_serve, args=(far,))
    door.start()
    try:
        url = near.recv()
        asyncio.run(_streams(url, 8, 8))  # what is made at the first request is there
        before = _rss_bytes(door.pid)
        lost, looks = asyncio.run(_watched(url, asked, door.pid or 0))
    finally:
        near.send("end")
        door.join(10)
        door.kill()
    half = len(looks) // 2
    grown = statistics.median(looks[half:]) / statistics.median(looks[:half])
    scene.add("chunks lost, doubled or out of order", lost, most=0)
    scene.add("chunks told", asked.streams * asked.chunks)
    scene.add("memory of a stream", (statistics.median(looks) - before) / asked.streams / 1024, "KiB")
    scene.add("memory, second half / first half", grown, most=1.02)
    scene.about["memory of the door, MiB"] = [round(before / 2**20, 1), *(round(each / 2**20, 1) for each in looks)]
    return scene


async def _watched(url: str, asked: Asked, pid: int) -> tuple[int, list[int]]:
    """Return how many chunks were not as they should be, and the memory of the door at `LOOKS` moments."""
    running = asyncio.create_task(_streams(url, asked.streams, asked.chunks))
    looks: list[int] = []
    for _ in range(LOOKS):
        await asyncio.sleep(asked.chunks * EVERY_S / (LOOKS + 1))
        looks.append(_rss_bytes(pid))
    return await running, looks


async def _streams(url: str, streams: int, chunks: int) -> int:
    return sum(await asyncio.gather(*(_stream(url, chunks) for _ in range(streams))))


async def _stream(url: str, chunks: int) -> int:
    """Return how many of one stream's chunks are not what they should be."""
    parts = urlsplit(url)
    body = json.dumps({"prompt": "count", "stream": True, "max_tokens": chunks}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head.encode() + body)
    said = []
    try:
        async for line in reader:
            if line.startswith(b'data: {"'):
                said += [choice["text"] for choice in json.loads(line[6:]).get("choices", ())]
    finally:
        writer.close()
    told, wanted = "".join(said).split(), [str(number) for number in range(chunks)]
    return sum(one != other for one, other in zip(told, wanted, strict=False)) + abs(len(told) - len(wanted))


def _rss_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def _serve(told: Connection) -> None:
    asyncio.run(_served(told))


async def _served(told: Connection) -> None:
    from gpu_worker.edges.http.openai_door import openai_app
    from inbound.serve import bound_socket, serve_until

    service = Service(model=MODEL, engine=Counting())
    server, stop = bound_socket("127.0.0.1", 0, chosen=True), asyncio.Event()
    serving = asyncio.create_task(serve_until(openai_app(service), server, stop, name="crowd", drain_s=1))
    told.send(f"http://127.0.0.1:{server.getsockname()[1]}")
    await asyncio.to_thread(told.recv)
    stop.set()
    await serving

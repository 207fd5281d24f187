"""The OpenAI API over each engine of whole models, behind the worker's real door, asked over real connections."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from gpu_worker.inference.text.engine import TextEngine
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from tests.contracts.text_engine_place import SLOTS, EnginePlace, engine_place
from tests.fixtures.talker import client_of, served

CHATS, COMPLETIONS, EMBEDDINGS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"
HELLO: Any = [{"role": "user", "content": "What does the tick do?"}]
PROMPT = "The worker pays the vendor"
ALIAS = "gpt-4o"
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sea"]}}, "required": ["at"],
                       "additionalProperties": False},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Door:
    """A door with its engine. `place` is what the engine is known to say, None: a test says it."""

    url: str
    service: Service
    client: httpx.AsyncClient
    official: openai.AsyncOpenAI
    place: EnginePlace | None = None

    @property
    def model(self) -> str:
        return self.service.model

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def chat(self, **fields: Any) -> dict[str, Any]:
        return await self.answer(CHATS, {"messages": HELLO, "temperature": 0, **fields})

    async def complete(self, **fields: Any) -> dict[str, Any]:
        return await self.answer(COMPLETIONS, {"prompt": PROMPT, "temperature": 0, **fields})

    async def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self.post(path, body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chunks of a streamed answer, which ends as one does."""
        reply = await self.post(path, {**body, "stream": True})
        assert reply.status_code == 200, reply.text
        assert reply.text.endswith("data: [DONE]\n\n")
        return events_of(reply.text)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - an engine rings no bell
            await asyncio.sleep(0.002)


def is_idle(door: Door) -> bool:
    """Return whether nobody has a turn, and nothing is computed."""
    load = door.service.engine.load() if door.service.engine is not None else None
    return load is not None and (door.service.turns.running, load.running, load.waiting) == (0, 0, 0)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


def said(body: dict[str, Any]) -> str:
    """Return the text of an answer or of a chunk."""
    choice = body["choices"][0]
    text = choice["text"] if "text" in choice else (choice.get("message") or choice.get("delta") or {}).get("content")
    return text or ""


@asynccontextmanager
async def door_of(engine: TextEngine, place: EnginePlace | None = None) -> AsyncIterator[Door]:
    """Serve an open engine to this machine."""
    name = engine.cards()[0].name
    turns = Turns(SLOTS, 16, 60.0)
    service = Service(model=name, aliases={ALIAS: name}, engine=engine, turns=turns)
    async with (
        served(service) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
        client_of(f"{url}/v1") as official,
    ):
        yield Door(url, service, client, official, place)


@asynccontextmanager
async def engine_door(kind: str, folder: Path) -> AsyncIterator[Door]:
    """Serve the engine of that kind over the model in `folder`."""
    async with engine_place(kind, folder) as place, door_of(place.engine, place) as door:
        yield door

"""A real model for the clients that others wrote: the tiny one, in llama.cpp."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gpu_worker.edges.engines.gguf_engine import GgufEngine
from gpu_worker.edges.engines.gguf_setup import GgufSetup
from gpu_worker.engine.gguf.convert import model_to_gguf
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from outbound.http import HttpClient
from tests.fixtures.tiny_gguf import TinyGguf

MODEL = "tiny-gguf"


@asynccontextmanager
async def model_service(tiny: TinyGguf, folder: Path, secret: str) -> AsyncIterator[Service]:
    """Serve it to who knows `secret`; its template, put into `folder`, tells of tools."""
    path = await asyncio.to_thread(_tooled, tiny, folder)
    setup = GgufSetup(name=MODEL, path=path, context=2_048, slots=2)
    engine = GgufEngine([setup], HttpClient())
    await engine.open(lambda what, done, total: None)
    try:
        yield Service(model=MODEL, engine=engine, admission=Admission(secret=secret), turns=Turns(2, 8, 60.0))
    finally:
        await engine.close()


def _tooled(tiny: TinyGguf, folder: Path) -> Path:
    shutil.copytree(tiny.hf, folder / MODEL)
    template = folder / MODEL / "chat_template.jinja"
    told = "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call>{% endfor %}"
    template.write_text(told + template.read_text())
    path = folder / f"{MODEL}.gguf"
    model_to_gguf(folder / MODEL, path, "q8_0")
    return path

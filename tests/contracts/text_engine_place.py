"""
The engines of whole models, each with one that it serves: llama.cpp in a child of ours, llama.cpp's own server as
somebody's server of OpenAI's API, the slices of all layers, and an Ollama of tests.

The first three compute the same tiny model in f32, so they say the same where the likeliest token is taken.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpu_worker.config import program_environment
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.llama import LlamaSpec
from gpu_worker.edges.engines.engine_thread import start_engine
from gpu_worker.edges.engines.gguf_engine import GgufEngine
from gpu_worker.edges.engines.gguf_setup import GgufSetup
from gpu_worker.edges.engines.llama_process import LlamaProcess
from gpu_worker.edges.engines.upstream_ollama import OllamaEngine
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.engine.gguf.convert import model_to_gguf
from gpu_worker.engine.slice.slice_engine import EngineOptions, open_engine
from gpu_worker.engine.slice.text import open_text
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.text.engine import TextEngine
from gpu_worker.inference.text.token_engine import TokenEngine
from outbound.http import HttpClient
from tests.fixtures.ollama import GREETING, fake_ollama, model
from tests.fixtures.tiny_gguf import LAYERS, TinyGguf
from tests.fixtures.toy_links import ToyNet, ToyRegistry

NAME = "tiny-gguf"
CONTEXT, SLOTS = 512, 2
REAL = ("gguf", "openai", "slice")
KINDS = (*REAL, "ollama")
START_S = 120.0
HERE = "127.0.0.1:1"


@dataclass(frozen=True)
class EnginePlace:
    """
    `context` is of a request. `greedy` is what it says to a prompt, given how many tokens; `is_real`: a model says it,
    and not a server of tests.
    """

    kind: str
    engine: TextEngine
    context: int
    greedy: Callable[[str, int], str]
    is_real: bool = True


def tooled(tiny: TinyGguf, folder: Path) -> Path:
    """Return a folder with the tiny model, whose template tells of tools, and with its GGUF file."""
    made = folder / NAME
    shutil.copytree(tiny.hf, made)
    template = made / "chat_template.jinja"
    told = "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call>{% endfor %}"
    template.write_text(told + template.read_text())
    model_to_gguf(made, folder / f"{NAME}.gguf", "f32")
    return folder


@asynccontextmanager
async def engine_place(kind: str, folder: Path) -> AsyncIterator[EnginePlace]:
    """Yield the engine of that kind over the model in `folder`, open."""
    async with {"gguf": _gguf, "openai": _openai, "slice": _slice, "ollama": _ollama}[kind](folder) as place:
        yield place


def _nobody(*_: Any) -> None:
    pass


@asynccontextmanager
async def _gguf(folder: Path) -> AsyncIterator[EnginePlace]:
    setup = GgufSetup(name=NAME, path=folder / f"{NAME}.gguf", context=CONTEXT, slots=SLOTS, threads=1)
    engine = GgufEngine([setup], HttpClient())
    try:
        await engine.open(_nobody)
        yield EnginePlace("gguf", engine, CONTEXT, _reference(folder / NAME))
    finally:
        await engine.close()


@asynccontextmanager
async def _openai(folder: Path) -> AsyncIterator[EnginePlace]:
    spec = LlamaSpec(
        package="xllamacpp",
        path=str(folder / f"{NAME}.gguf"),
        name=NAME,
        key="a key of sixteen letters or more",
        context=CONTEXT,
        slots=SLOTS,
        threads=1,
    )
    process = await LlamaProcess.start(spec, program_environment(1), start_s=START_S)
    try:
        # What it is, and what it serves, it says itself.
        engine = OpenAiUpstream(process.url, spec.key, HttpClient())
        await engine.open(_nobody)
        yield EnginePlace("openai", engine, CONTEXT, _reference(folder / NAME))
        await engine.close()
    finally:
        await process.end()


@asynccontextmanager
async def _slice(folder: Path) -> AsyncIterator[EnginePlace]:
    options = EngineOptions(cache_bytes_max=64 << 20, threads=1, dtype="fp32", back_end="hf", model=NAME)
    layers = Layers(0, LAYERS, LAYERS)
    thread = await start_engine(lambda: open_engine(folder / NAME, layers, options))
    registry = ToyRegistry([Hop(endpoint=HERE, start=0, end=LAYERS)])
    head = Head(engine=thread, links=ToyNet().links_of(HERE), registry=registry, endpoint=HERE)
    leading = asyncio.create_task(head.serve())
    try:
        engine = TokenEngine(NAME, head, open_text(folder / NAME))
        yield EnginePlace("slice", engine, engine.cards()[0].context or 0, _reference(folder / NAME))
    finally:
        await head.close()
        with contextlib.suppress(asyncio.CancelledError):
            await leading
        await thread.close()


@asynccontextmanager
async def _ollama(folder: Path) -> AsyncIterator[EnginePlace]:
    async with fake_ollama(model(NAME)) as fake:
        engine = OllamaEngine(fake.base_url, HttpClient(), [NAME], context=CONTEXT)
        try:
            await engine.open(_nobody)
            yield EnginePlace("ollama", engine, CONTEXT, lambda _, n: " ".join(GREETING[:n]), is_real=False)
        finally:
            await engine.close()


def _reference(folder: Path) -> Callable[[str, int], str]:
    """Return what the library that the model was trained with says."""

    @cache
    def greedy(prompt: str, n: int) -> str:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.tensor([tokenizer.backend_tokenizer.encode(prompt).ids])
        made = model.generate(ids, max_new_tokens=n, do_sample=False, attention_mask=torch.ones_like(ids))
        return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

    return greedy

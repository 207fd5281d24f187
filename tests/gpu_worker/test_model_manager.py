"""What scripts do with the models of an Ollama."""

import asyncio
import json
import sys
from contextlib import aclosing

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.model_manager import ModelManager
from tests.fixtures.ollama import MIB, fake_ollama, model

SMALL, BIG = "llama3.1:8b-instruct-q4_K_M", "llama3.1:8b-instruct-q8_0"
SNIPPET = """
import asyncio, json
from gpu_worker.model_manager import ModelManager
manager = ModelManager("{url}")
async def main():
    said = "".join([line["response"] async for line in manager.stream_inference("llama3.1", "Hello", num_predict=3)])
    print(json.dumps([await manager.list_models(), await manager.get_model_info("nosuch"), said]))
asyncio.run(main())
"""


@pytest.mark.row(156)
async def test_the_managers_snippet_runs_as_it_stands() -> None:
    async with fake_ollama(model(SMALL), model(BIG, quant="Q8_0")) as fake:
        snippet = SNIPPET.format(url=fake.base_url)
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", snippet, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(program.communicate(), 120)
    listed, nothing, said = json.loads(out)
    assert [each["name"] for each in listed] == [SMALL, BIG]
    assert (nothing, said) == (None, "It is a")
    assert [(body["model"], body["options"]) for body in fake.made] == [(BIG, {"num_ctx": 4096, "num_predict": 3})]


async def test_what_is_missing_is_pulled_once_and_the_default_address_is_ollamas() -> None:
    async with fake_ollama(library={"qwen3:4b": model("qwen3:4b", 2 * MIB)}) as fake:
        manager = ModelManager(fake.base_url)
        made = await asyncio.gather(*(manager.preload_models(["qwen3:4b"]) for _ in range(3)))
        assert made == [{"qwen3:4b": "qwen3:4b"}] * 3
        assert [each["name"] for each in await manager.loaded_models()] == ["qwen3:4b"]
        with pytest.raises(OwnersFault, match="cannot fetch"):
            await manager.preload_models(["nosuch:1b"])
        async with aclosing(manager.stream_inference("qwen3:4b", "Hello")) as lines:
            assert (await anext(lines))["response"] == "It"
    assert len(fake.of("/api/pull")) == 2
    assert ModelManager().base_url == "http://localhost:11434"

"""A worker whose model is an address: fetched where its owner lets it, then served."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.fixtures.hub import fake_hub
from tests.fixtures.server import WAIT_S, Server
from tests.fixtures.talker import client_of
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.test_ollama_worker import online

pytestmark = pytest.mark.slow


async def started(folder: Path, model: str, sha256: str, **environment: str) -> Server:
    return await asyncio.to_thread(
        Server,
        folder / "worker.log",
        *("cli", "worker", "start", "--name", "d", "--engine", "gguf", "--model", model, "--port", "0"),
        *("--grpc-port", "0", "--data", str(folder / "data")),
        HOME=str(folder),
        OMP_NUM_THREADS="1",
        LIVERY_WORKER_THREADS="1",
        LIVERY_WORKER_CONTEXT="512",
        LIVERY_WORKER_GGUF_SHA256=sha256,
        LIVERY_WORKER_ALLOW_PRIVATE_URLS="true",
        LIVERY_WORKER_CAPABILITY_PORT="0",
        LIVERY_WORKER_RPC_URL="http://127.0.0.1:9",
        **environment,
    )


@pytest.mark.row(62)
async def test_a_worker_fetches_its_model_goes_on_where_it_broke_off_and_serves_it(
    tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    data = tiny_gguf.gguf("q8_0").read_bytes()
    async with fake_hub(files={"tiny-Q8_0.gguf": data}, cuts=[len(data) // 2]) as hub:
        url = f"{hub.cdn}/tiny-Q8_0.gguf"
        server = await started(tmp_path, url, hashlib.sha256(data).hexdigest(), LIVERY_WORKER_HUB="true")
        try:
            await asyncio.to_thread(online, server)
            async with client_of(f"{server.url}/v1") as client:
                made = await client.completions.create(model=(await client.models.list()).data[0].id, prompt="The tick")
            assert await asyncio.to_thread(server.stop) == 0, server.log
        except BaseException:
            server.process.kill()
            raise
    assert made.choices[0].text
    assert hub.fetched == ["", f"bytes={len(data) // 2}-"]
    assert (tmp_path / "data/models/tiny-Q8_0/tiny-Q8_0.gguf").read_bytes() == data


async def test_without_its_owners_leave_nothing_is_fetched(tmp_path: Path) -> None:
    async with fake_hub(files={"tiny-Q8_0.gguf": b"GGUF"}) as hub:
        server = await started(tmp_path, f"{hub.cdn}/tiny-Q8_0.gguf", "0" * 64)
        code = await asyncio.to_thread(server.process.wait, WAIT_S)
    assert code == 1
    assert "fetched only where LIVERY_WORKER_HUB is true" in server.log
    assert hub.fetched == []

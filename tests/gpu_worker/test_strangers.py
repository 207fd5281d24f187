"""What a buyer names is called with the guard: nothing in the owner's own network, whatever it is named for."""

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import BadInput, Unavailable
from gpu_worker.core.model import Job
from gpu_worker.edges.jobs.checkpoints_http import HttpCheckpoints
from gpu_worker.wiring.worker import open_worker
from outbound.http import HttpClient
from tests.gpu_worker.core.test_pricing import HASH, job
from tests.gpu_worker.world import until
from wire.checkpoint import CheckpointFile, Manifest
from wire.jobs import FineTune
from wire.vendor import FilesGrant, ResumeFrom

REFUSED = "only public addresses are called"


async def test_no_address_that_a_buyer_names_leads_into_the_owners_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="livery.storefront")
    called: list[str] = []
    settings = WorkerSettings(_env_file=None, data=tmp_path, kinds="fine_tune")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append((await reader.readline()).decode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        worker = open_worker(settings)
        grant = FilesGrant(url=url, token="t" * 16, part_bytes_max=1_000)
        resume = ResumeFrom(
            model_hash=HASH, spec_hash=HASH, step=1, steps=2, bytes=1, url=f"{url}/run", manifest_sha256=HASH
        )
        with pytest.raises(BadInput, match=REFUSED):
            await worker.inputs.look(FineTune(dataset=f"{url}/data.jsonl"))
        with pytest.raises(Unavailable, match=REFUSED):
            await worker.checkpoints.pull(grant, resume, tmp_path / "checkpoint")

        def sold(number: int) -> Job:
            return job(vendor_id=worker.vendor.vendor_id, callback_url=f"{url}/callback")

        await worker.book.start_job("pay_1", worker.vendor.vendor_id, sold)
        await worker.book.update_job("job_1", lambda stored: replace(stored, status="completed", ended_at_s=2_000))
        tending = asyncio.create_task(worker.tend())
        await until(lambda: "no answer to a callback" in caplog.text)
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        await worker.close()

    assert called == []
    assert REFUSED in caplog.text


async def test_parts_of_a_byte_each_are_not_put(tmp_path: Path) -> None:
    called: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        called.append(request)
        return httpx.Response(201)

    (tmp_path / "model.safetensors").write_bytes(b"m" * 2_001)
    checkpoints = HttpCheckpoints(HttpClient(httpx.MockTransport(answer)))
    grant = FilesGrant(url="http://victim", token="t" * 16, part_bytes_max=1)
    manifest = Manifest(
        job_id="job_1",
        step=1,
        steps=2,
        model_hash=HASH,
        spec_hash=HASH,
        created_at=datetime.now(UTC),
        files=(CheckpointFile(name="model.safetensors", bytes=2_001, sha256=HASH),),
    )
    with pytest.raises(BadInput, match="at most 2000 are put"):
        await checkpoints.push(grant, manifest, tmp_path)
    assert called == []
    await checkpoints.push(grant.model_copy(update={"part_bytes_max": 1_000}), manifest, tmp_path)
    assert len(called) == 4

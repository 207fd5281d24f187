"""A worker as a place of the contract: a real one, whose programs do a step when they are told to."""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from chain.devchain import dev_account
from gpu_worker.config import WorkerSettings
from gpu_worker.core.model import Job
from gpu_worker.lifecycle import live
from gpu_worker.ports import Worker
from gpu_worker.wiring.worker import open_worker
from outbound.http import HttpClient
from storefront.model import TERMINAL
from tests.contracts.vendor_place import Outside
from tests.gpu_worker.world import PACE, FixedHardware, FixedSpeed, make_model, scripted_programs, until, until_async

ACCOUNT = 2
STEPS = 3
SOMEBODY_ELSE = "0x" + "11" * 20


class _Carrier(httpx.AsyncBaseTransport):
    """Carries what a worker sends: to the chain over the network, to everybody else by `others`."""

    def __init__(self, rpc_url: str, others: httpx.AsyncBaseTransport, outside: Outside) -> None:
        self._rpc = httpx.URL(rpc_url)
        self._others = others
        self._outside = outside

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if (request.url.host, request.url.port) == (self._rpc.host, self._rpc.port):
            async with httpx.AsyncHTTPTransport(verify=False) as network:
                response = await network.handle_async_request(request)
                content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)
        carrier = self._outside if request.url.host in ("files", "buyer") else self._others
        return await carrier.handle_async_request(request)


class WorkerPlace:
    """Implements `SellerPlace`."""

    vendor_id = "worker"
    secret = "worker-secret"
    gpu_type = "CPU"
    job_type = "fine_tune"
    job_params: Mapping[str, Any] = MappingProxyType(
        {"model": "tiny", "params": {"steps": STEPS, "checkpointSteps": 1}, "index": 0}
    )

    def __init__(self, folder: Path, rpc_url: str, facilitator: httpx.AsyncBaseTransport) -> None:
        self.outside = Outside(facilitator)
        self._folder = folder
        self._rpc_url = rpc_url
        self._facilitator = facilitator
        self._ahead_s = 0.0
        self._script: dict[str, Any] = {"allowed": {}, "fail": []}
        self._worker: Worker | None = None
        self._living: asyncio.Task[Any] | None = None
        self._client: httpx.AsyncClient | None = None
        make_model(folder / "worker" / "models" / "tiny")
        (folder / "text.jsonl").write_text("".join(f'{{"text": "line {number} of it"}}\n' for number in range(50)))
        self._write()

    @property
    def pay_to(self) -> str:
        return dev_account(ACCOUNT).address

    async def open(
        self,
        *,
        rpc_url: str | None = None,
        facilitator: httpx.AsyncBaseTransport | None = None,
        jobs_max: int = 64,
        refuses: tuple[str, ...] = (),
    ) -> httpx.AsyncClient:
        await self.close()
        fields = {
            "kinds": "fine_tune",
            "data": self._folder / "worker",
            "default_dataset": self._folder / "text.jsonl",
            "secret": self.secret,
            "private_key": dev_account(ACCOUNT).key,
            "rpc_url": rpc_url or self._rpc_url,
            "facilitator_url": "http://facilitator",
            "jobs_max": jobs_max,
            "threads": 1,
            "port": 0,
            # An owner names whom it sells to: nobody else is refused than who is not among them.
            "requesters": SOMEBODY_ELSE if refuses else "",
        }
        carrier = _Carrier(rpc_url or self._rpc_url, facilitator or self._facilitator, self.outside)
        worker = self._worker = open_worker(
            WorkerSettings.model_validate(fields),
            hardware=FixedHardware(),
            programs=scripted_programs(self._folder / "script.json"),
            measure=FixedSpeed(),
            http=HttpClient(carrier),
            clock=lambda: time.time() + self._ahead_s,
            pace=PACE,
        )
        living = self._living = asyncio.create_task(live(worker, asyncio.Event()))
        await until(lambda: worker.now.state == "online" or living.done())
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(worker.app), base_url="http://vendor.example")
        return self._client

    async def crash(self) -> None:
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait({self._living})
        self._living = None

    async def step(self, job_id: str) -> None:
        allowed = self._script["allowed"]
        allowed[job_id] = allowed.get(job_id, await self._step(job_id)) + 1
        self._write()

        async def is_seen() -> bool:
            job = await self._job(job_id)
            at = min(allowed[job_id], STEPS)
            pushed = job.files is None or (job.pushed is not None and job.pushed.step >= at)
            return job.status in TERMINAL or (job.step >= at and job.status == "running" and pushed)

        await until_async(is_seen)

    async def finish(self, job_id: str) -> None:
        self._script["allowed"][job_id] = STEPS
        self._write()
        await self._ended(job_id)

    async def fail(self, job_id: str) -> None:
        self._script["fail"].append(job_id)
        self._write()
        await self._ended(job_id)

    async def pass_time(self, seconds: float) -> None:
        assert self._worker is not None
        self._ahead_s += seconds
        now_s = time.time() + self._ahead_s
        for job in await self._worker.book.jobs():
            if job.ends_by_s is not None and job.ends_by_s <= now_s:
                await self._ended(job.job_id)

    async def close(self) -> None:
        await self.crash()
        if self._client is not None:
            await self._client.aclose()
        if self._worker is not None:
            await self._worker.close()
        self._client = self._worker = None

    async def _job(self, job_id: str) -> Job:
        assert self._worker is not None
        job = await self._worker.book.find_job(job_id)
        assert job is not None
        return job

    async def _step(self, job_id: str) -> int:
        return (await self._job(job_id)).step

    async def _ended(self, job_id: str) -> None:
        async def is_over() -> bool:
            return (await self._job(job_id)).status in TERMINAL

        await until_async(is_over)

    def _write(self) -> None:
        draft = self._folder / "script.draft"
        draft.write_text(json.dumps(self._script))
        draft.replace(self._folder / "script.json")

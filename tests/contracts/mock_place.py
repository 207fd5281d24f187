"""The mock vendors as a place of the contract: time moves their jobs, an epoch is a step."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from fastapi import FastAPI

from outbound.http import HttpClient
from storefront.tending import tend
from tests.contracts.vendor_place import Outside
from vendor_mock.app import create_app
from vendor_mock.catalogue import Gpu, VendorPlan
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import Faults

EPOCH_S = 10


class MockPlace:
    """Implements `SellerPlace`."""

    vendor_id = "gpu_vendor_1"
    secret = "secret-1"
    gpu_type = "A10"
    job_type = "fine_tune"
    job_params: Mapping[str, Any] = MappingProxyType({"model": "tiny-llm", "params": {"steps": 3}, "index": 0})

    def __init__(self, folder: Path, rpc_url: str, facilitator: httpx.AsyncBaseTransport) -> None:
        self.outside = Outside(facilitator)
        self._database = folder / "vendors.db"
        self._rpc_url = rpc_url
        # It stands still between the steps, so that a slow machine does no work by itself.
        self._now_s = time.time()
        self._app: FastAPI | None = None
        self._client: httpx.AsyncClient | None = None
        self._tending: asyncio.Task[None] | None = None

    @property
    def pay_to(self) -> str:
        assert self._app is not None
        return str(self._app.state.shop.vendors[self.vendor_id].pay_to)

    async def open(
        self,
        *,
        rpc_url: str | None = None,
        facilitator: httpx.AsyncBaseTransport | None = None,
        jobs_max: int = 64,
        refuses: tuple[str, ...] = (),
    ) -> httpx.AsyncClient:
        await self.close()
        plan = VendorPlan(
            vendor_id=self.vendor_id,
            name="Mock",
            gpus=(Gpu(gpu_type=self.gpu_type, count=jobs_max),),
            checkpoints_every=1,
            faults=Faults(refuses=refuses),
        )
        settings: dict[str, Any] = {"secret": self.secret, "rpc_url": rpc_url or self._rpc_url}
        app = create_app(
            VendorMockSettings(**settings, database=self._database, epoch_seconds=EPOCH_S),
            plans=(plan,),
            transport=facilitator or self.outside,
            clock=lambda: self._now_s,
            files=self.outside,
        )
        self._app = app
        self._tending = asyncio.create_task(tend(app.state.shop, HttpClient(self.outside), look_s=0.02, grace_s=0.02))
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vendor.example")
        return self._client

    async def crash(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait({self._tending})
        self._tending = None

    async def step(self, job_id: str) -> None:
        self._now_s += EPOCH_S

    async def finish(self, job_id: str) -> None:
        self._now_s += 3 * EPOCH_S

    async def fail(self, job_id: str) -> None:
        assert self._app is not None
        change = self._app.state.shop.store.update_job
        await change(job_id, lambda job: replace(job, fails_at_epoch=job.epoch + 1))
        self._now_s += EPOCH_S

    async def pass_time(self, seconds: float) -> None:
        self._now_s += seconds

    async def close(self) -> None:
        await self.crash()
        if self._client is not None and self._app is not None:
            await self._client.aclose()
            await self._app.state.shop.close()
        self._client = None

"""A worker with a door, a chain to be paid on, a buyer with a store of checkpoints, and programs that obey a script."""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chain.devchain import DevAccount, DevChain
from gpu_worker.config import WorkerSettings
from gpu_worker.core.hardware import Device, Machine, Speed
from gpu_worker.core.model import Job
from gpu_worker.edges.jobs.job_process import JobProcesses
from gpu_worker.lifecycle import Report, live
from gpu_worker.ports import Containers, JobPrograms, Pace, Worker
from gpu_worker.wiring.worker import open_worker
from outbound.http import HttpClient
from storefront.model import TERMINAL
from tests.fixtures import program
from tests.fixtures.server import Server
from tests.fixtures.world import Hosts
from tests.vendor_mock.world import Buyer, new_payment_id, read
from wire import decimal_json
from wire.checkpoint import MANIFEST_NAME, Manifest
from wire.vendor import ResumeFrom

SECRET = "worker-secret"
BASE_URL = "http://worker"
STORE_URL = "http://store"
TOKEN = "token-of-the-run-and-job"
PACE = Pace(look_s=0.05, store_s=0.2, stop_s=5.0, push_s=3.0, retry_s=0.05, funds_s=60, busy_s=0.1, idle_s=0.1)
MIB = 1024 * 1024


class FixedHardware:
    """A machine with a CPU alone; `on_battery` may be changed."""

    def __init__(self) -> None:
        self.on_battery = False

    async def read(self) -> Machine:
        return Machine(
            ram_total_bytes=16 * 1024 * MIB,
            ram_free_bytes=8 * 1024 * MIB,
            cpu_count=2,
            cpu_percent=Decimal(0),
            disk_free_bytes=100 * 1024 * MIB,
            on_battery=self.on_battery,
        )


class FixedSpeed:
    async def speed(self, device: Device) -> Speed:
        return Speed(memory_bytes_per_s=10**10, flops=10**11, tokens_per_s=Decimal(10_000))


def scripted_programs(script: Path) -> JobProcesses:
    """Return what starts programs that do what the file `script` says."""
    command = (sys.executable, str(program.__file__))
    return JobProcesses(command, environment={"LIVERY_TEST_SCRIPT": str(script)}, look_wide_s=0.2)


class FileStore:
    """The buyer's store of checkpoints: what was put, by name. `status` is answered instead while it is set."""

    def __init__(self) -> None:
        self.url = STORE_URL
        self.files: dict[str, bytes] = {}
        self.status: int | None = None
        self.seen: list[str] = []
        self.app = Starlette(routes=[Route("/files/run_1/{job}/{name}", self._serve, methods=["PUT", "GET"])])

    async def _serve(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(status_code=403)
        if self.status is not None:
            return Response(status_code=self.status)
        if request.method == "GET":
            found = self.files.get(name)
            return Response(status_code=404) if found is None else Response(found)
        body = await request.body()
        if hashlib.sha256(body).hexdigest() != request.headers["x-content-sha256"]:
            return Response(status_code=422)
        self.seen.append(name)
        self.files[name] = body
        return Response(status_code=201)

    @property
    def manifest(self) -> Manifest | None:
        found = self.files.get(MANIFEST_NAME)
        return None if found is None else Manifest.from_json(found)

    def grant(self, job: str = "job_1") -> dict[str, Any]:
        return {"url": f"{self.url}/files/run_1/{job}", "token": TOKEN, "partBytesMax": 65_536}

    def resume(self) -> ResumeFrom:
        """Return how a next job is told to go on from what is here."""
        manifest = self.manifest
        assert manifest is not None
        sha256 = hashlib.sha256(self.files[MANIFEST_NAME]).hexdigest()
        return ResumeFrom(**dict(manifest.description()), url=f"{self.url}/files/run_1/job_1", manifest_sha256=sha256)


class WorkerBuyer(Buyer):
    """A buyer of a worker: fine-tunes of `steps` steps."""

    def __init__(self, client: httpx.AsyncClient, payer: DevAccount, store: FileStore) -> None:
        super().__init__(client, payer)
        self.store = store
        self.headers |= {"x-vendor-id": "worker", "authorization": f"Bearer {SECRET}"}

    def asked(self, hours: str, steps: int, **more: Any) -> dict[str, Any]:
        return {
            "jobType": "fine_tune",
            "gpuType": "CPU",
            "maxHours": Decimal(hours),
            "jobMetadata": {"goal": "x", "params": {"steps": steps, "checkpointSteps": 10}},
            "hasFiles": True,
            **more,
        }

    async def order(self, hours: str = "1", steps: int = 20, **more: Any) -> bytes:
        resume = more.get("resume")
        quoted = {} if resume is None else {"resume": {**resume}}
        reply = await self.post("/quote", self.asked(hours, steps, **quoted))
        assert reply.status_code == 200, reply.text
        return decimal_json.dumps(
            {
                "vendorJobTemplateId": read(reply)["vendorJobTemplateId"],
                "jobParams": {"goal": "x", "params": {"steps": steps, "checkpointSteps": 10}},
                "files": self.store.grant(),
                **more,
            }
        )

    async def buy(self, hours: str = "1", payment_id: str | None = None, **more: Any) -> str:
        order = await self.order(hours, **more)
        headers = self.sign(await self.challenge(order), payment_id or new_payment_id())
        reply = await self.post("/submit-job", order, **headers)
        assert reply.status_code == 200, reply.text
        return str(read(reply)["vendorJobId"])


class Place:
    """One worker's machine. `lives` runs the worker; its folder outlives it."""

    def __init__(self, folder: Path, chain: DevChain, seller: DevAccount, payer: DevAccount, hosts: Hosts) -> None:
        self.folder = folder
        self.chain = chain
        self.seller = seller
        self.payer = payer
        self.hosts = hosts
        self.store = FileStore()
        self.hosts.serve("store", self.store.app)
        self.hardware = FixedHardware()
        self.script_path = folder / "script.json"
        self.has_own_programs = False  # jobs are done, not played
        self.worker: Worker | None = None
        self.report: Report | None = None
        self.stop = asyncio.Event()
        make_model(folder / "worker" / "models" / "tiny")
        (folder / "text.jsonl").write_text("".join(f'{{"text": "line {number} of it"}}\n' for number in range(50)))

    def script(self, **script: Any) -> None:
        """Tell the programs what to do from now on."""
        draft = self.script_path.with_suffix(".draft")
        draft.write_text(json.dumps(script))
        draft.replace(self.script_path)

    def settings(self, **more: Any) -> WorkerSettings:
        fields = {
            "kinds": "fine_tune",
            "data": self.folder / "worker",
            "default_model": "tiny",
            "default_dataset": self.folder / "text.jsonl",
            "secret": SECRET,
            "private_key": self.seller.key,
            "rpc_url": self.chain.url,
            "facilitator_url": "http://facilitator",
            "allow_private_urls": True,
            "price_per_hour": Decimal(1),
            "port": 0,
            "capability_port": 0,
            "drain_s": 20,
            **more,
        }
        return WorkerSettings.model_validate(fields)

    @contextmanager
    def process(self, *trap: str, **settings: Any) -> Iterator[Server]:
        """Yield a worker as a process of its own; `trap` is where it dies."""
        document = {name: _plain(value) for name, value in self.settings(**settings).model_dump().items()}
        (self.folder / "settings.json").write_bytes(decimal_json.dumps(document))
        command = ("tests.gpu_worker.process", str(self.folder / "settings.json"), *trap)
        server = Server(self.folder / "worker.log", *command)
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()

    @asynccontextmanager
    async def buyer_of(self, url: str) -> AsyncIterator[WorkerBuyer]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def is_online() -> bool:
                return bool((await client.get("/health")).json()["state"] == "online")

            await until_async(is_online)
            yield WorkerBuyer(client, self.payer, self.store)

    def open(
        self,
        *,
        pace: Pace = PACE,
        programs: JobPrograms | None = None,
        containers: Containers | None = None,
        **settings: Any,
    ) -> Worker:
        return open_worker(
            self.settings(**settings),
            hardware=self.hardware,
            programs=programs or (None if self.has_own_programs else scripted_programs(self.script_path)),
            containers=containers,
            measure=FixedSpeed(),
            http=HttpClient(self.hosts),
            pace=pace,
        )

    @asynccontextmanager
    async def lives(self, *, is_killed: bool = False, pace: Pace = PACE, **settings: Any) -> AsyncIterator[WorkerBuyer]:
        """
        Run a worker until the block ends; yield its buyer.

        Args:
            is_killed: it ends without draining; what it was at stays as it was.
        """
        self.worker = worker = self.open(pace=pace, **settings)
        self.stop = asyncio.Event()
        living = asyncio.create_task(live(worker, self.stop))
        try:
            await until(lambda: worker.now.state == "online" or living.done())
            if living.done():
                living.result()
            self.hosts.serve("worker", worker.app)
            async with httpx.AsyncClient(transport=self.hosts, base_url=BASE_URL) as client:
                yield WorkerBuyer(client, self.payer, self.store)
        finally:
            if is_killed:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
            else:
                self.stop.set()
                self.report = await living

    async def job(self, job_id: str) -> Job:
        assert self.worker is not None
        job = await self.worker.book.find_job(job_id)
        assert job is not None
        return job

    async def ended(self, job_id: str) -> Job:
        """Return the job once it has ended, what it owes paid: somebody asks for it."""

        async def is_ended() -> bool:
            return (await self.job(job_id)).status in TERMINAL

        await until_async(is_ended)
        assert self.worker is not None
        job: Job = await self.worker.app.state.shop.poll(self.worker.vendor, job_id)
        return job

    async def at_step(self, job_id: str, step: int) -> None:
        """Return once the job's program has done `step` steps."""
        assert self.worker is not None
        jobs = self.worker.now.jobs
        await until(lambda: job_id in jobs and jobs[job_id].step >= step)

    def paid(self) -> int:
        """Return what the seller has of the token."""
        return self.chain.balance(self.seller.address)


async def until(is_so: Callable[[], bool], timeout_s: float = 30) -> None:
    async def asked() -> bool:
        return is_so()

    await until_async(asked, timeout_s)


async def until_async(is_so: Callable[[], Any], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await is_so():
                return
            await asyncio.sleep(0.02)


def make_model(folder: Path) -> None:
    """Make the folder of a model whose weights nobody reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


def weights_of(seed: int, steps: int) -> bytes:
    """Return what the scripted program has learned after so many steps, however often it was killed."""
    weights = hashlib.sha256(f"seed {seed}".encode()).digest()
    for step in range(1, steps + 1):
        weights = hashlib.sha256(weights + f"{seed}:{step}".encode()).digest()
    return weights

"""What the contract of the vendor API asks of who keeps it, and the buyer: its store of files, its ear for calls."""

import asyncio
import hashlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

import httpx

from chain.devchain import DevAccount
from tests.vendor_mock.world import Buyer, new_payment_id, read
from wire import decimal_json
from wire.checkpoint import MANIFEST_NAME, PART_BYTES_MAX, Manifest, wrong_manifest

TOKEN = "the-token-of-this-grant"
CALLBACK_URL = "http://buyer/called"


class Outside(httpx.AsyncBaseTransport):
    """Carries what a seller sends: `http://files` is the buyer's store, `http://buyer` its ear; others are inner's."""

    def __init__(self, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self.inner = inner
        self.files: dict[str, bytes] = {}
        self.calls: list[httpx.Request] = []
        self.called = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "files":
            return self._file(request, await request.aread())
        if request.url.host == "buyer":
            self.calls.append(request)
            self.called.set()
            return httpx.Response(200)
        assert self.inner is not None, f"nobody is at {request.url}"
        return await self.inner.handle_async_request(request)

    def _file(self, request: httpx.Request, body: bytes) -> httpx.Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx.Response(403)
        name = request.url.path.removeprefix("/")
        if request.method == "GET":
            return httpx.Response(200, content=self.files[name]) if name in self.files else httpx.Response(404)
        if hashlib.sha256(body).hexdigest() != request.headers["x-content-sha256"] or len(body) > PART_BYTES_MAX:
            return httpx.Response(422)
        self.files[name] = body
        return httpx.Response(201)

    def grant(self, folder: str) -> dict[str, Any]:
        """Return the `files` of a submission whose files go to `folder`."""
        return {"url": f"http://files/{folder}", "token": TOKEN, "partBytesMax": PART_BYTES_MAX}

    def manifest(self, folder: str) -> Manifest:
        """Return the checkpoint in `folder`, every part of it held against its hash."""
        manifest = Manifest.from_json(self.files[f"{folder}/{MANIFEST_NAME}"])
        assert wrong_manifest(manifest, pushed=True) is None
        for file in manifest.files:
            parts = [self.files[f"{folder}/{part.name}"] for part in file.parts]
            assert [hashlib.sha256(part).hexdigest() for part in parts] == [part.sha256 for part in file.parts]
            assert hashlib.sha256(b"".join(parts)).hexdigest() == file.sha256
        return manifest

    def resume(self, folder: str) -> dict[str, Any]:
        """Return the `resume` of a submission that goes on from the checkpoint in `folder`."""
        content = self.files[f"{folder}/{MANIFEST_NAME}"]
        described = Manifest.from_json(content).description().document()
        return {"url": f"http://files/{folder}", "manifestSha256": hashlib.sha256(content).hexdigest(), **described}


class SellerPlace(Protocol):
    """
    A seller for one test, one vendor that sells one GPU type; its book outlives every `open`.

    `job_params` make a job of three steps, which does nothing while nobody calls `step`.
    """

    vendor_id: str
    secret: str
    pay_to: str
    gpu_type: str
    job_type: str
    job_params: Mapping[str, Any]
    outside: Outside

    async def open(
        self,
        *,
        rpc_url: str | None = None,
        facilitator: httpx.AsyncBaseTransport | None = None,
        jobs_max: int = 64,
        refuses: tuple[str, ...] = (),
    ) -> httpx.AsyncClient:
        """
        Serve the seller as a new process would, its loops included; what was open before is closed.

        Args:
            rpc_url: another chain's address than the test's.
            facilitator: what carries requests to the facilitator instead.
            jobs_max: how many jobs run beside each other.
            refuses: payers to whom nothing is sold.
        """

    async def crash(self) -> None:
        """Let the process die where it stands."""

    async def step(self, job_id: str) -> None:
        """Let the job do one piece of its work; a question after it sees that."""

    async def finish(self, job_id: str) -> None:
        """Let the job do all of its work."""

    async def fail(self, job_id: str) -> None:
        """Let the job fail at its next piece."""

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass in which no work is done; a question after it sees that."""

    async def close(self) -> None: ...


class PlaceBuyer(Buyer):
    """Buys what the place sells."""

    def __init__(self, client: httpx.AsyncClient, payer: DevAccount, place: SellerPlace, secret: str | None = None):
        super().__init__(client, payer)
        self.place = place
        self.headers |= {"x-vendor-id": place.vendor_id, "authorization": f"Bearer {secret or place.secret}"}

    def request(self, hours: str = "1", **more: Any) -> dict[str, Any]:
        """Return the body that asks for a quote."""
        place = self.place
        asked = {"jobType": place.job_type, "gpuType": place.gpu_type, "maxHours": Decimal(hours)}
        return {**asked, "jobMetadata": dict(place.job_params), **more}

    async def quote(self, hours: str = "1", gpu_type: str = "", **more: Any) -> dict[str, Any]:
        reply = await self.post("/quote", self.request(hours, **more))
        assert reply.status_code == 200, reply.text
        return read(reply)

    async def order(self, hours: str = "1", **more: Any) -> bytes:
        template = (await self.quote(hours, hasFiles="files" in more))["vendorJobTemplateId"]
        body = {"vendorJobTemplateId": template, "jobParams": dict(self.place.job_params), **more}
        return decimal_json.dumps(body)

    async def take(self, order: bytes, payment_id: str | None = None) -> str:
        """Pay for `order` and return the job's id."""
        headers = self.sign(await self.challenge(order), payment_id or new_payment_id())
        reply = await self.post("/submit-job", order, **headers)
        assert reply.status_code == 200, reply.text
        return str(read(reply)["vendorJobId"])

    async def cancel(self, job_id: str, **more: str) -> dict[str, Any]:
        reply = await self.post("/cancel-job", {"vendorJobId": job_id, **more})
        assert reply.status_code == 200, reply.text
        return read(reply)

    async def running(self) -> list[str]:
        """Return what the list of jobs has, page by page."""
        reply = read(await self.get("/jobs"))
        found = [job["vendorJobId"] for job in reply["jobs"]]
        while "cursor" in reply:
            reply = read(await self.get("/jobs", after=reply["cursor"]))
            found += [job["vendorJobId"] for job in reply["jobs"]]
        return found

"""The worker's HTTP door: the vendor API for buyers, and `/api/v1` for the owner's own programs on this machine."""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.model import Job
from gpu_worker.drain import begin_drain
from gpu_worker.edges.http.capability_door import CapabilityDoor, include_capability, problem_of
from gpu_worker.ports import Worker
from gpu_worker.status import health, status
from inbound.serve import CannotServe, bound_socket, serve_until, url_of
from inbound.stranger import is_near, stranger
from inbound.web import JsonReply, ProblemReply
from storefront.door import create_vendor_app
from storefront.shop import Shop
from wire.generate import PROMPT_BODY_BYTES_MAX, PROMPT_PATH
from wire.problems import problem_document

if TYPE_CHECKING:
    from gpu_worker.capability import Capability
    from gpu_worker.edges.http.paid_door import PaidDoor
    from gpu_worker.inference.text.service import Service

# What requests in flight have once the door closes.
CLOSING_S = 3

owner = APIRouter(prefix="/api/v1")


@owner.get("/status")
async def status_route(request: Request) -> Response:
    """How the worker stands, for its owner."""
    return await _owners(request, 200)


@owner.post("/drain")
async def drain_route(request: Request) -> Response:
    """Sell nothing more, and go once the jobs at hand are done."""
    if _refused(request) is None:
        begin_drain(request.app.state.worker)
    return await _owners(request, 202)


async def _owners(request: Request, code: int) -> Response:
    refused = _refused(request)
    if refused is not None:
        return refused
    return JsonReply(await status(request.app.state.worker), status_code=code)


def _refused(request: Request) -> Response | None:
    """Return the refusal of a caller who is not a program on this machine."""
    if not is_near(request.scope):
        return ProblemReply(
            problem_document("not_found", "only this machine is answered here, at its loopback address")
        )
    refusal = stranger(request.url.scheme, request.scope["headers"], ())
    return None if refusal is None else ProblemReply(problem_document(*refusal))


class HttpDoor:
    """Implements `gpu_worker.ports.Door`. A socket that is not given is bound when it is first needed."""

    def __init__(self, settings: WorkerSettings, server: socket.socket | None = None) -> None:
        self._settings = settings
        self._server = server
        self._local_url: str | None = None
        self._app: FastAPI | None = None
        self._beside: CapabilityDoor | None = None

    def open(
        self,
        worker: Worker,
        shop: Shop[Job],
        service: "Service | None" = None,
        paid: "PaidDoor | None" = None,
        capability: "Capability | None" = None,
    ) -> None:
        """
        Make the application; until then nothing is served.

        Args:
            service: the model that it serves, if any. `paid` sells its answers.
            capability: what is told to GPU checks, here and at a port of its own.
        """
        self._app = create_vendor_app(
            shop,
            title="Livery worker",
            health=lambda: health(worker),
            errors={WorkerError: problem_of},
            bodies={PROMPT_PATH: PROMPT_BODY_BYTES_MAX},
        )
        self._app.state.worker = worker
        self._app.include_router(owner)
        if service is not None:
            from gpu_worker.edges.http.inference_doors import include_inference

            include_inference(self._app, service, paid)
        if capability is not None:
            include_capability(self._app, capability)
            self._beside = CapabilityDoor(self._settings, capability, lambda: self.app.state.health())

    @property
    def app(self) -> Any:
        assert self._app is not None
        return self._app

    @property
    def url(self) -> str:
        return self._settings.public_url or self.local_url

    @property
    def local_url(self) -> str:
        if self._local_url is None:
            self._local_url = url_of(self._bound())
        return self._local_url

    @property
    def capability_url(self) -> str | None:
        return self._beside.url if self._beside is not None and self._beside.is_bound else None

    async def serve(self, stop: asyncio.Event) -> None:
        doors = [asyncio.create_task(self._serve(stop))]
        if self._beside is not None:
            doors.append(asyncio.create_task(self._beside.serve(stop)))
        try:
            await asyncio.gather(*doors)
        finally:
            # Where one of them cannot be served, neither is.
            for door in doors:
                door.cancel()
            await asyncio.gather(*doors, return_exceptions=True)

    async def _serve(self, stop: asyncio.Event) -> None:
        try:
            await serve_until(self.app, self._bound(), stop, name="worker", drain_s=CLOSING_S)
        except CannotServe as error:
            raise OwnersFault(str(error)) from error

    def _bound(self) -> socket.socket:
        settings = self._settings
        if self._server is None:
            try:
                self._server = bound_socket(settings.host, settings.port, chosen=settings.port_is_chosen)
            except CannotServe as error:
                raise OwnersFault(str(error)) from error
        return self._server

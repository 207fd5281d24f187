"""
The door for GPU checks: one router, served beside the worker's other doors and at a port of its own, which Livepeer's
orchestrators call.

It is the owner's: with API_SECRET it asks for it, without it answers this machine alone. Fields and the header
`X-Metadata` are those of Livepeer's BYOC worker; errors are problem documents, as everywhere else.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from gpu_worker.attesting import Attestor, CannotAttest
from gpu_worker.capability import Capability
from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.inference.callers import Refusal
from gpu_worker.edges.http.admission import http_visit, problem_refusal
from inbound.serve import CannotServe, bound_socket, serve_until, url_of
from inbound.stranger import stranger
from inbound.web import ExactRoute, JsonReply, ProblemReply, create_door
from wire.capability import CAPABILITY, ChallengeRequest, GpuCheckRequest, StartRequest
from wire.problems import PROBLEMS, ProblemDocument, problem_document
from wire.vendor import WorkerHealth

# What requests in flight have once the door closes.
CLOSING_S = 3
PROMETHEUS_KIND = "text/plain; version=0.0.4; charset=utf-8"


class _Route(ExactRoute):
    """A route for the owner and whom it told the secret, asked for before a body is read."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            found = await _capability(request).admission.admit(http_visit(request.scope), "own")
            if isinstance(found, Refusal):
                return problem_refusal(found)
            # Whoever is let in without a secret is of this machine, but for a page of others in its owner's browser.
            page = stranger(request.url.scheme, request.scope["headers"], ()) if found.kind == "open" else None
            if page is not None:
                return ProblemReply(problem_document(*page))
            try:
                return await handle(request)
            except WorkerError as error:
                return ProblemReply(problem_of(error))

        return handler


def problem_of(error: WorkerError) -> ProblemDocument:
    code = error.code if error.code in PROBLEMS else "internal"
    return problem_document(code, str(error), 1 if error.retryable else None)


def _capability(request: Request) -> Capability:
    capability: Capability = request.app.state.capability
    return capability


def _attestor(request: Request) -> Attestor:
    attestor = _capability(request).attestor
    if attestor is None:
        raise CannotAttest("cannot_attest", "this worker has no key to sign with")
    return attestor


TheCapability = Annotated[Capability, Depends(_capability)]
TheAttestor = Annotated[Attestor, Depends(_attestor)]
# The application's own document is about buyers, who know of none of these.
both = APIRouter(route_class=_Route, include_in_schema=False)
own = APIRouter(route_class=_Route, include_in_schema=False)


@both.post("/gpu-check")
@both.post("/agent-net")
async def gpu_check(request: Request, capability: TheCapability, body: GpuCheckRequest) -> Response:
    """What the machine has and serves now."""
    found = await capability.gpu_check(body.agent_id)
    metadata = {
        "capability": CAPABILITY,
        "agent_id": found.agent_id,
        "timestamp": float(found.timestamp),
        "source": capability.source() or "driver",
    }
    # Escaped to ASCII: nobody's name begins a header of its own.
    return _json(found, {"x-metadata": json.dumps(metadata)})


@both.post("/gpu-check/challenges")
async def prepare(attestor: TheAttestor, body: ChallengeRequest) -> Response:
    """Take a challenge: what it says next is timed by who asks."""
    return _json(await attestor.prepare(body), status=201)


@both.post("/gpu-check/challenges/{challenge}")
async def answer(attestor: TheAttestor, challenge: str, body: StartRequest) -> Response:
    """The signed answer to a challenge."""
    return _json(await attestor.answer(challenge, body))


@both.get("/service-status")
async def service_status(capability: TheCapability) -> Response:
    """Which services are up."""
    return _json(capability.status())


@both.get("/service-uptime")
async def service_uptime(capability: TheCapability) -> Response:
    """How long they were, of the last minute."""
    return _json(capability.uptime())


@own.get("/models")
async def models(capability: TheCapability) -> Response:
    """All models that are on this machine, and those that are loaded."""
    return _json(await capability.models())


@own.get("/metrics")
async def metrics(capability: TheCapability) -> Response:
    """The machine and the model that it serves, for Prometheus; of who only sells jobs, the machine."""
    return Response(capability.metrics(await capability.machine()), media_type=PROMETHEUS_KIND)


def include_capability(app: FastAPI, capability: Capability) -> None:
    """Serve `capability` in the worker's own application, which has not begun to serve; its /models is OpenAI's."""
    app.state.capability = capability
    app.include_router(both)


class CapabilityDoor:
    """
    The same at a port of its own, with the models and the worker's health.

    The address is taken when it is first needed. While it serves, it looks whether the worker's services are up.
    """

    def __init__(self, settings: WorkerSettings, capability: Capability, health: Callable[[], WorkerHealth]) -> None:
        self._settings = settings
        self._capability = capability
        self._server: socket.socket | None = None
        self.app = create_door(
            title="Livery GPU check",
            version="1",
            description="What a worker's machine has and serves, and a proof of it.",
            errors=(WorkerError,),
            translate=_translated,
        )
        self.app.state.capability = capability
        self.app.include_router(both)
        self.app.include_router(own)
        self.app.add_api_route("/health", lambda: JsonReply(health()), include_in_schema=False)

    @property
    def is_bound(self) -> bool:
        return self._server is not None

    @property
    def url(self) -> str:
        """Where this machine reaches it. Raises OwnersFault: the port is taken, and was chosen."""
        return url_of(self._bound())

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises OwnersFault: the address cannot be served."""
        looking = asyncio.create_task(self._capability.keep_looking())
        try:
            await serve_until(self.app, self._bound(), stop, name="capability", drain_s=CLOSING_S)
        except CannotServe as error:
            raise OwnersFault(str(error)) from error
        finally:
            looking.cancel()
            if self._capability.attestor is not None:
                await self._capability.attestor.close()

    def _bound(self) -> socket.socket:
        settings = self._settings
        if self._server is None:
            try:
                self._server = bound_socket(
                    settings.host, settings.capability_port, chosen=settings.capability_port_is_chosen
                )
            except CannotServe as error:
                raise OwnersFault(str(error)) from error
        return self._server


def _translated(error: Exception) -> ProblemDocument:
    assert isinstance(error, WorkerError)
    return problem_of(error)


def _json(body: BaseModel, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return JsonReply(body.model_dump(), status_code=status, headers=headers)

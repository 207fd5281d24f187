"""
The gRPC door of a worker: one server with the services that it is given, their health, and reflection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.grpc.grpc_channel import server_options
from gpu_worker.edges.grpc.tls import Tls, must_be_safe

STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorOptions:
    """`port` 0 takes a free one. `insecure` allows other machines without TLS."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    insecure: bool = False
    rpcs_max: int = 512


class Rpcs(Protocol):
    """One service. `service` is its full name; rows of `width` numbers may be sent to it, 0: none."""

    @property
    def service(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def is_ready(self) -> bool:
        """Whether calls that come now are served: what health checks are answered by."""

    def handlers(self) -> Mapping[str, Any]:
        """Return gRPC's handler of each RPC, by its name."""


class GrpcDoor:
    """A service that is not among `services` is UNIMPLEMENTED. Raises OwnersFault: it would stand open to strangers."""

    def __init__(self, options: DoorOptions, services: Sequence[Rpcs]) -> None:
        must_be_safe(options.host, options.tls, options.insecure)
        self._options = options
        self._services = tuple(services)
        self._health = health.HealthServicer()
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Serve. Raises OwnersFault: the port is taken, or the certificate and its key do not fit."""
        options = server_options(max((each.width for each in self._services), default=0))
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=self._options.rpcs_max)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(each.service, dict(each.handlers())) for each in self._services]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        own = [each.service for each in self._services]
        names = (*own, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        address, tls = f"{host}:{self._options.port}", self._options.tls
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, tls.server())
        except RuntimeError:
            raise OwnersFault(
                f"gRPC cannot listen on {address}: the port is taken, or the TLS files are wrong"
            ) from None
        await server.start()
        self._server = server
        await self.tell_health()

    async def tell_health(self) -> None:
        """Answer health checks from now on by what the services say; the whole is well where all of them are."""
        states = health_pb2.HealthCheckResponse
        ready = {each.service: each.is_ready for each in self._services}
        for name, is_ready in {"": all(ready.values()), **ready}.items():
            await self._health.set(name, states.SERVING if is_ready else states.NOT_SERVING)

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Take nothing new, wait `grace_s` for what runs, then end it. Idempotent."""
        if self._server is not None:
            server, self._server = self._server, None
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_s)

"""Opening the gRPC door of a model, whatever services it has."""

import logging
from collections.abc import Sequence

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.grpc.agent_service import AgentRpcs
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor, Rpcs
from gpu_worker.edges.grpc.tls import Tls, read_tls
from gpu_worker.inference.text.service import Service
from gpu_worker.ports import Worker
from gpu_worker.slice_config import DEFAULT_GRPC_PORT

_LOG = logging.getLogger("livery.gpu_worker")


def grpc_tls(settings: WorkerSettings) -> Tls | None:
    """Return the gRPC door's certificate, None: it has none. Raises OwnersFault: it cannot be read."""
    tls, warnings = read_tls(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_ca)
    for sentence in warnings:
        _LOG.warning("%s", sentence)
    return tls


def open_agent(worker: Worker, service: Service) -> AgentRpcs:
    """Return AgentService of the worker, which answers for `service`."""
    return AgentRpcs(service, worker.settings.agent_id or worker.settings.vendor_id, worker.hardware.read)


async def open_grpc(settings: WorkerSettings, tls: Tls | None, services: Sequence[Rpcs]) -> GrpcDoor:
    """
    Return the door, open; a default port that is taken is replaced by a free one.

    Raises:
        OwnersFault: the port that the owner set is taken, or the door would stand open to strangers.
    """

    async def opened(port: int) -> GrpcDoor:
        options = DoorOptions(host=settings.grpc_host, port=port, tls=tls, insecure=settings.grpc_insecure)
        door = GrpcDoor(options, services)
        await door.start()
        return door

    try:
        return await opened(settings.grpc_port)
    except OwnersFault:
        if settings.grpc_port_is_chosen:
            raise
    door = await opened(0)
    _LOG.warning("port %d is taken: gRPC is at port %d", DEFAULT_GRPC_PORT, door.port)
    return door

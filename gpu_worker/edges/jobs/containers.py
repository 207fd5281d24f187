"""Jobs' containers through docker's or podman's client."""

from collections.abc import Collection

from gpu_worker.core.folder import ContainerTerms
from gpu_worker.edges.jobs import container_cli


class CliContainers:
    """Implements `gpu_worker.ports.Containers`; `path` is looked through for the client, as the shell's PATH."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._runtime: str | None = None

    async def find(self, *, memory_bytes: int, cpus: int, job_ids: Collection[str]) -> ContainerTerms | None:
        self._runtime = await container_cli.find(self._path)
        if self._runtime is None:
            return None
        await container_cli.sweep(self._runtime, job_ids)
        return ContainerTerms(runtime=self._runtime, memory_bytes=memory_bytes, cpus=cpus)

    async def remove(self, job_id: str) -> None:
        if self._runtime is not None:
            await container_cli.remove(self._runtime, job_id)

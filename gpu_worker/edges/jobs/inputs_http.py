"""What jobs work on: datasets at addresses of strangers, uploaded ones, and the owner's own file."""

import asyncio
from pathlib import Path

from gpu_worker import datasets
from gpu_worker.core.dataset import Limits, form_of
from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import InputFile
from gpu_worker.edges.jobs.job_folder import sha256_of
from outbound.http import HttpClient
from wire.jobs import Container, Params, input_hash
from wire.vendor import FilesGrant


class HttpInputs:
    """
    Implements `gpu_worker.ports.Inputs`.

    Args:
        http: has the guard.
        default: the file that a job trains on which names none.
    """

    def __init__(self, http: HttpClient, limits: Limits, default: Path | None) -> None:
        self._http = http
        self._limits = limits
        self._default = default
        self._default_sha256: str | None = None

    async def look(self, params: Params) -> str | None:
        dataset = _named(params)
        if dataset is None:
            own = self._own(params)
            return None if own is None else await self._own_hash(own)
        await datasets.head(dataset, self._limits, self._http)
        return input_hash(dataset)

    async def fetch(self, params: Params, grant: FilesGrant | None, into: Path) -> InputFile | None:
        dataset = _named(params)
        if dataset is not None:
            return await datasets.fetch(dataset, form_of(params), into, self._limits, self._http, grant=grant)
        own = self._own(params)
        return None if own is None else await datasets.local(own, form_of(params), into, self._limits)

    async def _own_hash(self, own: Path) -> str:
        if self._default_sha256 is None:
            try:
                self._default_sha256 = await asyncio.to_thread(sha256_of, own)
            except OSError as error:
                raise OwnersFault(f"the dataset {own.name} cannot be read: {error.strerror}") from error
        return self._default_sha256

    def _own(self, params: Params) -> Path | None:
        """Return the owner's own dataset for a job that names none. Raises BadInput: it has to name one."""
        if isinstance(params, Container):
            return None
        if self._default is None:
            raise BadInput("dataset_unavailable", "the job names no dataset, and this worker has none of its own")
        return self._default


def _named(params: Params) -> str | None:
    dataset: str | None = getattr(params, "dataset", None)
    return dataset

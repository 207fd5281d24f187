"""What the worker needs of the world. Edges implement these."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Protocol

from gpu_worker.core.folder import ProgressLine, Spec, State
from gpu_worker.core.hardware import Device, Machine, Speed
from gpu_worker.core.model import Job, LocalModel, Sample
from storefront.model import KeptFile
from wire.checkpoint import Manifest
from wire.vendor import FilesGrant, ResumeFrom


class Hardware(Protocol):
    async def read(self) -> Machine:
        """Return the machine as it is now. What cannot be read is None or a sentence in `problems`, never an error."""


class Measure(Protocol):
    async def speed(self, device: Device) -> Speed:
        """Return what `device` does, measured once and kept until its driver or torch changes. Raises OwnersFault."""


class Models(Protocol):
    """The models on this machine, by name. Nothing is downloaded while a buyer waits."""

    async def find(self, name: str) -> LocalModel | None: ...

    async def names(self) -> tuple[str, ...]: ...


class Running(Protocol):
    """A job's program, and whatever it started."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Return its exit code once it has ended, the negative number of the signal that killed it."""

    def ask_to_stop(self) -> None:
        """Tell it to make a checkpoint and exit (EXIT_STOPPED). Idempotent."""

    async def kill(self) -> None:
        """End it and all that it started, at once, and return when they are gone. Idempotent."""

    async def sample(self) -> Sample | None:
        """Return what it takes now, None where it has ended."""


class JobPrograms(Protocol):
    async def start(self, job: Job, folder: Path) -> Running:
        """Start the program of a folder that has its spec. Raises OwnersFault where it cannot be started."""

    async def find(self, job: Job, folder: Path) -> Running | None:
        """Return the program that an earlier worker left running on the folder, None where it has ended."""

    async def sweep(self) -> None:
        """End what earlier workers left and no folder names: containers of ours."""


class JobFolders(Protocol):
    """The folders of the jobs. Whatever touches the disk may raise OwnersFault."""

    async def make(self, job_id: str, spec: Spec) -> Path:
        """Return the job's folder, made where it is not there; its spec is replaced, whole or not at all."""

    async def lines(self, job_id: str, offset: int) -> tuple[tuple[ProgressLine, ...], int]:
        """Return the whole lines from byte `offset` on, and the offset behind them; what is no line is left out."""

    async def state(self, job_id: str) -> State | None: ...

    async def checkpoint(self, job_id: str) -> tuple[Manifest, Path] | None:
        """Return the newest checkpoint whose hashes hold, and its folder; what is broken is passed over."""

    async def files(self, job_id: str) -> tuple[KeptFile, ...]:
        """Return what is in `result/`."""

    def read(self, job_id: str, name: str) -> AsyncGenerator[bytes, None]:
        """Yield a file of `result/`. Raises KeyError at the first where there is none."""

    async def disk_bytes(self, job_id: str) -> int: ...

    async def known(self) -> tuple[str, ...]:
        """Return the ids of all folders."""

    async def trim(self, job_id: str) -> None:
        """Remove what an ended job needs no more: input and checkpoints; result, state and progress stay."""

    async def remove(self, job_id: str) -> None:
        """Remove the folder, where there is one."""


class Checkpoints(Protocol):
    """The buyer's store of checkpoints. Raises Unavailable; BadInput where it refuses for good."""

    async def push(self, grant: FilesGrant, manifest: Manifest, folder: Path) -> Manifest:
        """Put the files, in parts, then the manifest; return the manifest with its parts."""

    async def pull(self, grant: FilesGrant, resume: ResumeFrom, into: Path) -> Manifest:
        """
        Fetch a checkpoint into the new folder `into`, checked to the last byte, its manifest written last.

        Raises:
            BadInput: `checkpoint_mismatch`: it is not what `resume` says, or not whole.
        """


class Registry(Protocol):
    """Where this worker is known while it lives."""

    async def register(self, entry: Mapping[str, object]) -> None: ...

    async def deregister(self) -> None:
        """Take the entry away. Idempotent."""

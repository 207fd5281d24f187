"""What the worker needs of the world. Edges implement these."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from gpu_worker.config import WorkerSettings
from gpu_worker.core.folder import ContainerTerms, InputFile, ProgressLine, Spec, State
from gpu_worker.core.hardware import Device, Machine, Speed
from gpu_worker.core.inference.room import Room
from gpu_worker.core.model import Job, LocalModel, Sample
from gpu_worker.core.owner import Limits, Yield
from gpu_worker.model_port import Answers, Serving
from storefront.model import KeptFile, Vendor
from storefront.ports import Book, Clock
from wire.checkpoint import Manifest
from wire.jobs import JobKind, Params
from wire.vendor import FilesGrant, ResumeFrom, WorkerState


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
    async def start(self, job: Job, folder: Path, *, threads: int, visible: str | None, served: str | None) -> Running:
        """
        Start the program of a folder that has its spec. Raises OwnersFault where it cannot be started.

        `threads` is what it computes with, `visible` the one GPU that it sees, None: all of them; `served` is the model
        of this worker's that it asks, None: it has its own.
        """

    async def find(self, job: Job, folder: Path) -> Running | None:
        """Return the program that an earlier worker left running on the folder, None where it has ended."""


class Containers(Protocol):
    """What runs the jobs of the kind container: they are no children of ours, and outlive who started them."""

    async def find(self, *, memory_bytes: int, cpus: int, job_ids: Collection[str]) -> ContainerTerms | None:
        """
        Return what a container may have, None where this machine runs none.

        What is left of the containers of `job_ids` is ended.
        """

    async def remove(self, job_id: str) -> None:
        """End and remove the container of a job, where there is one."""


class JobFolders(Protocol):
    """The folders of the jobs. Whatever touches the disk may raise OwnersFault."""

    async def make(self, job_id: str, spec: Spec) -> Path:
        """Return the job's folder, made where it is not there; its spec is replaced, whole or not at all."""

    async def path(self, job_id: str) -> Path:
        """Return the job's folder, made where it is not there."""

    async def spec(self, job_id: str) -> Spec | None:
        """Return what the folder was made for, None where its making did not come to an end."""

    async def lines(self, job_id: str, offset: int) -> tuple[tuple[ProgressLine, ...], int]:
        """Return the whole lines from byte `offset` on, and the offset behind them; what is no line is left out."""

    async def end(self, job_id: str) -> int:
        """Return the offset behind all that was written, for who wants only what comes."""

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

    async def seal(self, job_id: str) -> None:
        """Add the log to the result, where the program did not come to it."""

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


class Inputs(Protocol):
    """What jobs work on."""

    async def look(self, params: Params) -> str | None:
        """
        Return the SHA-256 of the dataset where it is known before it is fetched, None where it is not.

        Raises:
            BadInput: it is not there, or too large; what only its bytes show is found by `fetch`.
        """

    async def fetch(self, params: Params, grant: FilesGrant | None, into: Path) -> InputFile | None:
        """
        Fetch, unpack and check the dataset into the folder `into`; None where the job has none.

        Raises:
            BadInput: it cannot be used.
            Unavailable: it cannot be had now.
        """


class Registry(Protocol):
    """Where this worker is known while it lives."""

    async def claim(self) -> None:
        """Be the one worker of this data. Raises OwnersFault where another one lives on it."""

    async def register(self, entry: Mapping[str, object]) -> None: ...

    async def deregister(self) -> None:
        """Take the entry away. Idempotent."""


class Door(Protocol):
    """
    Where buyers and the owner come in. `app` is an ASGI application.

    `url` is where buyers reach it, `local_url` where the owner's own programs do.
    """

    @property
    def app(self) -> Any: ...

    @property
    def url(self) -> str: ...

    @property
    def local_url(self) -> str: ...

    @property
    def capability_url(self) -> str | None:
        """Where GPU checks are answered, None while they are not."""

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises OwnersFault where the address cannot be served."""


@dataclass(slots=True)
class Live:
    """
    A job that is being worked on, as it stands now: what the book does not have yet.

    `used_s` are the seconds of every start so far, `marks` those at which checkpoints were seen. `is_cancelled`: the
    buyer wants no more of it. `nudged` is set when it is to end before its time, by whomever.
    """

    job_id: str
    kind: JobKind | None = None
    step: int = 0
    steps: int = 0
    used_s: Decimal = Decimal(0)
    marks: dict[str, Decimal] = field(default_factory=dict)
    phase: str = "preparing"
    running: Running | None = None
    is_cancelled: bool = False
    nudged: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Now:
    """
    Where the worker is now, the one part of it that changes; all of its tasks share it, in one event loop.

    `yielded` is why jobs pause, `problem` the sentence that says why nothing is sold, `refunds` how many refunds the
    ether will do for. `wanted` are the ids of jobs that wait for their supervisor; `may_work` is set while jobs are not
    paused. `leaving` is set by who wants the worker to end once its jobs have; `is_stopping`: they end before their
    time. `offers` and `quotes` count what was asked, `refusals` are the times and codes of what was not sold. `served`
    is the model that it serves, None where it serves none, or none yet, `model_room` is what that may take.
    """

    state: WorkerState = "probing"
    since_s: float = 0.0
    machine: Machine | None = None
    device: Device | None = None
    speed: Speed | None = None
    container: ContainerTerms | None = None
    served: Serving | None = None
    model_room: Room | None = None
    yielded: Yield | None = None
    problem: str | None = None
    refunds: int | None = None
    notes: tuple[str, ...] = ()
    jobs: dict[str, Live] = field(default_factory=dict)
    wanted: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    may_work: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
    offers: int = 0
    quotes: int = 0
    refusals: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=1_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often things are looked at, and how long they are waited for, in seconds."""

    look_s: float = 0.5
    # Between two writes of a job's row while nothing but time has passed.
    store_s: float = 2.0
    # What a program has for its last checkpoint; its own limit is shorter.
    stop_s: float = 15.0
    push_s: float = 10.0
    retry_s: float = 5.0
    funds_s: float = 60.0
    tidy_s: float = 3_600.0
    busy_s: float = 2.0
    idle_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """
    Everything a use case works with.

    `choose` and `measure` are asked once the machine was read. `gas` returns for how many refunds the native balance
    of the address that is paid will do, None where that is not known. `tend` pays back and calls back, for ever;
    `recover` starts what was paid and not started, and returns how many payments are open still. `local_minute` is
    since midnight. `open_model` returns the model that is served, its gRPC door open, `answers` has the whole ones.
    """

    settings: WorkerSettings
    vendor: Vendor
    has_key: bool
    limits: Limits
    now: Now
    book: Book[Job]
    folders: JobFolders
    programs: JobPrograms
    containers: Containers
    checkpoints: Checkpoints
    inputs: Inputs
    models: Models
    hardware: Hardware
    choose: Callable[[Machine], Device]
    measure: Callable[[Machine], Measure]
    registry: Registry
    door: Door
    gas: Callable[[], Awaitable[int | None]]
    tend: Callable[[], Awaitable[None]]
    recover: Callable[[], Awaitable[int]]
    close: Callable[[], Awaitable[None]]
    local_minute: Callable[[], int]
    clock: Clock
    open_model: Callable[[], Awaitable[Serving]] | None = None
    answers: Answers | None = None
    pace: Pace = field(default_factory=Pace)

    @property
    def app(self) -> Any:
        """The door's ASGI application."""
        return self.door.app

"""
Jobs' programs as processes of their own: a session each, a pipe whose end tells them to stop, and no secret of ours.

Linux and macOS. What is killed is the program's own group and whatever it started besides, never by a bare number:
a process is known by its id and the time that it began.
"""

import asyncio
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpu_worker.config import program_environment
from gpu_worker.core import folder as names
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.folder import State
from gpu_worker.core.model import Job, Sample

PROGRAM = (sys.executable, "-m", "gpu_worker.engine.job")
# Between two looks at what a program has started, and at how much its folder holds: both walk through lists.
LOOK_WIDE_S = 5.0
_POLL_S = 0.1
_SAME_S = 0.05


class Answering(Protocol):
    async def serve(self, job_id: str, model: str, ours: socket.socket) -> None:
        """Answer a job's program until it goes."""


class JobProcess:
    """A program that this worker started."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, look_wide_s: float) -> None:
        self._process = process
        self._group = _Group(process.pid, folder, look_wide_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def ask_to_stop(self) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.close()

    async def kill(self) -> None:
        # Until it is waited for, the number is its own, ended or not.
        is_there = self._process.returncode is None
        await asyncio.to_thread(self._group.kill, is_there)
        self.ask_to_stop()
        await self._process.wait()

    async def sample(self) -> Sample | None:
        return None if self._process.returncode is not None else await asyncio.to_thread(self._group.sample)


class LeftProcess:
    """A program that an earlier worker left: it has seen the end of its pipe, and ends by itself or is ended."""

    def __init__(self, folder: Path, process: Any | None) -> None:
        self._folder = folder
        self._process = process

    @property
    def pid(self) -> int:
        return 0 if self._process is None else int(self._process.pid)

    async def wait(self) -> int:
        while True:
            if not await asyncio.to_thread(_is_locked, self._folder):
                return names.EXIT_STOPPED
            await asyncio.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """Its pipe ended with the worker that it was started by."""

    async def kill(self) -> None:
        process = self._process if self._process is not None else await asyncio.to_thread(_named, self._folder)
        if process is not None:
            # `process` is the one that the folder names: psutil looks at its beginning before it signals.
            await asyncio.to_thread(_kill_left, process, self._folder)
        await self.wait()

    async def sample(self) -> Sample | None:
        return None


class JobProcesses:
    """
    Starts programs: `command` and the folder.

    Args:
        environment: what each is told besides, for tests.
        look_wide_s: between two looks at what a program has started and how much its folder holds.
        answers: answers the programs that ask a model of this worker's, None: it serves none.
    """

    def __init__(
        self,
        command: Sequence[str] = PROGRAM,
        *,
        environment: Mapping[str, str] | None = None,
        look_wide_s: float = LOOK_WIDE_S,
        answers: Answering | None = None,
    ) -> None:
        self._command = (*command,)
        self._environment = environment or {}
        self._look_wide_s = look_wide_s
        self._answers = answers
        self._talks: set[asyncio.Task[None]] = set()

    async def start(
        self, job: Job, folder: Path, *, threads: int, visible: str | None, served: str | None = None
    ) -> JobProcess:
        if served is None:
            return await self._started(folder, threads, visible)
        if self._answers is None:
            raise OwnersFault(f"the model {served} is not served here")
        ours, theirs = socket.socketpair()
        try:
            # The only end of it: when the program has gone, whoever serves it hears so.
            with theirs:
                process = await self._started(folder, threads, visible, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        talk = asyncio.create_task(self._answers.serve(job.job_id, served, ours))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        return process

    async def _started(self, folder: Path, threads: int, visible: str | None, *inherited: int) -> JobProcess:
        try:
            with (folder / names.STDERR).open("ab") as said:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(folder),
                    *map(str, inherited),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    env=program_environment(threads, visible) | dict(self._environment),
                    start_new_session=True,
                    pass_fds=inherited,
                )
        except OSError as error:
            raise OwnersFault(f"the job's program cannot be started: {error.strerror or error}") from error
        return JobProcess(process, folder, self._look_wide_s)

    async def find(self, job: Job, folder: Path) -> LeftProcess | None:
        return await asyncio.to_thread(_left, folder)


def _left(folder: Path) -> LeftProcess | None:
    return LeftProcess(folder, _named(folder)) if _is_locked(folder) else None


def _is_locked(folder: Path) -> bool:
    """Return whether a program lives on the folder: it holds the lock as long as it does."""
    try:
        descriptor = os.open(folder / names.LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _named(folder: Path) -> Any | None:
    """Return the process that the folder's state names, None where that one has ended."""
    import psutil

    try:
        state = State.from_json((folder / names.STATE).read_bytes())
        process = psutil.Process(state.pid)
        return process if abs(process.create_time() - float(state.created_s)) < _SAME_S else None
    except (OSError, ValueError, psutil.Error):
        return None


def _kill_left(process: Any, folder: Path) -> None:
    import psutil

    for each in (*_below(process), process):
        try:
            each.kill()
        except psutil.Error:
            continue  # it has ended


def _below(process: Any) -> list[Any]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


class _Group:
    """The processes of one program. Its methods block; one is called at a time."""

    def __init__(self, pid: int, folder: Path, look_wide_s: float) -> None:
        self._pid = pid
        self._look_wide_s = look_wide_s
        self._folder = folder
        self._members: list[Any] = []
        self._disk_bytes = 0
        self._looked_s = -look_wide_s

    def sample(self) -> Sample | None:
        import psutil

        now_s = time.monotonic()
        try:
            if now_s - self._looked_s >= self._look_wide_s or not self._members:
                leader = psutil.Process(self._pid)
                self._members = [leader, *leader.children(recursive=True)]
                self._disk_bytes = _disk_bytes(self._folder)
                self._looked_s = now_s
        except psutil.Error:
            return None
        return Sample(at_s=now_s, memory_bytes=sum(map(_memory_bytes, self._members)), disk_bytes=self._disk_bytes)

    def kill(self, is_there: bool) -> None:
        import psutil

        # What left the group for a session of its own is found by its parent, while that one lives.
        strays = list(self._members)
        if is_there:
            try:
                strays += psutil.Process(self._pid).children(recursive=True)
            except psutil.Error:
                pass
        try:
            # A leader that was waited for leaves its number to others, but not while its group lives.
            if is_there or not psutil.pid_exists(self._pid):
                os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the whole group has ended
        for stray in strays:
            try:
                if stray.pid != self._pid:
                    stray.kill()
            except psutil.Error:
                continue


def _memory_bytes(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _disk_bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_blocks * 512
            except OSError:
                continue  # it was replaced meanwhile
    return total

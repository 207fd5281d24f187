"""Processes forked from one that has imported everything: each has a line to its parent, and waits for a byte back."""

import asyncio
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tests.fixtures.mongod import die_with_parent

KILLED = -signal.SIGKILL


@dataclass
class Phone:
    """A child's end: `tell` its parent something; `go` is readable when the parent lets it go on."""

    _out: int
    go: int

    def tell(self, **said: Any) -> None:
        os.write(self._out, json.dumps(said).encode() + b"\n")


@dataclass
class Child:
    """A parent's end of a forked process."""

    pid: int
    _in: int
    _go: int
    _heard: bytes = b""
    code: int | None = None
    said: list[dict[str, Any]] = field(default_factory=list)

    def fileno(self) -> int:
        return self._in

    def listen(self) -> bool:
        """Read what came; return whether there may come more."""
        came = os.read(self._in, 65_536)
        *lines, self._heard = (self._heard + came).split(b"\n")
        self.said += [json.loads(line) for line in lines]
        return bool(came)

    def take(self, name: str) -> Any:
        """Return what was said under `name`, None where nothing was."""
        return next(iter(self.each(name)), None)

    def each(self, name: str) -> list[Any]:
        """Return all that was said under `name`, in its order."""
        return [said[name] for said in self.said if name in said]

    def let_go(self) -> None:
        os.write(self._go, b".")

    def kill(self) -> int:
        """Kill it, SIGKILL, and return how it ended, -9 where that is what ended it; what it said by then is heard."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            while self.listen():
                continue
            os.close(self._in)
            os.close(self._go)
        return self.code


def fork(work: Callable[[Phone], None]) -> Child:
    """Return a new process that does `work` and ends. The forking process has one thread and no event loop."""
    child_in, parent_out = os.pipe()
    parent_in, child_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live(work, Phone(child_out, child_in))
    os.close(child_in)
    os.close(child_out)
    return Child(pid, parent_in, parent_out)


def _live(work: Callable[[Phone], None], phone: Phone) -> NoReturn:
    code = 1
    # It does not live long enough to need it.
    gc.disable()
    try:
        die_with_parent()
        # What is printed is not what the parent tells its own parent.
        os.dup2(2, 1)
        work(phone)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        with suppress(OSError):
            phone.tell(crashed=f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(code)


def hear(name: str, children: dict[str, Child], timeout_s: float) -> tuple[str, Any] | None:
    """
    Wait until one of `children` says `name` or has ended; return who and what, None after `timeout_s`.

    One that ended without saying it says None.
    """
    until = time.monotonic() + timeout_s
    open_ones = dict(children)
    while open_ones:
        for who, child in open_ones.items():
            if (said := child.take(name)) is not None:
                return who, said
        ready, _, _ = select.select(list(open_ones.values()), [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        for who, child in list(open_ones.items()):
            if child in ready and not child.listen():
                return who, child.take(name)
    return None


def running(work: Callable[[Phone], Any]) -> Callable[[Phone], None]:
    """Return `work`, a coroutine function, as what a child does; what it returns is told as `result`."""

    def run(phone: Phone) -> None:
        phone.tell(result=asyncio.run(work(phone)))

    return run


@contextmanager
def gone_after(children: dict[str, Child]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children.values():
            child.kill()

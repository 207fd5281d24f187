"""Processes that obey orders at the same moment, that can be frozen, and some of whose clocks are wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from bench.concurrent.worker import Answer, Order

WAIT_S = 900


class Lost(Exception):
    """A process died, was silent for too long, or met what no tick may meet."""


class Member:
    """One process of the crowd, whose clock is `skew_s` ahead."""

    def __init__(self, connection: Connection, skew_s: int) -> None:
        self.skew_s = skew_s
        self._connection = connection
        self.pid = 0

    def greet(self) -> None:
        """Wait until it is there, and learn its process id. Raises Lost."""
        said = self.hear()
        assert isinstance(said, int), said
        self.pid = said

    def send(self, word: object) -> None:
        self._connection.send(word)

    def hear(self) -> object:
        """Return what it says next. Raises Lost."""
        try:
            if not self._connection.poll(WAIT_S):
                raise Lost(f"process {self.pid} said nothing for {WAIT_S} s")
            said: object = self._connection.recv()
        except (EOFError, ConnectionError):
            raise Lost(f"process {self.pid} is gone") from None
        if isinstance(said, Answer) and said.trouble is not None:
            raise Lost(f"process {self.pid}: {said.trouble}")
        return said

    def answer(self) -> Answer:
        """Return what came of its order. Raises Lost."""
        said = self.hear()
        assert isinstance(said, Answer), said
        return said

    def freeze(self) -> None:
        """Stop it, SIGSTOP, and return when the kernel says that it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        until_s = time.monotonic() + WAIT_S
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            if time.monotonic() > until_s:
                raise Lost(f"process {self.pid} does not stop")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Close its connection, which ends it; a frozen one could not know."""
        self._connection.close()
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Crowd:
    """A process for each of `skews_s`; leave them as a context manager."""

    def __init__(self, skews_s: Sequence[int]) -> None:
        self.members: list[Member] = []
        groups: dict[int, list[socket.socket]] = {}
        for skew_s in skews_s:
            ours, theirs = socket.socketpair()
            self.members.append(Member(Connection(ours.detach()), skew_s))
            groups.setdefault(skew_s, []).append(theirs)
        told = [f"{skew_s}:{','.join(str(end.fileno()) for end in ends)}" for skew_s, ends in groups.items()]
        handed = [end for ends in groups.values() for end in ends]
        self._first = subprocess.Popen(
            [sys.executable, "-m", "bench.concurrent.forked", *told],
            pass_fds=[end.fileno() for end in handed],
            stdin=subprocess.DEVNULL,
        )
        for end in handed:
            end.close()
        try:
            for member in self.members:
                member.greet()
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End every process and wait for the one that they were forked from."""
        for member in self.members:
            member.end()
        self._first.wait(WAIT_S)


def at_once(members: Sequence[Member], orders: Sequence[Order]) -> list[Answer]:
    """Give each member its order; when all are ready, let them go. Return their answers. Raises Lost."""
    for member, order in zip(members, orders, strict=True):
        member.send(order)
    for member in members:
        member.hear()
    for member in members:
        member.send("go")
    return [member.answer() for member in members]

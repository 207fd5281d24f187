"""
Three mongod processes that are one replica set on this machine, to be killed, frozen and started again.

`with ReplicaSet.started() as servers:` leaves no process and no file behind; where the program itself is killed the
servers go with it. Elections are quick (`electionTimeoutMillis` 1500), so a primary is found again in seconds.
"""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from tests.fixtures.mongod import find_mongod, folder_in_memory, free_ports, mongod_command, tied

NAME = "rs0"
MEMBERS = 3
ELECTION_MS = 1_500
HEARTBEAT_MS = 500
# On a machine that has other work, too.
READY_S_MAX = 60.0
OPLOG_MB = 256


@dataclass
class Member:
    """One mongod: the same port and the same files however often it is killed and started."""

    number: int
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    client: MongoClient[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "data").mkdir(parents=True)
        self.client = MongoClient(
            "127.0.0.1",
            self.port,
            directConnection=True,
            serverSelectionTimeoutMS=400,
            connectTimeoutMS=400,
            socketTimeoutMS=5_000,
        )

    def start(self) -> None:
        """Start it on the files it has; return at once."""
        command = mongod_command(find_mongod(), self.folder / "data", self.port, self.folder / "log", oplog_mb=OPLOG_MB)
        self.process = subprocess.Popen(
            tied([*command, "--replSet", NAME, "--logappend"]),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP freezes it, SIGCONT lets it go on."""
        if self.process is not None:
            self.process.send_signal(number)

    def hello(self) -> dict[str, Any] | None:
        """Return what it says of itself, None where it does not answer."""
        if self.process is None:
            return None
        try:
            return dict(self.client.admin.command("hello"))
        except PyMongoError:
            return None

    def is_primary(self) -> bool:
        return bool((self.hello() or {}).get("isWritablePrimary"))

    def fail(self, name: str, *, once: bool = False, **data: Any) -> int:
        """Turn a failpoint of the server's on, with `data`; return how often it was entered before."""
        mode: Any = {"times": 1} if once else "alwaysOn"
        said = self.client.admin.command({"configureFailPoint": name, "mode": mode, "data": data})
        return int(said["count"])

    def await_failure(self, name: str, times: int) -> None:
        """Return when a failpoint was entered that often."""
        milliseconds = int(READY_S_MAX * 1_000)
        self.client.admin.command({"waitForFailPoint": name, "timesEntered": times, "maxTimeMS": milliseconds})

    def heal(self, name: str) -> None:
        """Turn a failpoint off."""
        self.client.admin.command({"configureFailPoint": name, "mode": "off"})

    def await_put_aside(self, collections: int) -> None:
        """
        Return when it has put documents of so many collections aside: it follows others again, without what it alone
        had.

        Raises:
            TimeoutError: it has not in READY_S_MAX.
        """
        deadline_s = time.monotonic() + READY_S_MAX
        while len(list((self.folder / "data").glob("rollback/*"))) < collections:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"server {self.number} has put nothing aside in {READY_S_MAX:g} s")
            time.sleep(0.05)


class ReplicaSet:
    """The members and what is done to them. Synchronous: a chaos thread or a test's own step calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(MEMBERS)
        self.members = [Member(number, port, folder / str(number)) for number, port in enumerate(ports)]
        self.url = f"mongodb://{','.join(f'127.0.0.1:{port}' for port in ports)}/?replicaSet={NAME}"

    @classmethod
    @contextmanager
    def started(cls, *, in_memory: bool = False) -> Iterator[Self]:
        """
        Yield a replica set with a primary, in some five seconds.

        Raises:
            FileNotFoundError: there is no mongod here; the message says how to get one.
            TimeoutError: no primary in READY_S_MAX.
        """
        servers = cls(folder_in_memory() if in_memory else Path(tempfile.mkdtemp(prefix="livery-replicas-")))
        try:
            for member in servers.members:
                member.start()
            servers._initiate()
            servers.primary()
            yield servers
        finally:
            servers.stop()

    def _initiate(self) -> None:
        members = [{"_id": member.number, "host": f"127.0.0.1:{member.port}"} for member in self.members]
        settings = {"electionTimeoutMillis": ELECTION_MS, "heartbeatIntervalMillis": HEARTBEAT_MS}
        config = {"_id": NAME, "members": members, "settings": settings}
        deadline_s = time.monotonic() + READY_S_MAX
        while True:
            try:
                self.members[0].client.admin.command("replSetInitiate", config)
                return
            except PyMongoError:
                # The others may not listen yet.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)

    def primary(self, *, other_than: Member | None = None) -> Member:
        """Return the primary, waiting for one. Raises TimeoutError."""
        deadline_s = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline_s:
            for member in self.members:
                if member is not other_than and member.is_primary():
                    return member
            time.sleep(0.05)
        raise TimeoutError(f"no primary in {READY_S_MAX:g} s; the servers' logs end so:\n{self._log_ends()}")

    def whole(self) -> None:
        """Start what is down and return when all follow one primary. Raises TimeoutError."""
        for member in self.members:
            if member.process is None:
                member.start()
        deadline_s = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline_s:
            states = sorted(self._state(member) for member in self.members)
            if states == ["PRIMARY", "SECONDARY", "SECONDARY"]:
                return
            time.sleep(0.05)
        raise TimeoutError(f"the servers are {states} after {READY_S_MAX:g} s")

    def _state(self, member: Member) -> str:
        said = member.hello() or {}
        return "PRIMARY" if said.get("isWritablePrimary") else "SECONDARY" if said.get("secondary") else "AWAY"

    def secondaries(self, primary: Member) -> list[Member]:
        return [member for member in self.members if member is not primary]

    def step_down(self) -> None:
        """Ask the primary to hand over, as maintenance does."""
        # An older server closes its connections as it steps down; a set that is catching up may refuse.
        with suppress(AutoReconnect, OperationFailure):
            self.primary().client.admin.command("replSetStepDown", 10, secondaryCatchUpPeriodSecs=5)

    def stop(self) -> None:
        """Kill every server and remove its files; doing so twice is harmless."""
        for member in self.members:
            member.kill()
            member.client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _log_ends(self) -> str:
        logs = [self.folder / str(member.number) / "log" for member in self.members]
        return "\n".join(log.read_text(errors="replace")[-1_000:] for log in logs if log.exists())

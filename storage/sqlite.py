"""
A SQLite file that coroutines share: one writing thread, a few reading ones, a connection for each.

Rule 1: a unit of work is one function of a connection, run in one transaction in a worker thread.
Rule 2: writers wait for each other in one queue, and for other processes by SQLite's busy timeout.
Rule 3: nothing belongs to an event loop; an object may be used from several loops, in turn or at once.

Work that was started goes on when its caller is cancelled: like a request on the wire, it may have happened.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from storage import migrations
from storage.errors import Refused, StorageError, Unavailable
from storage.migrations import Schema

ResultT = TypeVar("ResultT")
Work = Callable[[sqlite3.Connection], ResultT]

BUSY_TIMEOUT_S = 10.0
_CREATING = threading.Lock()
READERS = 4

# The time of the one clock that all processes on a file share, as RFC 3339 of a fixed width:
# such texts sort as the times do. SQLite counts milliseconds.
NOW = "strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')"
# The same, moved by as many seconds as the parameter says.
NOW_PLUS_S = "strftime('%Y-%m-%dT%H:%M:%f000Z', 'now', ? || ' seconds')"

# Which of our errors a driver's exception becomes; the first that fits. IntegrityError is not here:
# work that can meet one knows what it means, and everybody else has a bug.
_TRANSLATIONS: tuple[tuple[type[Exception], type[StorageError]], ...] = (
    (sqlite3.IntegrityError, Refused),
    (sqlite3.OperationalError, Unavailable),
    (sqlite3.ProgrammingError, Refused),
    (sqlite3.InterfaceError, Refused),
    (sqlite3.DataError, Refused),
    (sqlite3.DatabaseError, Unavailable),
    (UnicodeEncodeError, Refused),
    (OverflowError, Refused),
    (OSError, Unavailable),
)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn a driver's exception into a StorageError that names the file."""
    try:
        yield
    except tuple(kind for kind, _ in _TRANSLATIONS) as error:
        ours = next(ours for kind, ours in _TRANSLATIONS if isinstance(error, kind))
        raise ours(f"{path}: {error}") from error


class _Lane:
    """Threads, each with a connection of its own that lives as long as the lane."""

    def __init__(self, name: str, threads: int, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"sqlite-{name}")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def run(self, work: Work[ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, work)

    def _call(self, work: Work[ResultT]) -> ResultT:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        return work(connection)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        for connection in self._connections:
            connection.close()


class Sqlite:
    """
    One file and the `schema` it must have, which is brought about at its first use.

    Making one does no I/O; after `close` the next use opens the file again.
    """

    def __init__(self, path: str | Path, schema: Schema | None = None, *, busy_timeout_s: float = BUSY_TIMEOUT_S):
        if str(path) in ("", ":memory:"):
            raise ValueError("a store is a file: threads and processes cannot share a database in memory")
        self.path = Path(path)
        self.schema = schema
        self._busy_timeout_s = busy_timeout_s
        self._guard = threading.Lock()
        self._writer: _Lane | None = None
        self._readers: _Lane | None = None
        self._ready = False

    async def read(self, work: Work[ResultT]) -> ResultT:
        """Return `work(connection)` of one unchanging snapshot; a statement that writes is refused."""
        await self._prepare()
        return await self._inspect(work)

    async def write(self, work: Work[ResultT], *, durable: bool = False) -> ResultT:
        """
        Return `work(connection)`, committed as one transaction; whatever it raises rolls all of it back.

        Every commit survives the death of the process; with `durable`, the loss of power too.
        """
        await self._prepare()
        return await self._lanes()[0].run(lambda connection: self._transact(connection, work, durable))

    async def migrate(self) -> int:
        """Bring the file to the schema's version, missing indexes included; return it. Raises TooNew."""
        schema = self.schema
        if schema is None:
            return 0
        return await self.write(lambda connection: migrations.migrate(connection, schema), durable=True)

    async def check(self) -> list[str]:
        """Return one line per thing the file lacks, without changing it; empty when all is well."""
        schema = self.schema
        if schema is None:
            return []
        if not await asyncio.to_thread(self.path.exists):
            return [f"file {self.path}: missing"]
        return await self._inspect(lambda connection: migrations.missing(connection, schema))

    async def close(self) -> None:
        """Wait for the work at hand and close every connection."""
        with self._guard:
            lanes = [lane for lane in (self._writer, self._readers) if lane is not None]
            self._writer = self._readers = None
            self._ready = False
        for lane in lanes:
            await asyncio.to_thread(lane.close)

    def _lanes(self) -> tuple[_Lane, _Lane]:
        with self._guard:
            if self._writer is None or self._readers is None:
                self._writer = _Lane("writer", 1, self._connect)
                self._readers = _Lane("reader", READERS, self._connect_read_only)
            return self._writer, self._readers

    async def _prepare(self) -> None:
        if not self._ready:
            await self._lanes()[0].run(self._make_ready)

    def _make_ready(self, connection: sqlite3.Connection) -> None:
        schema = self.schema
        if self._ready:
            return
        if schema is not None:
            with translated(self.path):
                version = migrations.stored_version(connection, schema.room)
            migrations.refuse_newer(version, schema)
            if version < schema.version:
                self._transact(connection, lambda inner: migrations.migrate(inner, schema), True)
        self._ready = True

    async def _inspect(self, work: Work[ResultT]) -> ResultT:
        return await self._lanes()[1].run(lambda connection: self._snapshot(connection, work))

    def _snapshot(self, connection: sqlite3.Connection, work: Work[ResultT]) -> ResultT:
        with translated(self.path):
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                _roll_back(connection)

    def _transact(self, connection: sqlite3.Connection, work: Work[ResultT], durable: bool) -> ResultT:
        with translated(self.path):
            # FULL syncs the write-ahead log at the commit, earlier commits in it included.
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
            return result

    def _connect_read_only(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect(self) -> sqlite3.Connection:
        with translated(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _create(self.path)
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                self._use_wal(connection)
                connection.execute("PRAGMA trusted_schema = OFF")
            except BaseException:
                connection.close()
                raise
            return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to write-ahead logging; SQLite does not wait by itself when two processes do this to a new file."""
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)


def _create(path: Path) -> None:
    """
    Make the file if there is none, for its owner's eyes alone: it will hold signed payments.

    A file that is there is never opened here. POSIX drops every lock a process has on a file when it closes any
    descriptor of it; other processes would then take the database for unused and clear its log away under us.
    Source: sqlite.org/howtocorrupt.html, section 2.2.
    """
    with _CREATING, suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _roll_back(connection: sqlite3.Connection) -> None:
    # The error that led here says more than one of the rollback.
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")

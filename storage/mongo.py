"""
A MongoDB database that coroutines of any event loop share: one client per loop, transactions, snapshots.

PyMongo's client belongs to the first loop that uses it, and serverless runtimes change loops between requests;
so each loop has its own, made at its first use and closed when the loop ends.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pymongo
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    WriteError,
)
from pymongo.monitoring import CommandListener
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from storage.errors import Refused, ReplicaSetNeeded, StorageError, Unavailable

ResultT = TypeVar("ResultT")
Document = dict[str, Any]
Database = AsyncDatabase[Document]
Session = AsyncClientSession

# A transaction that keeps meeting others is given up after this; the driver's own patience is 120 s.
TRANSACTION_S_MAX = 8.0
# What comes on top to tell the server that what was written is given up. Untold it keeps the locks of it for a minute,
# in everybody's way.
ABORT_S_MAX = 1.0

# What a URL may say otherwise. One instance of a function serves one request at a time, so its pool is small.
# `timeoutMS` is the patience of one operation, finding a server included: a server that is away is reported
# before a function's own time is over.
_OPTIONS: dict[str, Any] = {
    "appName": "livery",
    "maxPoolSize": 10,
    "minPoolSize": 0,
    "maxIdleTimeMS": 60_000,
    "connectTimeoutMS": 3_000,
    "timeoutMS": 5_000,
    "retryWrites": True,
    "retryReads": True,
}

# Not for a URL to say: what one server alone acknowledged, or alone has read, a fail-over takes back. A lease that
# is taken back would be given again under the same fencing token.
_ACKNOWLEDGED = WriteConcern("majority")
_DURABLE = WriteConcern("majority", j=True)
_COMMITTED = ReadConcern("majority")

# What the driver does not try again by itself: a command, and a snapshot that the next primary does not have.
_PASSING = frozenset({91, 189, 239, 246, 10107, 11600, 11602, 13435, 13436})
PASSING_S_MAX = 5.0
PASSING_WAIT_S = 0.05

_REPLICA_SET_NEEDED = (
    "this MongoDB server has no transactions because it is not a replica set: "
    "start it with --replSet and run rs.initiate(), or use Atlas"
)
# "Transaction numbers are only allowed on a replica set member or mongos".
_NO_TRANSACTIONS = 20

# Which of our errors a driver's exception becomes; the first that fits.
_TRANSLATIONS: tuple[tuple[type[Exception], type[StorageError]], ...] = (
    (BulkWriteError, Refused),
    (WriteError, Refused),
    (DocumentTooLarge, Refused),
    (InvalidOperation, Refused),
    (PyMongoError, Unavailable),
    (BSONError, Refused),
    (UnicodeEncodeError, Refused),
    (OverflowError, Refused),
    (OSError, Unavailable),
)
_DETAIL_CHARS_MAX = 300


@contextmanager
def translated() -> Iterator[None]:
    """Turn a driver's exception into a StorageError."""
    try:
        yield
    except tuple(kind for kind, _ in _TRANSLATIONS) as error:
        if isinstance(error, OperationFailure) and error.code == _NO_TRANSACTIONS:
            raise ReplicaSetNeeded(_REPLICA_SET_NEEDED) from error
        ours = next(ours for kind, ours in _TRANSLATIONS if isinstance(error, kind))
        # The driver repeats the server's whole answer after this.
        detail = str(error).split(", full error:")[0][:_DETAIL_CHARS_MAX]
        raise ours(f"MongoDB: {type(error).__name__}: {detail}") from error


class Mongo:
    """
    The database `database` of the deployment at `url`; `listeners` hear every command.

    Making one does no I/O. ValueError for what is no URL. A transaction is given up after `transaction_s_max`.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        listeners: Sequence[CommandListener] = (),
        transaction_s_max: float = TRANSACTION_S_MAX,
    ) -> None:
        said = {name.lower() for name, _ in parse_qsl(urlsplit(url).query)}
        self._options: dict[str, Any] = {"tz_aware": True, "event_listeners": list(listeners)} | {
            name: value for name, value in _OPTIONS.items() if name.lower() not in said
        }
        self._url = url
        self._name = database
        self._transaction_s_max = transaction_s_max
        self._guard = threading.Lock()
        self._keepers: dict[asyncio.AbstractEventLoop, _Keeper] = {}

    async def database(self) -> Database:
        """Return the database as the running loop sees it."""
        return self._of(await self._client())

    async def run(self, work: Callable[[Database], Awaitable[ResultT]]) -> ResultT:
        """Return `work(database)`, whose writes stand each for itself."""
        with translated():
            return await work(await self.database())

    async def snapshot(self, work: Callable[[Database, Session], Awaitable[ResultT]]) -> ResultT:
        """Return `work(database, session)`, whose reads all see one moment."""

        async def read() -> ResultT:
            client = await self._client()
            async with client.start_session(snapshot=True) as session:
                return await work(self._of(client), session)

        with translated():
            return await _patiently(read)

    async def transaction(
        self, work: Callable[[Database, Session], Awaitable[ResultT]], *, durable: bool = False
    ) -> ResultT:
        """
        Return `work(database, session)`, committed by a majority; whatever it raises undoes all of it.

        `work` is run again when it meets another transaction or a fail-over, so it must do nothing but use its session.
        A commit that got no answer is asked for again, also of the next primary; Unavailable says that in all this time
        there was none, and that it may stand.
        With `durable` the majority has it in its journal.
        """
        with translated():
            client = await self._client()
            database = self._of(client)

            async def unit(session: Session) -> ResultT:
                try:
                    return await work(database, session)
                except BaseException:
                    # In a context of its own: the transaction's time may be over.
                    await asyncio.create_task(_abort(session), context=Context())
                    raise

            with pymongo.timeout(self._transaction_s_max):
                async with client.start_session() as session:
                    return await session.with_transaction(
                        unit,
                        read_concern=ReadConcern("snapshot"),
                        write_concern=_DURABLE if durable else _ACKNOWLEDGED,
                        read_preference=ReadPreference.PRIMARY,
                    )

    async def hello(self) -> datetime:
        """
        Return the server's clock, UTC, in milliseconds.

        Raises:
            ReplicaSetNeeded: the server stands alone.
        """

        async def ask() -> Document:
            return await (await self._client()).admin.command("hello")

        with translated():
            answer = await _patiently(ask)
        if "setName" not in answer and answer.get("msg") != "isdbgrid":
            raise ReplicaSetNeeded(_REPLICA_SET_NEEDED)
        # A command's answer carries no zone, whatever the client was told.
        now: datetime = answer["localTime"]
        return now.replace(tzinfo=UTC)

    async def close(self) -> None:
        """Close the running loop's client; the next use makes another."""
        with self._guard:
            keeper = self._keepers.pop(asyncio.get_running_loop(), None)
        if keeper is not None:
            await keeper.close()

    def _of(self, client: AsyncMongoClient[Document]) -> Database:
        return client.get_database(
            self._name, read_preference=ReadPreference.PRIMARY, write_concern=_ACKNOWLEDGED, read_concern=_COMMITTED
        )

    async def _client(self) -> AsyncMongoClient[Document]:
        loop = asyncio.get_running_loop()
        with self._guard:
            keeper = self._keepers.get(loop)
            if keeper is None:
                self._keepers = {loop: keeper for loop, keeper in self._keepers.items() if not loop.is_closed()}
                keeper = self._keepers[loop] = _Keeper(AsyncMongoClient(self._url, **self._options))
        await keeper.attach()
        return keeper.client


async def _patiently(read: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return `read()`, begun again while a fail-over is what stops it; each time has the driver's patience."""
    until_s = time.monotonic() + PASSING_S_MAX
    while True:
        try:
            return await read()
        except (AutoReconnect, OperationFailure) as error:
            passes = isinstance(error, AutoReconnect) or error.code in _PASSING
            if error.timeout or not passes or time.monotonic() > until_s:
                raise
        await asyncio.sleep(PASSING_WAIT_S)


async def _abort(session: Session) -> None:
    """Give up the session's transaction, if it is in one; the driver passes over what goes wrong with that."""
    if session.in_transaction:
        with pymongo.timeout(ABORT_S_MAX):
            await session.abort_transaction()


class _Keeper:
    """
    Closes a client when its loop ends.

    A loop closes the asynchronous generators that were begun in it before it closes itself, as its last chance
    to await; so one that does nothing but wait for that stands for the client's life.
    """

    def __init__(self, client: AsyncMongoClient[Document]) -> None:
        self.client = client
        self._life = self._live()
        self._attached = False

    async def attach(self) -> None:
        if not self._attached:
            self._attached = True
            await anext(self._life)

    async def close(self) -> None:
        await self._life.aclose()

    async def _live(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.client.close()

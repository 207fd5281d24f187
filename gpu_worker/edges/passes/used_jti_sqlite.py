"""Which session each session pass has opened, in SQLite: a restart lets no pass in twice."""

import sqlite3
from pathlib import Path

from gpu_worker.core.inference.callers import Ticket
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.session_passes import LEEWAY_S
from storage.migrations import Schema
from storage.sqlite import Sqlite

USED_MAX = 262_144

SCHEMA = Schema(
    room="gpu_worker_passes",
    tables=("used_passes",),
    steps=(
        (
            """CREATE TABLE used_passes (
                jti TEXT PRIMARY KEY,
                session TEXT NOT NULL,
                exp_s REAL NOT NULL
            ) STRICT, WITHOUT ROWID""",
        ),
    ),
    indexes=("CREATE INDEX used_passes_exp ON used_passes (exp_s)",),
)


class SqliteUsedPasses:
    """`inference.text.admission.UsedPasses` in the file `database`; nothing is opened yet."""

    def __init__(self, database: Path, *, used_max: int = USED_MAX) -> None:
        self._db = Sqlite(database, SCHEMA)
        self._used_max = used_max

    async def take(self, ticket: Ticket, session: str, now_s: float) -> bool:
        def take(connection: sqlite3.Connection) -> bool:
            # What has expired admits nobody, used up or not; nor does what was shown in time, before a slow body.
            if ticket.exp_s < now_s - LEEWAY_S:
                return False
            connection.execute("DELETE FROM used_passes WHERE exp_s < ?", (now_s - LEEWAY_S,))
            known = connection.execute("SELECT session FROM used_passes WHERE jti = ?", (ticket.jti,)).fetchone()
            if known is not None:
                return bool(known[0] == session)
            (count,) = connection.execute("SELECT count(*) FROM used_passes").fetchone()
            if count >= self._used_max:
                raise InferenceError("no_capacity", f"{self._used_max} session passes are in use here, no more")
            connection.execute("INSERT INTO used_passes VALUES (?, ?, ?)", (ticket.jti, session, ticket.exp_s))
            return True

        return await self._db.write(take)

    async def give_back(self, ticket: Ticket, session: str) -> None:
        forget = "DELETE FROM used_passes WHERE jti = ? AND session = ?"
        await self._db.write(lambda connection: connection.execute(forget, (ticket.jti, session)))

    async def close(self) -> None:
        await self._db.close()

"""
Ordered migrations of a SQLite file, and the row that says how far it has come.

Version n is reached by running `steps[n - 1]`; steps are only ever appended. Indexes are stated
apart from the steps: every migration makes sure that all of them exist. Rooms may share a file:
each has its own row in `schema`.
"""

import sqlite3
from dataclasses import dataclass

from storage.errors import TooNew

_VERSIONS = "CREATE TABLE IF NOT EXISTS schema (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The tables and indexes of one `room`. `indexes` are `CREATE [UNIQUE] INDEX name ON ...` by name."""

    room: str
    steps: tuple[tuple[str, ...], ...]
    indexes: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        return len(self.steps)


def stored_version(connection: sqlite3.Connection, room: str) -> int:
    """Return the version `room` has in this file, 0 where it was never migrated."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema'").fetchone() is None:
        return 0
    row = connection.execute("SELECT version FROM schema WHERE room = ?", (room,)).fetchone()
    return 0 if row is None else int(row[0])


def refuse_newer(version: int, schema: Schema) -> None:
    """Raises TooNew when `version` is above what this program knows."""
    if version > schema.version:
        raise TooNew(
            f"the store of {schema.room} has version {version}, this program knows {schema.version}: update the program"
        )


def migrate(connection: sqlite3.Connection, schema: Schema) -> int:
    """
    Bring the file to `schema.version` inside the caller's transaction; return the version.

    Raises:
        TooNew: a newer program was here.
    """
    version = stored_version(connection, schema.room)
    refuse_newer(version, schema)
    connection.execute(_VERSIONS)
    for step in schema.steps[version:]:
        for statement in step:
            connection.execute(statement)
    for index in schema.indexes:
        connection.execute(index.replace("INDEX", "INDEX IF NOT EXISTS", 1))
    connection.execute(
        "INSERT INTO schema (room, version) VALUES (?, ?) ON CONFLICT (room) DO UPDATE SET version = excluded.version",
        (schema.room, schema.version),
    )
    return schema.version


def missing(connection: sqlite3.Connection, schema: Schema) -> list[str]:
    """Return one line per table or index of `schema` that the file lacks or has in another shape."""
    version = stored_version(connection, schema.room)
    lines = []
    if version != schema.version:
        lines.append(f"schema {schema.room}: version {version}, this program has {schema.version}")
    found = {
        (str(kind), str(name)): " ".join(str(sql).split())
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }
    lines += [f"table {name}: missing" for name in schema.tables if ("table", name) not in found]
    for index in schema.indexes:
        name = index.split("INDEX", 1)[1].split()[0]
        shape = found.get(("index", name))
        if shape is None:
            lines.append(f"index {name}: missing")
        elif shape != " ".join(index.split()):
            lines.append(f"index {name}: differs from {index}")
    return lines

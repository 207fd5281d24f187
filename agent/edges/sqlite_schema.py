"""
The tables of the agent's SQLite file: documents, and beside each the few columns that conditions and indexes need.

A column that repeats a field is written together with its document. `cancel_requested_at`, `next_tick_at` and the
lease are columns alone: no save writes them.
"""

from storage.migrations import Schema

_TABLES = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        created_at TEXT NOT NULL,
        cancel_requested_at TEXT,
        next_tick_at TEXT,
        start_key TEXT,
        start_fingerprint TEXT,
        token INTEGER NOT NULL DEFAULT 0,
        claimed_at TEXT,
        lease_until TEXT,
        document TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        run_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        updated_at TEXT NOT NULL,
        document TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE payments (
        id TEXT PRIMARY KEY,
        run_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        updated_at TEXT NOT NULL,
        x402_tx_id TEXT,
        document TEXT NOT NULL
    ) STRICT
    """,
    "CREATE TABLE observations (run_id TEXT NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL, document TEXT NOT NULL)"
    " STRICT",
    "CREATE TABLE vendors (position INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, document TEXT NOT NULL)"
    " STRICT",
    "CREATE TABLE wallets (id TEXT PRIMARY KEY, value INTEGER NOT NULL CHECK (value >= 0)) STRICT",
)

# Version 2: how vendors' jobs end, and what is still to be told outside.
_STANDINGS_AND_OUTBOX = (
    "CREATE TABLE standings (id TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT",
    "CREATE TABLE outbox (id TEXT PRIMARY KEY, due_at TEXT NOT NULL, attempts INTEGER NOT NULL, document TEXT NOT NULL)"
    " STRICT",
)

# Version 3: what counts once is a counter with a cap of 1, the refunds of version 1 and the vendors' jobs that were
# taken up; and a job keeps a mark for each of its last polls, which its log tells.
_COUNTED_ONCE = (
    "CREATE TABLE IF NOT EXISTS refunds (id TEXT PRIMARY KEY, run_id TEXT NOT NULL) STRICT",
    "INSERT INTO wallets (id, value) SELECT 'once:' || id, 1 FROM refunds WHERE true ON CONFLICT DO NOTHING",
    "DROP TABLE refunds",
    """
    INSERT INTO wallets (id, value)
    SELECT 'once:' || json_extract(document, '$.vendorId') || ':' || json_extract(document, '$.vendorJobId'), 1
    FROM jobs WHERE json_extract(document, '$.vendorJobId') IS NOT NULL
    ON CONFLICT DO NOTHING
    """,
    """
    UPDATE jobs SET document = json_set(document, '$.polls', (
        SELECT coalesce(substr(group_concat(mark, ''), -20), '') FROM (
            SELECT CASE json_extract(data, '$.kind') WHEN 'job_observed' THEN '.' ELSE 'x' END AS mark FROM (
                SELECT seq, json_extract(document, '$.data') AS data FROM observations
                WHERE run_id = jobs.run_id AND json_extract(document, '$.jobId') = jobs.id
            )
            WHERE json_extract(data, '$.kind') IN ('job_observed', 'job_missed') ORDER BY seq
        )
    ))
    WHERE json_extract(document, '$.polls') IS NULL
    """,
)

_INDEXES = (
    "CREATE UNIQUE INDEX vendors_vendor_id ON vendors (vendor_id)",
    "CREATE INDEX jobs_run_id_updated_at ON jobs (run_id, updated_at)",
    "CREATE INDEX payments_run_id_updated_at ON payments (run_id, updated_at)",
    "CREATE UNIQUE INDEX payments_x402_tx_id ON payments (x402_tx_id) WHERE x402_tx_id IS NOT NULL",
    "CREATE UNIQUE INDEX observations_run_id_seq ON observations (run_id, seq)",
    "CREATE INDEX runs_next_tick_at ON runs (next_tick_at) WHERE next_tick_at IS NOT NULL",
    "CREATE INDEX runs_status_created_at ON runs (status, created_at)",
    "CREATE INDEX runs_created_at ON runs (created_at)",
    "CREATE UNIQUE INDEX runs_start_key ON runs (start_key) WHERE start_key IS NOT NULL",
    "CREATE INDEX outbox_due_at ON outbox (due_at)",
)

SCHEMA = Schema(
    room="agent",
    steps=(_TABLES, _STANDINGS_AND_OUTBOX, _COUNTED_ONCE),
    indexes=_INDEXES,
    tables=("runs", "jobs", "payments", "observations", "vendors", "wallets", "standings", "outbox"),
)

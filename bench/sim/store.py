"""
The `Store` port in memory: every verb is one step, its clock is given to it.

It passes the contract suite of the real stores (tests/bench/test_sim_store.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from agent.core import standing
from agent.core.errors import Bug, KeyConflict, StaleClaim, UnknownRun
from agent.core.model import Entry, Notice, Outcome, Run, Standing, Vendor
from agent.core.states import RUN_ENDS
from agent.edges.documents import check_books, decode_cursor, decode_time, encode_cursor, encode_time, is_id
from agent.ports import Busy, Claim, Hold, Page


@dataclass
class Row:
    """A stored run with what only the store writes; `wrote` is the token of the last save."""

    run: Run
    token: int = 0
    wrote: int = 0
    lease_until: datetime | None = None
    claimed_at: datetime | None = None
    log: list[Entry] = field(default_factory=list)


class Watcher(Protocol):
    """Is told of every save, when it is done."""

    def saved(self, before: Run, row: Row, token_before: int, entries: Sequence[Entry]) -> None: ...


class MemoryStore:
    """Runs in memory. `watcher`, once it is set, sees every save."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self.rows: dict[str, Row] = {}
        self.vendors: dict[str, Vendor] = {}
        self.holds: dict[str, int] = {}
        self.watcher: Watcher | None = None
        self._keys: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, str] = {}
        self._standings: dict[tuple[str, str], Standing] = {}
        self._outbox: dict[str, tuple[datetime, Notice]] = {}
        self._turns: dict[str, datetime] = {}

    def now(self) -> datetime:
        return self._clock()

    def insert_run(self, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str) -> Run:
        check_books(run, entries)
        if key is not None and key in self._keys:
            run_id, before = self._keys[key]
            if before != fingerprint:
                raise KeyConflict("the key began a run with another body")
            return self.rows[run_id].run
        if run.run_id in self.rows:
            raise Bug(f"run {run.run_id} is stored")
        self._own(run)
        self.rows[run.run_id] = Row(run, log=list(entries))
        if key is not None:
            self._keys[key] = run.run_id, fingerprint
        return run

    def claim(self, run_id: str, lease_s: int, *, due_before: datetime | None = None) -> Claim | Busy:
        row, now = self._row(run_id), self._clock()
        is_free = row.lease_until is None or row.lease_until <= now
        due_at = row.run.next_tick_at
        if not is_free or (due_before is not None and (due_at is None or due_at > due_before)):
            left = (row.lease_until or now) - now
            return Busy(max(1, math.ceil(left.total_seconds())))
        row.token += 1
        row.claimed_at, row.lease_until = now, now + timedelta(seconds=lease_s)
        return Claim(run=row.run, token=row.token, now=now)

    def save(
        self,
        token: int,
        run: Run,
        entries: Sequence[Entry] = (),
        *,
        holds: Sequence[Hold] = (),
        outcomes: Sequence[Outcome] = (),
        notices: Sequence[Notice] = (),
        durable: bool = False,
    ) -> Hold | None:
        check_books(run, entries)
        row = self.rows.get(run.run_id)
        if row is None or not self.is_fresh(row, token):
            raise StaleClaim(f"run {run.run_id} was claimed by another tick")
        values = dict(self.holds)
        for hold in holds:
            value = values.get(hold.scope, 0) + hold.amount_atomic
            if hold.amount_atomic > 0 and value > hold.cap_atomic:
                return hold
            values[hold.scope] = max(0, value)
        if {entry.seq for entry in entries} & {entry.seq for entry in row.log[-len(entries) :]}:
            raise Bug(f"run {run.run_id} has such an entry")
        self._own(run)
        self.holds = values
        for outcome in outcomes:
            key = outcome.vendor_id, outcome.gpu_type
            before = self._standings.get(key) or standing.opened(*key, outcome.at)
            self._standings[key] = standing.counted(before, outcome)
        self._outbox |= {notice.notice_id: (notice.created_at, notice) for notice in notices}
        old, token_before = row.run, row.wrote
        row.run = replace(run, cancel_requested_at=old.cancel_requested_at, next_tick_at=old.next_tick_at)
        row.wrote = token
        row.log.extend(entries)
        if self.watcher is not None:
            self.watcher.saved(old, row, token_before, entries)
        return None

    def is_fresh(self, row: Row, token: int) -> bool:
        """Return whether `token` is the one that holds the run: the fence."""
        return row.token == token

    def release(self, run_id: str, token: int, next_tick_at: datetime | None) -> None:
        row = self.rows.get(run_id)
        if row is None or row.token != token:
            return
        row.lease_until, run = None, row.run
        asked = run.cancel_requested_at
        if asked is not None and row.claimed_at is not None and asked >= row.claimed_at and run.status not in RUN_ENDS:
            next_tick_at = asked if next_tick_at is None else min(next_tick_at, asked)
        row.run = replace(run, next_tick_at=next_tick_at)

    def read_run(self, run_id: str) -> Run:
        return self._row(run_id).run

    def list_runs(self, status: str | None, cursor: str | None, limit: int) -> Page:
        runs = [row.run for row in self.rows.values() if status in (None, row.run.status)]
        runs.sort(key=lambda run: (run.created_at, run.run_id), reverse=True)
        if (place := decode_cursor(cursor)) is not None:
            after = decode_time(place[0]), place[1]
            runs = [run for run in runs if (run.created_at, run.run_id) < after]
        page = tuple(runs[: max(limit, 1)])
        more = encode_cursor(encode_time(page[-1].created_at), page[-1].run_id) if len(runs) > len(page) else None
        return Page(runs=page, cursor=more)

    def read_log(
        self,
        run_id: str,
        *,
        types: Sequence[str] | None = None,
        newest: int | None = None,
        oldest: int | None = None,
        after: int = 0,
    ) -> list[Entry]:
        log = self.rows[run_id].log if run_id in self.rows else []
        found = [entry for entry in log if entry.seq > after and (types is None or entry.type in types)]
        if oldest is not None:
            return found[: max(oldest, 0)]
        return found if newest is None else found[max(len(found) - max(newest, 0), 0) :]

    def due_runs(self, now: datetime, limit: int) -> list[str]:
        rows = self.rows.items()
        due = [(at, run_id) for run_id, row in rows if (at := row.run.next_tick_at) is not None and at <= now]
        return [run_id for _, run_id in sorted(due)[: max(limit, 0)]]

    def request_cancel(self, run_id: str) -> Run:
        row, now = self._row(run_id), self._clock()
        if row.run.status not in RUN_ENDS:
            asked = row.run.cancel_requested_at or now
            due = min(row.run.next_tick_at or now, now)
            row.run = replace(row.run, cancel_requested_at=asked, next_tick_at=due)
        return row.run

    def put_vendor(self, vendor: Vendor, *, replace: bool) -> bool:
        if vendor.vendor_id in self.vendors and not replace:
            return False
        self.vendors[vendor.vendor_id] = vendor
        return True

    def list_vendors(self) -> list[Vendor]:
        return list(self.vendors.values())

    def remove_vendor(self, vendor_id: str) -> bool:
        return self.vendors.pop(vendor_id, None) is not None

    def standings(self) -> list[Standing]:
        return [self._standings[key] for key in sorted(self._standings)]

    def take_notices(self, limit: int, lease_s: int) -> list[Notice]:
        now = self._clock()
        due = sorted((at, notice_id) for notice_id, (at, _) in self._outbox.items() if at <= now)
        taken = []
        for _, notice_id in due[: max(limit, 0)]:
            notice = self._outbox[notice_id][1]
            taken.append(replace(notice, attempts=notice.attempts + 1))
            self._outbox[notice_id] = now + timedelta(seconds=lease_s), taken[-1]
        return sorted(taken, key=lambda notice: (notice.created_at, notice.notice_id))

    def settle_notice(self, notice_id: str, retry_s: int | None) -> None:
        if retry_s is None:
            self._outbox.pop(notice_id, None)
        elif notice_id in self._outbox:
            self._outbox[notice_id] = self._clock() + timedelta(seconds=retry_s), self._outbox[notice_id][1]

    def take_turn(self, name: str, now: datetime, interval_s: int) -> bool:
        before = self._turns.get(name)
        if before is not None and now < before + timedelta(seconds=interval_s):
            return False
        self._turns[name] = now
        return True

    def _row(self, run_id: str) -> Row:
        if not is_id(run_id) or run_id not in self.rows:
            raise UnknownRun(f"there is no run {run_id!r}")
        return self.rows[run_id]

    def _own(self, run: Run) -> None:
        """Let no job, payment or transaction belong to two."""
        names = {job.job_id: run.run_id for job in run.jobs} | {paid.payment_id: run.run_id for paid in run.payments}
        names |= {paid.transaction: paid.payment_id for paid in run.payments if paid.transaction is not None}
        for name, owner in names.items():
            if self._owners.get(name, owner) != owner:
                raise Bug(f"{name} belongs to another")
        self._owners |= names

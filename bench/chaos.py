"""
A MongoDB replica set whose primary is killed again and again while runs advance: does every run end, is anything lost?

Three mongod processes; SIGKILL to the primary at drawn intervals of 5-40 s, and a start on the same files a little
later; several processes that start runs and sweep. Vendors, facilitator and chain are real and are left in peace. Each
process writes down what the store acknowledged to it, and at the end all of that has to be there.
`python -m bench.chaos [--minutes 10] [--runs 1000] [--seed N] [--record]`
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.table import Table

from agent.core.states import RUN_ENDS
from bench import records
from bench.books import all_runs
from bench.chaos_books import Findings, check, read_journals
from bench.chaos_driver import Orders
from bench.chaos_place import DATABASE, PAID_IN, PAYER, Place, agent_of, open_place
from bench.replica_set import Member, ReplicaSet

INTERVAL_S = (5.0, 40.0)
DOWN_S = (0.0, 8.0)
# The runs begin within this share of the time, so that the last ones meet a kill, too.
STARTED_WITHIN = 0.85
CANCELLED_SHARE = 0.05
# After the last kill: how long the runs may still take, and how long announced refunds.
ENDING_S_MAX = 1_800.0
REFUNDS_S_MAX = 120.0
# Nothing is wrong with the vendors here but a job that fails now and then: no run is to fail.
ENDS = {("completed", None), ("cancelled", "cancelled")}


@dataclass
class Chaos:
    """What was done to the servers, and how they took it."""

    kills: int = 0
    elections: set[bytes] = field(default_factory=set)
    longest_without_primary_s: float = 0.0
    ended_at_last_kill: int = 0


def main() -> int:
    """Run the suite; return 0 where every run ended and nothing was lost or broken."""
    reader = argparse.ArgumentParser(prog="python -m bench.chaos")
    reader.add_argument("--minutes", type=float, default=10.0, help="how long primaries are killed")
    reader.add_argument("--runs", type=int, default=1_000)
    reader.add_argument("--processes", type=int, default=4, help="that start runs and sweep")
    records.add_arguments(reader)
    words = reader.parse_args()
    seed = random.SystemRandom().randrange(2**31) if words.seed is None else words.seed
    # So that a terminated program takes its servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        place = open_place(stack)
        drivers = _start_drivers(stack, place, words, seed)
        _tell(f"seed {seed}: {words.runs} runs, {words.minutes:g} minutes")
        chaos = _rage(place, drivers, words.minutes * 60, random.Random(seed))
        _tell(f"{chaos.kills} kills, {chaos.ended_at_last_kill} runs have ended; the rest is let end in peace")
        ended = _await_ends(place, drivers, words.runs)
        _tell(f"{ended} runs have ended; refunds come in, then all books are read")
        findings = asyncio.run(_settled(place, drivers))
        troubles = [
            *findings.broken,
            *unexpected(chaos, ended, words.runs, findings),
            *_driver_troubles(place, drivers),
        ]
    figures = _figures(words, seed, chaos, ended, findings, troubles)
    _show(figures, findings, troubles)
    if words.record:
        records.record("chaos", figures)
    print(json.dumps(figures))
    return 1 if findings.lost or troubles else 0


def unexpected(chaos: Chaos, ended: int, runs: int, findings: Findings) -> list[str]:
    """Return what makes the run worth nothing, or the agent: no kills, ends that are none of ENDS, wrong payments."""
    found = [] if ended == runs else [f"{ended} of {runs} runs have ended"]
    found += [f"{count} runs are {end[0]}: {end[1]}" for end, count in findings.ends.items() if end not in ENDS]
    for what, count in (("kills", chaos.kills), ("fail-overs", len(chaos.elections) - 1)):
        found += [f"no {what}: nothing was tried"] if count < 1 else []
    for name in ("double_payments", "lost_payments", "overspend"):
        found += [f"{name}: {count}"] if (count := getattr(findings, name)) else []
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _start_drivers(
    stack: ExitStack, place: Place, words: argparse.Namespace, seed: int
) -> list[subprocess.Popen[bytes]]:
    """Start the processes that start runs and sweep; each has its share of the keys."""
    keys = [f"chaos-{number}" for number in range(words.runs)]
    drivers = []
    for number in range(words.processes):
        orders = Orders(
            settings=place.settings,
            journal=str(place.folder / f"{number}.journal"),
            keys=keys[number :: words.processes],
            spread_s=words.minutes * 60 * STARTED_WITHIN,
            cancelled_share=CANCELLED_SHARE,
            seed=seed + number,
        )
        with (place.folder / f"driver-{number}.log").open("w") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "bench.chaos_driver"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        stack.callback(driver.wait)
        stack.callback(driver.kill)
        assert driver.stdin is not None
        driver.stdin.write(json.dumps(asdict(orders)).encode())
        driver.stdin.close()
        drivers.append(driver)
    return drivers


def _rage(place: Place, drivers: list[subprocess.Popen[bytes]], seconds: float, chance: random.Random) -> Chaos:
    """Kill the primary and start it again, at drawn times, for so long; watch for a primary all the while."""
    chaos, servers = Chaos(), place.servers
    until_s = time.monotonic() + seconds
    seen_s = time.monotonic()
    kill_s = seen_s + chance.uniform(*INTERVAL_S)
    down: dict[int, float] = {}
    while (now_s := time.monotonic()) < until_s or down:
        for number in [number for number, up_s in down.items() if up_s <= now_s]:
            del down[number]
            servers.members[number].start()
        primary = _primary(servers, chaos)
        if primary is not None:
            chaos.longest_without_primary_s = max(chaos.longest_without_primary_s, time.monotonic() - seen_s)
            seen_s = time.monotonic()
        if kill_s <= now_s < until_s and primary is not None:
            primary.kill()
            chaos.kills += 1
            down[primary.number] = time.monotonic() + chance.uniform(*DOWN_S)
            kill_s = time.monotonic() + chance.uniform(*INTERVAL_S)
        time.sleep(0.1)
    chaos.ended_at_last_kill = _ended(place)
    return chaos


def _primary(servers: ReplicaSet, chaos: Chaos) -> Member | None:
    for member in servers.members:
        said = member.hello() or {}
        if said.get("isWritablePrimary"):
            chaos.elections.add(said["electionId"].binary)
            return member
    return None


def _ended(place: Place) -> int:
    """Return how many runs have ended, -1 while the servers do not say."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(place.servers.url, timeoutMS=5_000) as client:
        try:
            return client[DATABASE].runs.count_documents({"status": {"$in": sorted(RUN_ENDS)}})
        except PyMongoError:
            return -1


def _await_ends(place: Place, drivers: list[subprocess.Popen[bytes]], runs: int) -> int:
    """Return how many runs have ended: all, or as many as there are when patience ends."""
    until_s = time.monotonic() + ENDING_S_MAX
    while (ended := _ended(place)) < runs and time.monotonic() < until_s:
        if all(driver.poll() is not None for driver in drivers):
            break
        time.sleep(1)
    return ended


async def _settled(place: Place, drivers: list[subprocess.Popen[bytes]]) -> Findings:
    """Let announced refunds come in, end the drivers, and return what was found in all books."""
    agent = agent_of(place)
    until_s = time.monotonic() + REFUNDS_S_MAX
    while time.monotonic() < until_s:
        spent = sum(run.budget.spent_atomic for run in await all_runs(agent.store))
        if spent == PAID_IN - place.chain.balance(PAYER.address):
            break
        await asyncio.sleep(2)
    for driver in drivers:
        driver.terminate()
    for driver in drivers:
        await asyncio.to_thread(driver.wait)
    notes = read_journals(place.folder)
    found = await check(
        agent,
        notes,
        place.chain,
        PAYER.address,
        PAID_IN,
        jobs=place.folder / "vendors.db",
        url=place.servers.url,
        database=DATABASE,
    )
    await agent.store.close()
    await agent.artifacts.close()
    return found


def _driver_troubles(place: Place, drivers: list[subprocess.Popen[bytes]]) -> list[str]:
    """Return a line for each process that did not end well, and for each bug that a tick met."""
    found = [
        f"process {number} ended with {driver.returncode}" for number, driver in enumerate(drivers) if driver.returncode
    ]
    for log in sorted(place.folder.glob("driver-*.log")):
        said = log.read_text(errors="replace")
        found += [f"{log.stem}: {line}" for line in said.splitlines() if "a bug in" in line or "internal" in line]
        if found:
            print(said[-3_000:])
    return found


def _figures(
    words: argparse.Namespace, seed: int, chaos: Chaos, ended: int, findings: Findings, troubles: list[str]
) -> dict[str, Any]:
    return {
        "seed": seed,
        "minutes": words.minutes,
        "processes": words.processes,
        "runs": words.runs,
        "ended": ended,
        "ended_at_last_kill": chaos.ended_at_last_kill,
        "kills": chaos.kills,
        "failovers": len(chaos.elections) - 1,
        "longest_without_primary_s": round(chaos.longest_without_primary_s, 1),
        "acknowledged_writes": findings.acknowledged,
        "lost_writes": len(findings.lost),
        "unanswered_saves": len(findings.unanswered),
        "cancelled": sum(count for (status, _), count in findings.ends.items() if status == "cancelled"),
        "payments": findings.payments,
        "files": findings.files,
        "double_payments": findings.double_payments,
        "lost_payments": findings.lost_payments,
        "overspend": findings.overspend,
        "broken_invariants": len(troubles),
    }


def _show(figures: dict[str, Any], findings: Findings, troubles: list[str]) -> None:
    table = Table("what", "figure", title="MongoDB, its primary killed again and again")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    console = Console()
    console.print(table)
    ends = Table("end", "reason", "runs", title="How the runs ended")
    for (status, reason), count in sorted(findings.ends.items(), key=str):
        ends.add_row(status, reason or "", f"{count:,}")
    console.print(ends)
    for line, count in Counter([*findings.lost, *troubles, *findings.unanswered]).most_common(30):
        console.print(f"{line}{f' ({count} times)' if count > 1 else ''}", markup=False)


if __name__ == "__main__":
    sys.exit(main())

"""The Store port between processes and event loops: what holds in one must hold in several."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agent.ports import Claim, Store
from tests.contracts.store_values import Place, a_run, stored

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAIT_S = 60


def start(verb: str, place: Place, **words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.contracts.store_process", verb, json.dumps(words | {"place": asdict(place)})],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def outputs(*processes: subprocess.Popen[str]) -> list[str]:
    """Return what the processes printed, all having ended well."""
    ended = await asyncio.gather(*[asyncio.to_thread(process.communicate, timeout=WAIT_S) for process in processes])
    for process, (_, complaint) in zip(processes, ended, strict=True):
        assert process.returncode == 0, complaint
    return [printed for printed, _ in ended]


@pytest.mark.slow
async def test_two_processes_never_hold_a_run_at_once(store: Store, place: Place, tmp_path: Path) -> None:
    run = await stored(store)
    turns = {"run_id": run.run_id, "turns": 25, "witness": str(tmp_path / "holding")}
    await outputs(start("take_turns", place, **turns), start("take_turns", place, **turns))
    assert [entry.seq for entry in await store.read_log(run.run_id)] == list(range(1, 51))


@pytest.mark.slow
async def test_two_processes_never_hold_more_than_the_cap(store: Store, place: Place) -> None:
    runs = [await stored(store) for _ in range(2)]
    printed = await outputs(*[start("hold_often", place, run_id=run.run_id, times=40, cap_atomic=50) for run in runs])
    assert sum(int(count) for count in printed) == 50


@pytest.mark.slow
async def test_what_a_killed_process_saved_is_there_and_its_run_is_claimed_again(store: Store, place: Place) -> None:
    run = await stored(store)
    child = start("save_and_wait", place, run_id=run.run_id, lease_s=2)
    with child:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "saved\n"
        child.kill()
    deadline_s = time.monotonic() + WAIT_S
    while not isinstance(claim := await store.claim(run.run_id, 60), Claim):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    assert claim.token == 2
    assert [payment.payment_id for payment in claim.run.payments] == ["pay_of_the_dead"]
    assert claim.run.log.seq == 1
    assert [entry.seq for entry in await store.read_log(run.run_id)] == [1]


def test_one_store_serves_several_loops_in_turn(place: Place) -> None:
    store = place.open()
    run = a_run()

    async def insert_or_read(turn: int) -> None:
        if turn == 0:
            await store.insert_run(run, (), None, "")
        assert await store.read_run(run.run_id) == run

    for turn in range(3):
        asyncio.run(insert_or_read(turn))
    asyncio.run(store.close())


async def test_a_closed_store_opens_again(store: Store) -> None:
    run = await stored(store)
    await store.close()
    assert await store.read_run(run.run_id) == run

"""Which passes are used up: over restarts, between processes on one file, and no longer than they hold."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_worker.core.inference.callers import Ticket
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.session_passes import LEEWAY_S
from gpu_worker.edges.passes.used_jti_sqlite import SqliteUsedPasses

NOW_S = 1_000.0
TICKET = Ticket("j1", NOW_S + 300)

# A worker that uses up the pass of its first argument, and is killed before it can close anything.
KILLED = """
import asyncio, os, pathlib, sys
from gpu_worker.core.inference.callers import Ticket
from gpu_worker.edges.passes.used_jti_sqlite import SqliteUsedPasses

async def main():
    print(await SqliteUsedPasses(pathlib.Path(sys.argv[1])).take(Ticket("j1", 1300.0), "s1", 1000.0), flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.fixture
async def used(tmp_path: Path) -> AsyncIterator[SqliteUsedPasses]:
    passes = SqliteUsedPasses(tmp_path / "worker.db", used_max=3)
    yield passes
    await passes.close()


@pytest.mark.row(72)
async def test_a_pass_opens_one_session(used: SqliteUsedPasses) -> None:
    assert await used.take(TICKET, "s1", NOW_S)
    assert await used.take(TICKET, "s1", NOW_S)
    assert not await used.take(TICKET, "s2", NOW_S)


@pytest.mark.row(72)
async def test_a_pass_is_used_up_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "worker.db"
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(path), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await killed.communicate()
    assert (said, killed.returncode) == (b"True\n", -9)
    again = SqliteUsedPasses(path)
    assert not await again.take(TICKET, "s2", NOW_S)
    await again.close()


async def test_of_many_that_show_one_pass_at_once_one_enters(used: SqliteUsedPasses, tmp_path: Path) -> None:
    beside = SqliteUsedPasses(tmp_path / "worker.db")
    takes = [each.take(TICKET, f"s{number}", NOW_S) for number in range(50) for each in (used, beside)]
    # A session has one name, and both processes know it.
    entered = [number // 2 for number, took in enumerate(await asyncio.gather(*takes)) if took]
    await beside.close()
    assert len(set(entered)) == 1


async def test_what_was_not_begun_gives_the_pass_back_and_nobody_elses(used: SqliteUsedPasses) -> None:
    await used.take(TICKET, "s1", NOW_S)
    await used.give_back(TICKET, "s2")
    assert not await used.take(TICKET, "s2", NOW_S)
    await used.give_back(TICKET, "s1")
    assert await used.take(TICKET, "s2", NOW_S)


async def test_a_pass_that_ends_while_its_request_is_read_opens_nothing_anew(used: SqliteUsedPasses) -> None:
    assert await used.take(TICKET, "s1", NOW_S)
    # It was shown while it held; the body took longer. What is remembered of it may be gone by now.
    assert not await used.take(TICKET, "s2", TICKET.exp_s + LEEWAY_S + 1)


async def test_passes_are_remembered_for_as_long_as_they_hold(used: SqliteUsedPasses) -> None:
    for number in range(3):
        assert await used.take(Ticket(f"j{number}", NOW_S), "s", NOW_S)
    with pytest.raises(InferenceError, match="in use"):
        await used.take(Ticket("j3", NOW_S), "s", NOW_S + LEEWAY_S)
    # Who was there may come again all the same.
    assert await used.take(Ticket("j2", NOW_S), "s", NOW_S + LEEWAY_S)
    assert await used.take(Ticket("j3", NOW_S + 60), "s", NOW_S + LEEWAY_S + 1)

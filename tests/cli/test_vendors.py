"""`livery vendors list`: what each vendor costs, how surely it finishes a job, and when it may be tried again."""

import asyncio
from pathlib import Path

from agent.core.model import Outcome
from agent.edges.store_sqlite import SqliteStore
from agent.ports import Claim
from tests.cli.conftest import Livery
from tests.contracts.store_values import stored


async def _count(path: Path) -> None:
    """Store that the first vendor's last job of nine failed a moment ago."""
    store = SqliteStore(path)
    claim = await store.claim((await stored(store)).run_id, 60)
    assert isinstance(claim, Claim)
    ended = [
        Outcome(vendor_id="gpu_vendor_1", gpu_type="A10", succeeded=number < 8, at=claim.now) for number in range(9)
    ]
    await store.save(claim.token, claim.run, outcomes=ended)
    await store.close()


def test_the_list_shows_what_was_learned(livery: Livery) -> None:
    assert livery("vendors", "seed").code == 0
    asyncio.run(_count(livery.home / "livery.db"))
    first, second = livery("vendors", "list", "--json").json
    known, new = first["learned"][0], second["learned"][0]
    assert (known["gpuType"], known["jobsCompleted"], known["jobsFailed"]) == ("A10", 8, 1)
    assert (known["pricePerHour"], first["pricePerHour"]) == (1.4, 1.4)
    assert known["low"] < known["mean"] < known["high"]
    assert known["restsUntil"].startswith("20")
    assert (new["jobsCompleted"], new["jobsFailed"], new["restsUntil"]) == (0, 0, None)
    # Who is known better is known more exactly.
    assert known["high"] - known["low"] < new["high"] - new["low"]

    shown = livery("vendors", "list").out
    assert f"{known['mean']:.2f} ({known['low']:.2f}-{known['high']:.2f})" in shown
    assert "8 of 9" in shown
    assert " UTC" in shown


def test_a_benchmark_that_there_is_not_is_refused(livery: Livery) -> None:
    assert livery("bench", "nothing").code == 2

"""Sixteen processes on one store: one holder of a run at a time, one payment a step, and no unit over the day's cap."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from bench.concurrent import scenes
from bench.concurrent.crowd import Crowd, Member
from bench.concurrent.place import Place
from tests.e2e.conftest import PAYER, SECRET, Street

pytestmark = pytest.mark.slow

PROCESSES = 16
# Ten minutes and, so that they disagree on the day as well, a whole day.
SKEWS_S = (600, 600, -600, -600, 86_400, -86_400)


@pytest.fixture
def place(street: Street, environment: dict[str, str], tmp_path: Path) -> Place:
    """The street's vendors and chain, and an empty store of each kind."""
    settings = AgentSettings.model_validate(
        {
            "database_url": SecretStr(environment["DATABASE_URL"]),
            "database_name": environment.get("MONGODB_DB_NAME", "livery"),
            "private_key": SecretStr(PAYER.key),
            "rpc_url": street.chain.url,
            "vendor_secrets": SecretStr(SECRET),
            "planner_mode": "stub",
            "artifact_url": SecretStr(str(tmp_path / "artifacts")),
        }
    )
    return Place(
        settings=settings,
        chain=street.chain,
        payer=PAYER.address,
        vendors_url=street.vendors_url,
        vendors_db=street.folder / "vendors.db",
    )


@pytest.fixture(scope="module")
def everybody() -> Iterator[Crowd]:
    with Crowd([0] * PROCESSES + list(SKEWS_S)) as everybody:
        yield everybody


@pytest.fixture
def crowd(everybody: Crowd) -> list[Member]:
    return everybody.members[:PROCESSES]


@pytest.fixture
def wrong_clocks(everybody: Crowd) -> list[Member]:
    return everybody.members[PROCESSES:]


def capped(place: Place, wallet_day_max: str) -> Place:
    return replace(place, settings=place.settings.model_copy(update={"wallet_day_max": Decimal(wallet_day_max)}))


@pytest.mark.row(5)
async def test_sixty_four_ticks_at_once_from_sixteen_processes_have_one_holder_and_pay_once_a_step(
    place: Place, crowd: list[Member]
) -> None:
    scene = await scenes.one_run(place, crowd, 64)
    assert scene.broken == []
    assert (scene.figures["holders_max"], scene.figures["jobs"], scene.figures["payments"]) == (1, 2, 2)
    assert scene.figures["busy"] > scene.figures["served"] + scene.figures["unavailable"]


async def test_runs_of_many_processes_share_one_day_of_the_wallet_to_the_last_payment_that_fits(
    place: Place, crowd: list[Member]
) -> None:
    scene = await scenes.day_cap(capped(place, "5.000001"), crowd, runs=32, seed=4)
    assert scene.broken == []
    assert scene.figures["overspend"] == 0
    assert min(scene.figures["paid"], scene.figures["refused"]) > 0


# Its cheque not yet signed, signed and not yet promised, promised and not yet sent, sent and not yet written down.
MOMENTS = ("before wallet.sign", "after wallet.sign", "before vendors.submit", "after vendors.submit")


@pytest.mark.row(20)
async def test_a_process_frozen_past_its_lease_wakes_to_find_its_save_refused_and_the_payment_made_once(
    place: Place, crowd: list[Member]
) -> None:
    scene = await scenes.frozen(place, crowd, MOMENTS)
    assert scene.broken == []
    assert (scene.figures["frozen"], scene.figures["frozen_refused"]) == (len(MOMENTS), len(MOMENTS))


async def test_processes_whose_clocks_are_wrong_go_by_the_clock_of_the_store(
    place: Place, wrong_clocks: list[Member]
) -> None:
    scene = await scenes.skewed(place, wrong_clocks, 24)
    assert scene.broken == []
    assert scene.figures["holders_max"] == 1
    shared = await scenes.day_cap(capped(place, "5.000001"), wrong_clocks, runs=12, seed=4)
    assert shared.broken == []

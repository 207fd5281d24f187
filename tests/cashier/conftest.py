from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from chain.devchain import DevAccount, DevChain
from tests.cashier.world import ScriptedFacilitator, World


@pytest.fixture
async def world(
    chain: DevChain, payer: DevAccount, seller: DevAccount, facilitator: FastAPI, tmp_path: Path
) -> AsyncIterator[World]:
    made = World(chain, payer, seller, ScriptedFacilitator(facilitator), tmp_path / "till.db")
    yield made
    for cashier in made.opened:
        await cashier.close()

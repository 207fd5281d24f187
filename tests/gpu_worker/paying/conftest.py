from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from chain.devchain import DevAccount, DevChain
from tests.cashier.world import ScriptedFacilitator
from tests.gpu_worker.paying.world import Selling


@pytest.fixture
async def world(
    chain: DevChain, payer: DevAccount, seller: DevAccount, facilitator: FastAPI, tmp_path: Path
) -> AsyncIterator[Selling]:
    made = Selling(chain, payer, seller, ScriptedFacilitator(facilitator), tmp_path / "worker.db")
    yield made
    for cashier in made.opened:
        await cashier.close()

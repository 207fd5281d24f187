from pathlib import Path

import pytest

from chain.devchain import DevAccount, DevChain
from tests.fixtures.world import Hosts
from tests.gpu_worker.world import Place


@pytest.fixture
def place(tmp_path: Path, chain: DevChain, seller: DevAccount, payer: DevAccount, hosts: Hosts) -> Place:
    """A machine on which a worker may live, and be paid."""
    return Place(tmp_path, chain, seller, payer, hosts)

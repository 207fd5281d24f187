"""The spine: a goal and a budget become a paid, finished job, on a real chain."""

import pytest

from tests.fixtures.world import World


@pytest.mark.row(15)
async def test_a_run_is_paid_once_and_completes(world: World) -> None:
    before = world.balances()
    run_id = await world.start()
    ended = await world.until_ended(run_id)
    run = ended.run
    assert run.status == "completed", world.messages
    assert [payment.status for payment in run.payments] == ["completed"]
    after = world.balances()
    assert before["payer"] - after["payer"] == 1_400_000 == run.budget.spent_atomic
    assert after["gpu_vendor_1"] - before["gpu_vendor_1"] == 1_400_000

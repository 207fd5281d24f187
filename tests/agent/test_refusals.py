"""What a vendor asks and does wrong: a recorded refusal or a wait, nothing lost, nothing paid."""

from typing import Any

import httpx
import pytest

from agent.core.errors import NoSigner, WalletError
from agent.edges.wallet_evm import EvmWallet, account_from_key
from tests.fixtures.world import World, replace_agent

SOMEBODY = "0x" + "ab" * 20

# What the first vendor's 402 asks against the word of its quote and its registration, and the reason recorded.
LIES = {
    "price_mismatch": {"price_factor": "1.0101"},
    "wrong_asset": {"asset": SOMEBODY},
    "wrong_network": {"network": "eip155:8453"},
    "wrong_pay_to": {"pay_to": SOMEBODY},
}


async def only_first(world: World) -> None:
    for vendor in world.vendors[1:]:
        await world.store.remove_vendor(vendor.vendor_id)


@pytest.mark.row(19)
@pytest.mark.parametrize("reason", LIES)
async def test_a_402_that_lies_is_refused_and_nothing_is_paid(world: World, reason: str) -> None:
    await only_first(world)
    world.script("gpu_vendor_1", **decimals(LIES[reason]))
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert world.messages == ["Submit job failed", "Run aborted"]
    assert (run.status, run.reason) == ("failed", "no_vendor_left")
    assert run.jobs[0].status == "failed"
    assert str(run.jobs[0].error_message).startswith(f"{reason}: ")
    assert run.payments == ()
    assert run.budget.available_atomic == run.budget.total_atomic
    assert any(line.startswith(reason) for line in await world.lines(run_id, "error"))
    assert [request for request in world.hosts.seen if "payment-signature" in request.headers] == []
    await world.check_books()


@pytest.mark.parametrize("factor", ["1.01", "0.5"])
async def test_a_402_at_most_one_percent_above_the_quote_is_paid_as_it_asks(world: World, factor: str) -> None:
    world.script("gpu_vendor_1", **decimals({"price_factor": factor}))
    run = await world.until_ended(await world.start())
    assert run.status == "completed"
    assert run.payments[0].amount_atomic == int(1_400_000 * float(factor))
    await world.check_books()


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"answer_html": True},
        {"errors": 1_000},
        {"answer_html": True, "routes": ("/submit-job",)},
        {"errors": 1_000, "routes": ("/submit-job",)},
        {"header_bytes": 100_000, "routes": ("/quote",)},
        {"header_bytes": 100_000, "routes": ("/submit-job",)},
    ],
    ids=lambda faults: "-".join(faults),
)
async def test_a_vendor_that_answers_nonsense_is_passed_over(world: World, faults: dict[str, Any]) -> None:
    world.script("gpu_vendor_1", **faults)
    run = await world.until(await world.start(), lambda run: bool(run.payments))
    assert [(job.vendor_id, job.status) for job in run.jobs] == [
        ("gpu_vendor_1", "failed"),
        ("gpu_vendor_2", "submitted"),
    ]
    assert run.budget.spent_atomic == 1_800_000
    await world.check_books()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/quote", "/submit-job"], ids=["before the quote", "before the challenge"])
async def test_a_vendor_that_hangs_is_given_its_time_and_passed_over(world: World, path: str) -> None:
    def hang(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == path and request.headers["x-vendor-id"] == "gpu_vendor_1":
            raise httpx.ReadTimeout("no answer", request=request)
        return response

    world.hosts.meddle = hang
    run = await world.until_ended(await world.start())
    assert [(job.vendor_id, job.status) for job in run.jobs] == [
        ("gpu_vendor_1", "failed"),
        ("gpu_vendor_2", "completed"),
    ]
    # It was reached, so it was not asked again at once.
    assert len([call for call in world.hosts.calls(path) if call.headers["x-vendor-id"] == "gpu_vendor_1"]) == 1
    await world.check_books()


# Statuses that cannot be of this job, or of any.
NO_STATUSES: list[dict[str, Any]] = [
    {"vendorJobId": "vgpu_of_another"},
    {"progress": 7},
    {"progress": -1},
    {"costSoFar": -1},
    {"costSoFar": 10**30},
    {"status": "exploded"},
    {"cursor": ""},
    {"logs": "not a list"},
    {"logs": [f"line {number}" for number in range(1_001)]},
    {"refund": {"amount": "all of it"}},
]


async def test_a_status_that_cannot_be_is_a_missed_poll_and_not_an_end(world: World) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    for number, change in enumerate(NO_STATUSES, start=1):
        world.hosts.change_json("/job-status", change)
        ticked = await world.tick(run_id)
        assert ticked.message == "Job still running", change
        # A poll that moved the mock's job and failed us: nothing of it was kept.
        assert (ticked.run.jobs[0].polls, ticked.run.jobs[0].progress) == ("x" * number, 0), change
    world.hosts.meddle = None
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_a_vendor_that_lies_about_its_progress_is_not_believed_backwards(world: World) -> None:
    world.script(lie_about_progress=True)
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    seen = [saved.jobs[0].progress for saved in world.store.saved if saved.jobs]
    assert seen == sorted(seen)
    await world.check_books()


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        ({"payment_atomic_max": 1_399_999}, "over_payment_cap"),
        ({"run_atomic_max": 1_399_999}, "over_run_cap"),
        ({"vendor_day_atomic_max": 1_399_999}, "over_vendor_cap"),
        ({"wallet_day_atomic_max": 1_399_999}, "over_day_cap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_price_above_a_cap_is_refused_before_anything_is_signed(
    world: World, caps: dict[str, int], reason: str
) -> None:
    await only_first(world)
    world.cap(**caps)
    run = await world.until_ended(await world.start())
    assert run.status == "failed"
    assert str(run.jobs[0].error_message).startswith(f"{reason}: ")
    assert run.payments == ()
    await world.check_books()


@pytest.mark.slow
@pytest.mark.row(18)
async def test_the_days_caps_are_one_for_all_runs_of_the_wallet(world: World) -> None:
    world.cap(vendor_day_atomic_max=2_000_000, wallet_day_atomic_max=3_500_000)
    first, second, third = [await world.start() for _ in range(3)]
    one = await world.until_ended(first)
    assert one.jobs[0].vendor_id == "gpu_vendor_1"
    # 1.4 of the vendor's 2.0 are gone, so the second run takes the second vendor: 3.2 of the wallet's 3.5.
    two = await world.until_ended(second)
    assert str(two.jobs[0].error_message).startswith("over_vendor_cap")
    assert (two.status, two.jobs[1].vendor_id) == ("completed", "gpu_vendor_2")
    three = await world.until_ended(third)
    assert three.status == "failed"
    assert [str(job.error_message).partition(":")[0] for job in three.jobs] == ["over_day_cap"] * 3
    await world.check_books()


async def test_a_price_per_hour_above_the_owners_maximum_is_not_paid(world: World) -> None:
    run = await world.until_ended(await world.start(maxPricePerHour=decimals({"cap": "1.3"})["cap"]))
    assert (run.status, run.reason) == ("failed", "no_vendor_left")
    assert world.hosts.calls("/quote") == []
    await world.check_books()


async def test_a_quote_above_the_budget_is_refused(world: World) -> None:
    await only_first(world)
    world.hosts.change_json("/quote", {"priceEstimate": 5.01})
    run = await world.until_ended(await world.start())
    assert world.messages[0] == "Quote exceeds budget"
    assert str(run.jobs[0].error_message).startswith("over_budget")
    assert world.hosts.calls("/submit-job") == []
    await world.check_books()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"currency": "DOGE"}, "unknown_quote_currency"),
        ({"priceEstimate": 0}, "bad_quote"),
        ({"priceEstimate": -1}, "bad_quote"),
        ({"priceEstimate": 10**40}, "bad_quote"),
        ({"priceEstimate": "1.4"}, "bad_challenge"),
    ],
    ids=str,
)
async def test_a_quote_that_cannot_be_is_refused(world: World, change: dict[str, Any], reason: str) -> None:
    await only_first(world)
    world.hosts.change_json("/quote", change)
    run = await world.until_ended(await world.start())
    assert str(run.jobs[0].error_message).startswith(f"{reason}: ")
    assert world.hosts.calls("/submit-job") == []
    await world.check_books()


@pytest.mark.row(24)
async def test_without_a_key_nothing_is_reserved_and_nothing_is_sent(world: World) -> None:
    signer = world.agent.wallet
    replace_agent(world, wallet=None)
    run_id = await world.start()
    for _ in range(2):
        with pytest.raises(NoSigner):
            await world.tick(run_id)
    run = await world.store.read_run(run_id)
    assert (run.status, run.jobs, run.payments) == ("running", (), ())
    assert run.budget.available_atomic == run.budget.total_atomic
    assert world.hosts.calls("/submit-job") == []
    # The lease was given back: with a key the run goes on at once.
    replace_agent(world, wallet=signer)
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_a_signer_that_fails_leaves_nothing_reserved_and_the_next_tick_goes_on(world: World) -> None:
    signer = world.agent.wallet
    account = account_from_key(world.payer.key)

    class Remote:
        """A remote signer that has lost its connection."""

        address = account.address

        def sign_typed_data(self, **_: Any) -> None:
            raise OSError("the signer at https://user:hunter2@signer is away")

    replace_agent(world, wallet=EvmWallet(Remote))  # type: ignore[arg-type]
    run_id = await world.start()
    with pytest.raises(WalletError) as failed:
        await world.tick(run_id)
    assert "hunter2" not in str(failed.value)
    run = await world.store.read_run(run_id)
    assert run.budget.reserved_atomic == 0
    assert run.payments == ()
    replace_agent(world, wallet=signer)
    ended = await world.until_ended(run_id)
    assert (ended.status, len(ended.jobs)) == ("completed", 1)
    await world.check_books()


def decimals(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with text that is a number as the number it is."""
    from decimal import Decimal, InvalidOperation

    def read(value: Any) -> Any:
        try:
            return value if str(value).startswith("0x") else Decimal(value)
        except InvalidOperation:
            return value

    return {name: read(value) for name, value in values.items()}

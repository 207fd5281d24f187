"""The vendor API without money: who may ask, what is quoted, what bad input gets."""

from decimal import Decimal

import pytest

from tests.vendor_mock.conftest import Open
from tests.vendor_mock.world import Buyer, code, read
from vendor_mock.catalogue import Gpu, VendorPlan
from vendor_mock.faults import Faults
from wire.money import BASE_SEPOLIA_USDC
from wire.vendor import OffersReply, Quote

QUOTE = {"jobType": "fine_tune", "gpuType": "A10", "maxHours": 2, "jobMetadata": {"goal": "x"}}


async def test_the_default_vendors_sell_what_they_are_known_for(vendors: Open, payer):
    client = vendors()
    assert read(await client.get("/health")) == {
        "status": "ok",
        "vendors": ["gpu_vendor_1", "gpu_vendor_2", "gpu_vendor_3"],
    }
    pay_to = set()
    for number, name, price in ((1, "FastGPU", "1.4"), (2, "ReliableGPU", "1.8"), (3, "SteadyGPU", "2.2")):
        reply = OffersReply.from_json((await Buyer(client, payer, number).get("/offers")).content)
        assert (reply.vendor_id, reply.name) == (f"gpu_vendor_{number}", name)
        assert [offer.gpu_type for offer in reply.offers] == ["A10", "A100"]
        assert {offer.price_per_hour for offer in reply.offers} == {Decimal(price)}
        assert {(offer.currency, offer.asset, offer.network) for offer in reply.offers} == {
            ("USDC", BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network)
        }
        assert [(offer.vram_gb, offer.available) for offer in reply.offers] == [(24, 64), (80, 64)]
        pay_to |= {offer.pay_to for offer in reply.offers}
    assert len(pay_to) == 3


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("vendor", "hours", "price"), [(1, "1", "1.4"), (2, "2.5", "4.5"), (3, "0.01", "0.022"), (1, "0.0000001", "1E-6")]
)
async def test_a_quote_is_the_rate_times_the_hours(vendors: Open, payer, vendor, hours, price):
    quote = Quote.model_validate(await Buyer(vendors(), payer, vendor).quote(hours))

    assert quote.price_estimate == Decimal(price)
    assert quote.currency == "USDC"
    assert quote.eta_minutes == Decimal(hours) * 60
    assert quote.vendor_job_template_id.startswith("tmpl_A10_")


async def test_money_in_a_body_is_a_plain_decimal_number(buyer: Buyer):
    reply = await buyer.post("/quote", {**QUOTE, "maxHours": Decimal("0.0000001")})

    assert b'"priceEstimate":0.000001,' in reply.content


@pytest.mark.row(35)
async def test_the_secret_of_one_vendor_opens_no_other(vendors: Open, payer):
    client = vendors()
    for path in ("/offers", "/jobs", "/job-status", "/artifacts/x"):
        assert code(await Buyer(client, payer, 2, "secret-1").get(path)) == "bad_vendor_secret"
    for path in ("/quote", "/submit-job", "/cancel-job"):
        assert code(await Buyer(client, payer, 2, "secret-1").post(path, QUOTE)) == "bad_vendor_secret"
    assert (await Buyer(client, payer, 1, "secret-1").get("/offers")).status_code == 200


@pytest.mark.parametrize("sent", [{}, {"authorization": "secret-1"}, {"authorization": "Bearer \u00e9"}])
async def test_without_the_bearer_secret_there_is_401(vendors: Open, sent):
    headers = [(name.encode(), value.encode()) for name, value in sent.items()]
    reply = await vendors().post("/quote", headers=headers)

    assert (reply.status_code, code(reply), reply.headers["www-authenticate"]) == (401, "bad_vendor_secret", "Bearer")


async def test_a_vendor_that_is_not_here_is_404(vendors: Open, payer):
    assert code(await Buyer(vendors(), payer, 9).get("/offers")) == "unknown_vendor"


async def test_an_absent_vendor_id_means_the_first_vendor(vendors: Open):
    reply = await vendors().get("/offers", headers={"authorization": "Bearer secret-1"})

    assert read(reply)["vendorId"] == "gpu_vendor_1"


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("body", "expected", "named"),
    [
        (b"{", "malformed_json", "Expecting"),
        (b'{"maxHours": NaN}', "malformed_json", "NaN"),
        (b"", "invalid_field", "body"),
        (b"[]", "invalid_field", "body"),
        ({}, "invalid_field", "jobType"),
        ({**QUOTE, "maxHours": "2"}, "invalid_field", "maxHours"),
        ({**QUOTE, "maxHours": True}, "invalid_field", "maxHours"),
        ({**QUOTE, "maxHours": 0}, "invalid_field", "maxHours"),
        ({**QUOTE, "maxHours": -1}, "invalid_field", "maxHours"),
        ({**QUOTE, "maxHours": 10_001}, "invalid_field", "maxHours"),
        ({**QUOTE, "gpuType": ""}, "invalid_field", "gpuType"),
        ({**QUOTE, "gpuType": "H100"}, "unsupported_gpu", "H100"),
        (b'{"jobType": "' + b"x" * 300_000 + b'"}', "body_too_large", "262144"),
    ],
)
async def test_a_quote_that_cannot_be_given_says_what_is_wrong(buyer: Buyer, body, expected, named):
    reply = await buyer.post("/quote", body)

    assert code(reply) == expected
    assert named in read(reply)["detail"]


@pytest.mark.row(33)
@pytest.mark.parametrize(
    ("path", "params", "expected"),
    [
        ("/job-status", {"vendorJobId": "zz"}, "job_not_found"),
        ("/job-status", {}, "invalid_field"),
        ("/job-status", {"vendorJobId": ""}, "invalid_field"),
        ("/job-status", {"vendorJobId": "zz", "since": "yesterday"}, "invalid_field"),
        ("/job-status", {"vendorJobId": "zz", "since": "line-\u0661"}, "invalid_field"),
        ("/job-status", {"vendorJobId": "zz", "since": "line-" + "9" * 10}, "invalid_field"),
        ("/jobs", {"key": ""}, "invalid_field"),
        ("/jobs", {"after": ""}, "invalid_field"),
        ("/artifacts/zz", {}, "job_not_found"),
        ("/artifacts/zz/model.json", {"signature": "x"}, "not_found"),
        ("/nothing", {}, "not_found"),
        ("/quote", {}, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem_document(buyer: Buyer, path, params, expected):
    assert code(await buyer.get(path, **params)) == expected


async def test_another_method_is_told_which_is_allowed(buyer: Buyer):
    assert (await buyer.get("/quote")).headers["allow"] == "POST"


async def test_a_database_that_cannot_be_used_is_503(vendors: Open, payer, tmp_path):
    reply = await Buyer(vendors(database=tmp_path), payer).get("/offers")

    assert (reply.status_code, code(reply), reply.headers["retry-after"]) == (503, "store_unavailable", "1")


async def test_a_cancellation_of_nothing_is_404(buyer: Buyer):
    assert code(await buyer.post("/cancel-job", {"vendorJobId": "zz"})) == "job_not_found"
    assert code(await buyer.post("/cancel-job", {})) == "invalid_field"


async def test_no_job_is_no_error(buyer: Buyer):
    assert read(await buyer.get("/jobs", key="never-heard-of-it")) == {"jobs": []}


@pytest.mark.row(32)
async def test_an_unpaid_submission_is_402_with_the_quoted_price(buyer: Buyer):
    order = await buyer.order("2")
    challenge = await buyer.challenge(order)

    (asked,) = challenge.accepts
    offers = read(await buyer.get("/offers"))["offers"]
    assert challenge.x402_version == 2
    assert (asked.scheme, asked.amount, asked.asset) == ("exact", "2800000", BASE_SEPOLIA_USDC.address)
    assert (asked.network, asked.pay_to) == (offers[0]["network"], offers[0]["payTo"])
    assert asked.extra == {"name": "USDC", "version": "2", "paymentFlow": "upfront"}
    assert challenge.resource.url == "http://vendors.example/submit-job"
    assert challenge.resource.description == "A10 for 2 h"
    assert code(await buyer.post("/submit-job", order)) == "payment_required"


@pytest.mark.row(40)
async def test_a_made_up_transaction_id_pays_nothing(buyer: Buyer):
    order = await buyer.order()
    faked = order[:-1] + b',"x402TxId":"abc"}'

    assert code(await buyer.post("/submit-job", faked, **{"x402-tx-id": "abc"})) == "payment_required"


async def test_a_quote_is_good_at_its_own_vendor_only(vendors: Open, payer):
    client = vendors()
    order = await Buyer(client, payer, 1).order()

    assert code(await Buyer(client, payer, 2).post("/submit-job", order)) == "template_not_found"
    assert code(await Buyer(client, payer, 1).post("/submit-job", {})) == "invalid_field"


async def test_quotes_survive_a_restart(vendors: Open, payer):
    order = await Buyer(vendors(), payer).order("2")

    assert (await Buyer(vendors(), payer).challenge(order)).accepts[0].amount == "2800000"


PLAIN = VendorPlan(vendor_id="gpu_vendor_1", name="Only", gpus=(Gpu(gpu_type="A10", count=1),))


def _with(**faults) -> tuple[VendorPlan, ...]:
    return (PLAIN.model_copy(update={"faults": Faults(**faults)}),)


async def test_scripted_errors_come_first_and_end(vendors: Open, payer):
    client = vendors(plans=_with(errors=2, routes=("/quote",)))
    buyer = Buyer(client, payer)

    assert (await buyer.get("/offers")).status_code == 200
    assert [code(await buyer.post("/quote", QUOTE)) for _ in range(2)] == ["vendor_fault"] * 2
    assert (await buyer.post("/quote", QUOTE)).status_code == 200
    client.app.state.shop.faults.script("gpu_vendor_1", Faults(errors=1))
    assert code(await buyer.get("/offers")) == "vendor_fault"
    assert (await client.get("/health")).status_code == 200


async def test_a_vendor_can_answer_html(vendors: Open, payer):
    reply = await Buyer(vendors(plans=_with(answer_html=True)), payer).post("/quote", QUOTE)

    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_a_vendor_can_send_an_enormous_header(vendors: Open, payer):
    reply = await Buyer(vendors(plans=_with(header_bytes=65_536)), payer).get("/offers")

    assert len(reply.headers["x-padding"]) == 65_536


async def test_a_vendor_can_be_slow(vendors: Open, payer):
    import time

    started_s = time.monotonic()
    await Buyer(vendors(plans=_with(slow_seconds=Decimal("0.2"))), payer).get("/offers")

    assert time.monotonic() - started_s >= 0.2


OTHER = "0x" + "11" * 20


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ({"price_factor": Decimal("1.5")}, {"amount": "2100000"}),
        ({"amount_atomic": 1}, {"amount": "1"}),
        ({"pay_to": OTHER}, {"payTo": OTHER}),
        ({"asset": OTHER}, {"asset": OTHER}),
        ({"network": "eip155:8453"}, {"network": "eip155:8453"}),
    ],
)
async def test_a_vendor_can_ask_for_something_else_than_it_quoted(vendors: Open, payer, faults, asked):
    buyer = Buyer(vendors(plans=_with(**faults)), payer)
    order = await buyer.order()

    assert read(await buyer.post("/quote", QUOTE))["priceEstimate"] == Decimal("2.8")
    challenge = await buyer.challenge(order)
    assert challenge.accepts[0].document().items() >= asked.items()

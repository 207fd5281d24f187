"""x402 v1's objects, with the official package's as the oracle, and their translation to and from version 2."""

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError
from x402.mechanisms.evm.v1.constants import V1_NETWORK_CHAIN_IDS
from x402.schemas import v1 as official
from x402.schemas.responses import SettleResponse as OfficialSettle

from tests.wire.test_x402 import PAYEE, PAYER, TOKEN, payment, requirements
from wire.x402 import (
    HeaderError,
    PaymentPayload,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
    decode_header,
    encode_header,
)
from wire.x402_v1 import (
    NETWORK_NAMES,
    PaymentPayloadV1,
    PaymentRequiredV1,
    SettleResponseV1,
    network_id,
    payment_v1,
    required_v2,
    requirements_v1,
    settlement_v1,
)

RESOURCE = ResourceInfo(url="http://vendor/submit-job", description="a job", mime_type="application/json")


def offer(**changes: Any) -> dict[str, Any]:
    return {
        "scheme": "exact",
        "network": "base-sepolia",
        "maxAmountRequired": "1400000",
        "resource": "http://vendor/submit-job",
        "description": "a job",
        "mimeType": "application/json",
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "asset": TOKEN,
        "extra": {"name": "USDC", "version": "2"},
    } | changes


def required(*offers: dict[str, Any]) -> PaymentRequiredV1:
    return PaymentRequiredV1.model_validate({"x402Version": 1, "error": "pay first", "accepts": offers})


def test_networks_have_the_names_that_the_official_package_gives_them():
    for network, name in NETWORK_NAMES.items():
        assert V1_NETWORK_CHAIN_IDS[name] == int(network.removeprefix("eip155:"))
        assert network_id(name) == network
    assert network_id("moon") == "moon"


def test_an_offer_of_version_2_is_the_official_one_of_version_1():
    ours = PaymentRequiredV1(
        error="pay first", accepts=(requirements_v1(PaymentRequirements(**requirements()), RESOURCE),)
    )

    read = official.PaymentRequiredV1.model_validate_json(ours.to_json())

    assert ours.document() == {"x402Version": 1, "error": "pay first", "accepts": (offer(),)}
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == json.loads(ours.to_json())


def test_an_offer_without_words_is_an_offer():
    bare = requirements_v1(PaymentRequirements(**requirements(network="eip155:1")), ResourceInfo(url="http://v/"))

    assert (bare.network, bare.description, bare.mime_type) == ("eip155:1", "", "")


def test_a_402_of_version_1_says_the_same_in_version_2():
    said = required_v2(required(offer(), offer(network="moon"), offer(network="base", extra=None)))

    assert (said.x402_version, said.error, said.resource) == (2, "pay first", ResourceInfo(url=RESOURCE.url))
    assert [one.document() for one in said.accepts] == [requirements(), requirements(network="eip155:8453", extra={})]


def test_a_402_whose_networks_nobody_knows_offers_nothing():
    assert required_v2(required(offer(network="moon"))).accepts == ()
    assert required_v2(required()).resource is None


@pytest.mark.parametrize(
    "change",
    [{"maxAmountRequired": "-1"}, {"maxAmountRequired": 5}, {"maxTimeoutSeconds": 0}, {"payTo": None}],
)
def test_an_offer_that_is_none_is_refused(change):
    with pytest.raises(ValidationError):
        required(offer(**change))


def test_a_payment_is_read_by_the_official_package_and_reads_its_own():
    ours = payment_v1(PaymentPayload.model_validate(payment()))
    text = encode_header(ours)

    theirs = official.PaymentPayloadV1.model_validate_json(base64.b64decode(text))

    assert (theirs.scheme, theirs.network, theirs.payload) == ("exact", "base-sepolia", payment()["payload"])
    again = base64.b64encode(theirs.model_dump_json(by_alias=True).encode()).decode()
    assert decode_header(PaymentPayloadV1, again) == ours


def test_a_payment_of_version_2_is_none_of_version_1():
    with pytest.raises(HeaderError, match="x402Version"):
        decode_header(PaymentPayloadV1, base64.b64encode(json.dumps(payment()).encode()).decode())


@pytest.mark.parametrize("success", [True, False])
def test_a_settlement_is_told_with_the_networks_name(success):
    settled = SettleResponse(
        success=success, error_reason=None if success else "no", payer=PAYER, transaction="0xee", network="eip155:84532"
    )

    told = settlement_v1(settled)

    assert told.network == "base-sepolia"
    read = OfficialSettle.model_validate_json(told.to_json())
    assert (read.success, read.error_reason, read.payer, read.transaction) == (
        success,
        settled.error_reason,
        PAYER,
        "0xee",
    )
    assert decode_header(SettleResponseV1, encode_header(told)) == told
    assert settlement_v1(settled.model_copy(update={"network": "moon"})).network == "moon"

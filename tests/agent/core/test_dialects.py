"""Every dialect and every quirk, on answers as they were recorded; whatever bytes come are read or garbled."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.cheque import authorization_for, payment_header, payment_nonce
from agent.core.dialects import BODY_BYTES_MAX, DIALECTS, Challenge, read_challenges, settled_in
from agent.core.errors import VendorGarbled, VendorUnpayable
from agent.core.policy import Refusal, choose_challenge, choose_requirements
from tests.agent.core.values import PAY_TO, PAYER, PRICE, T0, USDC, a_vendor, policy, requirements
from wire.x402 import PaymentRequirements, SettleResponse, declare_payment_identifier, encode_header

ASKED = requirements()
OFFER = ASKED.document()
V2 = {"x402Version": 2, "resource": {"url": "http://v/submit-job"}, "accepts": [OFFER]}
# As api.snack.money answered (x402-foundation/x402#810), on our network and to our payee.
OFFER_V1: dict[str, Any] = {
    "scheme": "exact",
    "network": "base-sepolia",
    "maxAmountRequired": "1400000",
    "resource": "https://snack.money",
    "description": "Send USDC payment to an X (Twitter) user by username",
    "mimeType": "application/json",
    "payTo": PAY_TO,
    "maxTimeoutSeconds": 300,
    "asset": USDC.address,
    "outputSchema": {"input": {"type": "http", "method": "POST", "discoverable": True}},
    "extra": {"name": "USDC", "version": "2"},
}
V1 = {"x402Version": 1, "error": "X-PAYMENT header is required", "accepts": [OFFER_V1]}
SIGNATURE = "0x" + "5a" * 65
IDENTIFIER = "run_1-payment-1-of-many"


def text(said: Any) -> bytes:
    return json.dumps(said).encode()


def b64(said: Any) -> str:
    return base64.b64encode(text(said)).decode()


def read_challenge(headers: dict[str, str], body: bytes) -> Challenge:
    """Return what is asked first."""
    return read_challenges(headers, body)[0]


def by_header(said: Any) -> Challenge:
    return read_challenge({"payment-required": b64(said)}, b"{}")


def by_body(said: Any) -> Challenge:
    return read_challenge({}, text(said))


def paid(challenge: Challenge) -> dict[str, Any]:
    """Return what the payment for `challenge` says."""
    chosen = choose_requirements(policy(), a_vendor(), PRICE, challenge.required)
    assert isinstance(chosen, PaymentRequirements), chosen
    authorization = authorization_for(chosen, PAYER, payment_nonce("run_1", 1), T0)
    header = payment_header(challenge, chosen, authorization, SIGNATURE, IDENTIFIER)
    sent: dict[str, Any] = json.loads(base64.b64decode(header, validate=True))
    return sent


def test_version_2_is_read_from_its_header_and_paid_with_the_sellers_own_words() -> None:
    challenge = by_header({**V2, "extensions": declare_payment_identifier(required=True)})
    assert (challenge.dialect, challenge.required.accepts) == ("x402-v2", (ASKED,))
    sent = paid(challenge)
    assert (sent["x402Version"], sent["accepted"], sent["resource"]) == (2, OFFER, V2["resource"])
    assert sent["extensions"]["payment-identifier"]["info"]["id"] == IDENTIFIER


@pytest.mark.row(15)
def test_version_1_is_read_from_its_body_and_paid_with_the_same_cheque() -> None:
    challenge = by_body(V1)
    assert challenge.dialect == "x402-v1"
    assert challenge.required.accepts == (ASKED,)
    sent = paid(challenge)
    assert {**sent, "payload": None} == {
        "x402Version": 1,
        "scheme": "exact",
        "network": "base-sepolia",
        "payload": None,
    }
    assert sent["payload"] == paid(by_header(V2))["payload"]


def test_where_both_are_offered_version_2_is_spoken() -> None:
    assert read_challenge({"payment-required": b64(V2)}, text(V1)).dialect == "x402-v2"
    assert read_challenge({"x-payment-required": b64(V1)}, text(V2)).dialect == "x402-v2"


@pytest.mark.parametrize("header", ["%%%", "e30=", "A" * 20_000, b64({"x402Version": 2}), b64({**V2, "accepts": [7]})])
def test_where_version_2_cannot_be_read_version_1_is_spoken(header: str) -> None:
    assert read_challenge({"payment-required": header}, text(V1)).dialect == "x402-v1"


HALF = {**OFFER, "amount": "700000"}
HALF_V1 = {**OFFER_V1, "maxAmountRequired": "700000"}
FOREIGN = {**OFFER, "network": "eip155:8453"}
FOREIGN_V1 = {**OFFER_V1, "network": "base"}


@pytest.mark.parametrize(
    ("v2", "v1", "dialect", "said"),
    [
        ([], [OFFER_V1], "x402-v1", OFFER_V1),
        ([FOREIGN], [FOREIGN_V1, OFFER_V1], "x402-v1", OFFER_V1),
        ([{**OFFER, "payTo": PAYER}], [OFFER_V1], "x402-v1", OFFER_V1),
        ([OFFER], [], "x402-v2", OFFER),
        ([FOREIGN, OFFER], [OFFER_V1], "x402-v2", OFFER),
        ([OFFER], [{**OFFER_V1, "payTo": PAYER}], "x402-v2", OFFER),
        ([OFFER], [HALF_V1], "x402-v2", OFFER),
        ([HALF], [OFFER_V1], "x402-v2", HALF),
    ],
)
def test_a_402_is_paid_in_the_first_version_that_policy_allows_whatever_the_other_asks(
    v2: Any, v1: Any, dialect: str, said: dict[str, Any]
) -> None:
    heard = ({**V2, "accepts": v2}, {**V1, "accepts": v1})
    for header, body in (heard, heard[::-1]):
        challenges = read_challenges({"x-payment-required": b64(header)}, text(body))
        assert [challenge.dialect for challenge in challenges] == ["x402-v2", "x402-v1"]
        choice = choose_challenge(policy(), a_vendor(), PRICE, challenges)
        assert not isinstance(choice, Refusal)
        challenge, chosen = choice
        assert (challenge.dialect, challenge.words_for(chosen)) == (dialect, said)


def test_where_no_version_can_be_paid_the_refusal_of_the_first_is_said() -> None:
    challenges = read_challenges({"payment-required": b64({**V2, "accepts": [FOREIGN]})}, text({**V1, "accepts": []}))
    refused = choose_challenge(policy(), a_vendor(), PRICE, challenges)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.detail[:8]) == ("wrong_network", "x402-v2:")


def test_the_words_said_back_are_those_of_the_offer_that_is_paid() -> None:
    noted = {**OFFER, "note": "ours"}
    assert paid(by_header({**V2, "accepts": [FOREIGN, noted]}))["accepted"] == noted
    # Version 1 says the network alone, and each in its own words.
    by_id = {**OFFER_V1, "network": USDC.network}
    assert paid(by_body({**V1, "accepts": [FOREIGN_V1, by_id]}))["network"] == USDC.network


def test_version_1_on_a_network_unknown_here_offers_nothing_to_pay() -> None:
    challenge = by_body({**V1, "accepts": [{**OFFER_V1, "network": "solana"}]})
    assert choose_requirements(policy(), a_vendor(), PRICE, challenge.required) == Refusal(
        "unsupported_scheme", "no way to pay is `exact` by EIP-3009"
    )
    both = by_body({**V1, "accepts": [{**OFFER_V1, "network": "solana"}, OFFER_V1]})
    assert both.said == (OFFER_V1,)
    assert paid(both)["network"] == "base-sepolia"


# Quirks. Each example is what the named place recorded, in the parts that matter.


def test_offers_in_the_body_are_read_where_the_header_is_missing() -> None:
    """x402-foundation/x402#2207: PaymentRequired in the body only."""
    assert by_body(V2).required == by_header(V2).required
    assert paid(by_body(V2)) == paid(by_header(V2))


@pytest.mark.parametrize("version", [V1, V2])
def test_offers_under_the_older_headers_name_are_read(version: dict[str, Any]) -> None:
    """open-wallet-standard/core#140: `x-payment-required`."""
    challenge = read_challenge({"x-payment-required": b64(version)}, b"<html>Pay me</html>")
    assert (challenge.dialect, challenge.required.accepts) == (f"x402-v{version['x402Version']}", (ASKED,))


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_base64url_without_padding_is_read(padding: int) -> None:
    """keep-starknet-strange/starknet-agentic#38: headers encoded as base64url, no padding."""
    said = {**V2, "error": "\N{FULLWIDTH QUESTION MARK}>>>???" + "x" * padding}
    plain = base64.b64encode(json.dumps(said, ensure_ascii=False).encode()).decode()
    header = plain.replace("+", "-").replace("/", "_").rstrip("=")
    assert header != plain
    assert read_challenge({"payment-required": header}, b"").required.accepts == (ASKED,)


def test_bare_json_in_the_header_is_read() -> None:
    """SlumperSan/agent-governed-vaults#279: `JSON.stringify(challenge)` as PAYMENT-REQUIRED."""
    assert read_challenge({"payment-required": " " + json.dumps(V2)}, b"").required.accepts == (ASKED,)


def test_amounts_that_are_numbers_are_read_and_said_back_as_numbers() -> None:
    """x402-foundation/x402#2760: `amount: 10000`."""
    offer = {**OFFER, "amount": 1_400_000}
    challenge = by_header({**V2, "accepts": [offer]})
    assert challenge.required.accepts == (ASKED,)
    sent = paid(challenge)
    assert sent["accepted"] == offer
    assert sent["payload"]["authorization"]["value"] == "1400000"
    v1 = by_body({**V1, "accepts": [{**OFFER_V1, "maxAmountRequired": 1_400_000}]})
    assert v1.required.accepts == (ASKED,)


@pytest.mark.parametrize("amount", [True, None, 1.4, 1_400_000.5, "1.4", "0x10", "-1", -1, "1e6", [], 10**30])
def test_what_is_no_amount_is_not_made_one(amount: Any) -> None:
    with pytest.raises(VendorGarbled, match=r"^x402-v2: PAYMENT-REQUIRED: accepts\.0\.amount: "):
        by_header({**V2, "accepts": [{**OFFER, "amount": amount}]})
    with pytest.raises(VendorGarbled, match=r"^x402-v1: the body: accepts\.0\.maxAmountRequired: "):
        by_body({**V1, "accepts": [{**OFFER_V1, "maxAmountRequired": amount}]})


def test_a_domains_version_that_is_a_number_is_read_and_said_back_as_one() -> None:
    """x402-foundation/x402#865: `"version": 1`."""
    offer = {**OFFER, "extra": {"name": "USDC", "version": 2}}
    sent = paid(by_header({**V2, "accepts": [offer]}))
    assert sent["accepted"] == offer
    other = by_header({**V2, "accepts": [{**OFFER, "extra": {"name": "USDC", "version": 1}}]})
    refused = choose_requirements(policy(), a_vendor(), PRICE, other.required)
    assert isinstance(refused, Refusal)
    assert refused.code == "wrong_domain"


def test_a_network_of_version_1_in_version_2_is_read_and_said_back() -> None:
    """SlumperSan/agent-governed-vaults#269: `x402Version: 2` with the networks `base` and `base-sepolia`."""
    offer = {**OFFER, "network": "base-sepolia"}
    challenge = by_header({**V2, "accepts": [offer]})
    assert challenge.required.accepts == (ASKED,)
    assert paid(challenge)["accepted"] == offer
    refused = choose_requirements(
        policy(), a_vendor(), PRICE, by_header({**V2, "accepts": [{**OFFER, "network": "base"}]}).required
    )
    assert isinstance(refused, Refusal)
    assert refused.code == "wrong_network"


def test_a_network_of_version_2_in_version_1_is_read_and_said_back() -> None:
    """Merit-Systems/x402scan#762: x402Version 1 with `network: "eip155:8453"`."""
    challenge = by_body({**V1, "accepts": [{**OFFER_V1, "network": "eip155:84532"}]})
    assert challenge.required.accepts == (ASKED,)
    assert paid(challenge)["network"] == "eip155:84532"


def test_members_that_nobody_knows_are_said_back_unchanged() -> None:
    """
    x402-foundation/x402#2760: `pay_to` and `price` beside `payTo` and `amount`; `@x402/core` compares them all.
    x402-foundation/x402#573: an `error` that is an object.
    """
    offer = {**OFFER, "pay_to": PAYER, "price": 0.01, "note": None, "extra": {**OFFER["extra"], "feePayer": None}}
    error = {"issues": [{"code": "invalid_union", "path": ["payload"]}], "name": "ZodError"}
    challenge = by_header({**V2, "accepts": [offer], "generatedAt": 1, "error": error})
    assert by_body({**V1, "error": error}).dialect == "x402-v1"
    sent = paid(challenge)
    assert sent["accepted"] == offer
    assert sent["payload"]["authorization"]["to"] == PAY_TO


@pytest.mark.parametrize(
    "wrong",
    [
        {**OFFER, "network": "hyperliquid:mainnet", "amount": "0.111"},
        {**OFFER, "network": "a chain that is not yet"},
        {"scheme": "upto"},
        None,
    ],
)
def test_an_offer_that_is_wrong_does_not_spoil_the_next(wrong: Any) -> None:
    """x402-foundation/x402#3510: `"amount": "0.111"` beside a good offer; #2729: an unknown network beside one."""
    challenge = by_header({**V2, "accepts": [wrong, OFFER]})
    assert (challenge.required.accepts, challenge.said) == ((ASKED,), (OFFER,))
    with pytest.raises(VendorGarbled, match=r"accepts\.0"):
        by_header({**V2, "accepts": [wrong]})


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-payment-required": "5.00 USDC"}, b'{"error": "send USDC, then retry with X-Payment-Proof: tx_hash"}'),
        ({"x-payment-proof": "required"}, b""),
        ({}, b'{"message": "send exact USDC, retry with `X-Payment-Tx` = tx hash"}'),
    ],
)
def test_a_transfer_made_first_is_not_made(headers: dict[str, str], body: bytes) -> None:
    """Sellers that take a transaction's hash as the payment; hashgraph/hedera-agent-kit-js#1007."""
    with pytest.raises(VendorUnpayable, match=r"the hash of a transfer made before the job is bound"):
        read_challenge(headers, body)
    with_x402 = read_challenge(headers | {"payment-required": b64(V2)}, body)
    assert with_x402.dialect == "x402-v2"


# What no quirk may do.


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"payTo": PAYER}, "wrong_pay_to"),
        ({"asset": PAYER}, "wrong_asset"),
        ({"amount": 1_500_000, "maxAmountRequired": 1_500_000}, "price_mismatch"),
        ({"maxTimeoutSeconds": 601}, "bad_timeout"),
        ({"network": "base"}, "wrong_network"),
        ({"extra": {"name": "USD Coin", "version": 2}}, "wrong_domain"),
        ({"scheme": "upto"}, "unsupported_scheme"),
        ({"extra": {**OFFER["extra"], "assetTransferMethod": "permit2"}}, "unsupported_scheme"),
    ],
)
def test_policy_is_as_strict_in_every_dialect(change: dict[str, Any], code: str) -> None:
    challenges = [
        by_header({**V2, "accepts": [{**OFFER, **change}]}),
        by_body({**V2, "accepts": [{**OFFER, **change}]}),
        by_body({**V1, "accepts": [{**OFFER_V1, **change}]}),
    ]
    for challenge in challenges:
        refused = choose_requirements(policy(), a_vendor(), PRICE, challenge.required)
        assert isinstance(refused, Refusal)
        assert refused.code == code


def test_what_is_said_back_fits_a_header() -> None:
    large = {**OFFER, "extra": {**OFFER["extra"], "note": "x" * 12_300}}
    with pytest.raises(
        VendorGarbled, match=r"x402-v2: the body: accepts\.0: must be an object of at most 12\d\d\d bytes"
    ):
        by_body({**V2, "accepts": [large]})
    with pytest.raises(VendorGarbled, match=r"resource and extensions are larger than 12288 bytes"):
        by_body({**V2, "extensions": {"other": "x" * 13_000}})
    # A number grows when it is written out.
    numbers = {**OFFER, "extra": {**OFFER["extra"], "note": [0]}}
    grown = text({**V2, "accepts": [numbers]}).replace(b"[0]", b"[" + b",".join([b"1e98"] * 500) + b"]")
    with pytest.raises(VendorGarbled, match=r"accepts\.0: must be an object"):
        read_challenge({}, grown)


def test_a_body_beyond_its_limit_is_not_decoded() -> None:
    padded = text(V1) + b" " * (BODY_BYTES_MAX - len(text(V1)))
    assert read_challenge({}, padded).dialect == "x402-v1"
    with pytest.raises(VendorGarbled, match=r"^neither headers nor body hold x402$"):
        read_challenge({}, padded + b" ")


JUNK = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ).map(text),
)
MEMBERS = st.sampled_from([*OFFER, *OFFER_V1, "x402Version", "accepts", "resource", "extensions", "error"])


@given(st.dictionaries(st.sampled_from(["payment-required", "x-payment-required"]), JUNK), JUNK)
@example({"payment-required": b"\xff"}, b"\xff\xfe{")
@example({"payment-required": b'{"x402Version": 2, "accepts": [{"amount": 1e999}]}'}, b"{" * 5_000)
def test_whatever_bytes_come_are_read_or_garbled(headers: dict[str, bytes], body: bytes) -> None:
    for told in (
        {name: value.decode("latin-1") for name, value in headers.items()},
        {name: base64.b64encode(value).decode() for name, value in headers.items()},
    ):
        with pytest.raises(VendorGarbled):
            read_challenge(told, body)
        for dialect, speech in DIALECTS.items():
            settled_in(dialect, {speech.settlement.lower(): next(iter(told.values()), "")})


@given(st.sampled_from([V1, V2]), st.dictionaries(MEMBERS, JUNK), st.booleans())
def test_whatever_an_offer_says_is_read_or_garbled_and_never_paid_to_another(
    said: dict[str, Any], changes: dict[str, bytes], inside: bool
) -> None:
    junk = {name: json.loads(value) for name, value in changes.items() if is_json(value)}
    changed = {**said, "accepts": [{**said["accepts"][0], **junk}]} if inside else {**said, **junk}
    try:
        challenge = by_body(changed)
    except VendorGarbled:
        return
    chosen = choose_requirements(policy(), a_vendor(), PRICE, challenge.required)
    if not isinstance(chosen, Refusal):
        authorization = paid(challenge)["payload"]["authorization"]
        assert (authorization["to"], authorization["value"]) == (PAY_TO, chosen.amount)
        assert int(chosen.amount) <= PRICE * 1.01


def is_json(value: bytes) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


# The official package says it, we hear it; we say it, the official package hears it.


def test_what_the_official_package_asks_in_version_2_is_read_and_it_finds_its_offer_in_the_payment() -> None:
    from x402 import x402ResourceServer
    from x402.http.utils import decode_payment_signature_header, encode_payment_required_header
    from x402.schemas import PaymentRequired as TheirRequired
    from x402.schemas import PaymentRequirements as TheirRequirements

    theirs = TheirRequirements.model_validate({**OFFER, "extra": {**OFFER["extra"], "paymentFlow": "upfront"}})
    header = encode_payment_required_header(TheirRequired(accepts=[theirs]))
    sent = base64.b64encode(text(paid(read_challenge({"payment-required": header}, b"{}")))).decode()
    payload = decode_payment_signature_header(sent)
    assert x402ResourceServer(None).find_matching_requirements([theirs], payload) == theirs


@pytest.mark.row(15)
def test_what_the_official_package_asks_in_version_1_is_read_and_it_reads_the_payment() -> None:
    from x402.http.utils import decode_payment_signature_header
    from x402.mechanisms.evm.types import ExactEIP3009Payload
    from x402.schemas import PaymentPayloadV1, PaymentRequirementsV1
    from x402.schemas.v1 import PaymentRequiredV1

    theirs = PaymentRequiredV1(error="pay", accepts=[PaymentRequirementsV1.model_validate(OFFER_V1)])
    challenge = read_challenge({}, theirs.model_dump_json(by_alias=True).encode())
    assert (challenge.dialect, challenge.required.accepts) == ("x402-v1", (ASKED,))
    payload = decode_payment_signature_header(base64.b64encode(text(paid(challenge))).decode())
    assert isinstance(payload, PaymentPayloadV1)
    authorization = ExactEIP3009Payload.from_dict(payload.payload).authorization
    assert (payload.network, authorization.to, authorization.value) == ("base-sepolia", PAY_TO, "1400000")


@pytest.mark.parametrize(("dialect", "name"), [("x402-v2", "payment-response"), ("x402-v1", "x-payment-response")])
def test_a_settlement_is_told_in_the_dialects_own_header(dialect: Any, name: str) -> None:
    from x402.http.utils import encode_payment_response_header
    from x402.schemas import SettleResponse as TheirSettled

    theirs = TheirSettled(success=True, transaction="0xaa", network="eip155:84532", payer=PAYER)
    assert settled_in(dialect, {name: encode_payment_response_header(theirs)}) == "0xaa"
    ours = encode_header(SettleResponse(success=True, transaction="0xbb"))
    assert settled_in(dialect, {name: ours.rstrip("=")}) == "0xbb"
    assert settled_in(dialect, {"x-" + name: ours}) is None
    assert settled_in(dialect, {name: "A" * 20_000}) is None

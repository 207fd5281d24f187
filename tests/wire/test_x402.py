"""x402 v2 objects and headers, with the official package as the oracle in both directions."""

import base64
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from x402.extensions.payment_identifier import (
    append_payment_identifier_to_extensions,
    declare_payment_identifier_extension,
    is_valid_payment_id,
)
from x402.extensions.payment_identifier.validation import extract_payment_identifier, validate_payment_identifier
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    decode_payment_signature_header,
    encode_payment_required_header,
    encode_payment_response_header,
    encode_payment_signature_header,
)
from x402.schemas import payments as official
from x402.schemas import responses as official_responses

from wire import x402
from wire.x402 import HeaderError, PaymentPayload, PaymentRequired, SettleResponse, decode_header, encode_header

PAYER, PAYEE, TOKEN = "0x" + "1a" * 20, "0x" + "2B" * 20, "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
ID = "run_01HZX-payment-0001"


def requirements(**changes: Any) -> dict[str, Any]:
    return {
        "scheme": "exact",
        "network": "eip155:84532",
        "asset": TOKEN,
        "amount": "1400000",
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USDC", "version": "2"},
    } | changes


def challenge(**changes: Any) -> dict[str, Any]:
    return {
        "x402Version": 2,
        "error": "Payment required",
        "resource": {"url": "http://vendor/submit-job", "description": "a job", "mimeType": "application/json"},
        "accepts": [requirements()],
        "extensions": x402.declare_payment_identifier(required=True),
    } | changes


def authorization(**changes: Any) -> dict[str, Any]:
    return {
        "from": PAYER,
        "to": PAYEE,
        "value": "1400000",
        "validAfter": "0",
        "validBefore": "1800000000",
        "nonce": "0x" + "ab" * 32,
    } | changes


def payment(**changes: Any) -> dict[str, Any]:
    return {
        "x402Version": 2,
        "resource": {"url": "http://vendor/submit-job"},
        "accepted": requirements(),
        "payload": {"signature": "0x" + "cd" * 65, "authorization": authorization()},
    } | changes


def header(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


# The official package reads what we write, and we read what it writes


def test_the_official_package_reads_our_challenge_as_we_wrote_it() -> None:
    ours = PaymentRequired.model_validate(challenge())
    theirs = decode_payment_required_header(encode_header(ours))
    assert isinstance(theirs, official.PaymentRequired)
    assert theirs.model_dump(by_alias=True, exclude_none=True) == challenge()


def test_we_read_the_official_challenge_as_it_was_written() -> None:
    theirs = official.PaymentRequired.model_validate(challenge())
    ours = decode_header(PaymentRequired, encode_payment_required_header(theirs))
    assert json.loads(ours.to_json()) == challenge()


def test_the_official_package_reads_our_payment_as_we_wrote_it() -> None:
    document = payment(extensions=x402.with_payment_identifier(x402.declare_payment_identifier(), ID))
    theirs = decode_payment_signature_header(encode_header(PaymentPayload.model_validate(document)))
    assert theirs.model_dump(by_alias=True, exclude_none=True) == document
    assert extract_payment_identifier(theirs) == ID


def test_we_read_the_official_payment_as_it_was_written() -> None:
    theirs = official.PaymentPayload.model_validate(payment())
    ours = decode_header(PaymentPayload, encode_payment_signature_header(theirs))
    assert json.loads(ours.to_json()) == payment()
    assert ours.payload.authorization.from_ == PAYER


def test_settlements_are_read_in_both_directions() -> None:
    document = {"success": True, "payer": PAYER, "transaction": "0x" + "ef" * 32, "network": "eip155:84532"}
    ours = SettleResponse.model_validate(document)
    theirs = decode_payment_response_header(encode_header(ours))
    assert theirs.model_dump(by_alias=True, exclude_none=True) == document
    again = official_responses.SettleResponse.model_validate(document)
    assert decode_header(SettleResponse, encode_payment_response_header(again)) == ours


def test_a_refused_settlement_needs_no_transaction() -> None:
    refused = decode_header(SettleResponse, header({"success": False, "errorReason": "nonce_already_used"}))
    assert (refused.success, refused.error_reason, refused.transaction, refused.network) == (
        False,
        "nonce_already_used",
        "",
        "",
    )


# What is no header is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A" * (16 * 1024 + 1), "the header is larger than 16384 bytes"),
        ("A" * (16 * 1024), "the header is not JSON: "),
        ("not base64!", "the header is not base64"),
        ("AAA", "the header is not base64"),
        ("é", "the header is not JSON: string argument should contain only ASCII characters"),
        ("", "the header is not JSON: Expecting value"),
        (base64.b64encode(b"\xff\xfe").decode(), "the header is not JSON: 'utf-8' codec can't decode"),
        (base64.b64encode(b"[" * 5_000).decode(), "the header is not JSON: nested too deeply"),
        (base64.b64encode(b'{"amount": NaN}').decode(), "the header is not JSON: NaN is not JSON"),
        (header([]), "the header: Input should be a valid dictionary"),
        (header({}), "accepts: Field required"),
        (header(challenge(x402Version=1)), "x402Version: Input should be 2"),
        (header(challenge(accepts=[requirements(amount="-1")])), "accepts.0.amount: String should match pattern"),
        (
            header(challenge(accepts=[requirements(maxTimeoutSeconds=0)])),
            "accepts.0.maxTimeoutSeconds: Input should be",
        ),
        (header(challenge(accepts="all")), "accepts: Input should be a valid tuple"),
    ],
)
def test_what_is_no_challenge_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(HeaderError) as refused:
        decode_header(PaymentRequired, text)
    assert str(refused.value).startswith(reason)


def test_the_largest_header_is_read() -> None:
    text = header(challenge(error="e" * 11_300))
    text = header(challenge(error="e" * (11_300 + (16 * 1024 - len(text)) * 3 // 4)))
    assert len(text) == 16 * 1024
    assert decode_header(PaymentRequired, text).error is not None


@given(st.text(max_size=300))
def test_any_text_is_a_challenge_or_a_header_error(text: str) -> None:
    with pytest.raises(HeaderError):
        decode_header(PaymentRequired, text)


@given(st.binary(max_size=300))
def test_any_bytes_in_base64_are_a_payment_or_a_header_error(content: bytes) -> None:
    with pytest.raises(HeaderError):
        decode_header(PaymentPayload, base64.b64encode(content).decode())


@pytest.mark.parametrize(
    "changes",
    [
        {"from": "0x" + "1a" * 19},
        {"from": "0x" + "1g" * 20},
        {"to": "0x" + "1a" * 20 + "\n"},
        {"to": "1a" * 20},
        {"value": "01"},
        {"value": "1.5"},
        {"value": ""},
        {"value": "+1"},
        {"value": 1},
        {"value": str(2**256)},
        {"value": "9" * 78},
        {"value": "1" + "0" * 78},
        {"validBefore": "0x10"},
        {"validAfter": " 1"},
        {"nonce": "0x" + "ab" * 31},
        {"nonce": "0x" + "ab" * 33},
    ],
)
def test_an_authorization_with_a_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        x402.Authorization.model_validate(authorization(**changes))


def test_an_amount_is_any_uint256() -> None:
    for value in ("0", "9", "10", str(2**256 - 1)):
        assert x402.Authorization.model_validate(authorization(value=value)).value == value
    with pytest.raises(ValidationError, match="an amount fits in a uint256"):
        x402.Authorization.model_validate(authorization(value=str(2**256)))


@pytest.mark.parametrize("signature", ["0x", "0xabc", "abcd", "0x" + "zz" * 65, ""])
def test_a_signature_is_whole_bytes_in_hex(signature: str) -> None:
    with pytest.raises(ValidationError):
        x402.ExactPayload.model_validate({"signature": signature, "authorization": authorization()})


@pytest.mark.parametrize("network", ["base-sepolia", "eip155:", "EIP155:1", "ab:1", "eip155:84532 ", "a" * 9 + ":1"])
def test_a_network_is_a_caip_2_name(network: str) -> None:
    with pytest.raises(ValidationError):
        x402.PaymentRequirements.model_validate(requirements(network=network))


def test_fields_of_newer_peers_are_ignored_and_missing_ones_have_their_defaults() -> None:
    document = requirements(newField={"a": 1})
    del document["extra"]
    read = x402.PaymentRequirements.model_validate(document)
    assert read.extra == {}
    assert "newField" not in read.document()
    paid = PaymentPayload.model_validate({key: value for key, value in payment().items() if key != "x402Version"})
    assert paid.x402_version == 2
    assert PaymentRequired.model_validate(challenge()).x402_version == 2


def test_numbers_of_an_extension_come_back_as_they_were_sent() -> None:
    sent = b'{"x402Version":2,"resource":{"url":"u"},"accepts":[],"extensions":{"e":{"rate":0.10,"n":null}}}'
    read = PaymentRequired.from_json(sent)
    assert read.extensions == {"e": {"rate": Decimal("0.10"), "n": None}}
    assert read.to_json() == sent


def test_bodies_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PaymentPayload.model_validate(payment()).x402_version = 2


def test_headers_have_the_names_of_the_protocol() -> None:
    assert (x402.PAYMENT_REQUIRED, x402.PAYMENT_SIGNATURE, x402.PAYMENT_RESPONSE) == (
        "PAYMENT-REQUIRED",
        "PAYMENT-SIGNATURE",
        "PAYMENT-RESPONSE",
    )


# The payment identifier


@pytest.mark.parametrize("required", [True, False])
def test_a_server_declares_the_identifier_as_the_official_extension_does(required: bool) -> None:
    ours = x402.declare_payment_identifier(required=required)
    theirs = declare_payment_identifier_extension(required=required)
    assert ours["payment-identifier"] == theirs
    assert validate_payment_identifier(ours["payment-identifier"]).valid


def test_a_declaration_asks_for_nothing_unless_told() -> None:
    assert x402.declare_payment_identifier()["payment-identifier"]["info"] == {"required": False}


def test_a_payer_adds_its_identifier_as_the_official_client_does() -> None:
    declared = x402.declare_payment_identifier(required=True) | {"other": {"info": {"a": 1}}}
    ours = x402.with_payment_identifier(declared, ID)
    theirs = append_payment_identifier_to_extensions(json.loads(json.dumps(declared)), ID)
    assert ours == theirs
    assert x402.payment_identifier(ours) == ID
    assert "id" not in declared["payment-identifier"]["info"]


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (None, None),
        ({}, None),
        ({"other": 1}, {"other": 1}),
        ({"payment-identifier": "yes"}, {"payment-identifier": "yes"}),
        ({"payment-identifier": {"info": []}}, {"payment-identifier": {"info": []}}),
        ({"payment-identifier": {}}, {"payment-identifier": {}}),
    ],
)
def test_a_payer_who_is_not_asked_sends_back_what_came(extensions: Any, expected: Any) -> None:
    assert x402.with_payment_identifier(extensions, ID) == expected


@pytest.mark.parametrize(
    "extensions",
    [
        None,
        {},
        {"payment-identifier": None},
        {"payment-identifier": "an-identifier-as-text"},
        {"payment-identifier": {"info": "an-identifier-as-text"}},
        {"payment-identifier": {"info": {"required": False}}},
        {"payment-identifier": {"info": {"id": None}}},
    ],
)
def test_a_payment_without_an_identifier_has_none(extensions: Any) -> None:
    assert x402.payment_identifier(extensions) is None


@pytest.mark.parametrize("identifier", ["a" * 15, "a" * 129, "a" * 16 + "\n", "a" * 15 + "!", "", 5, ["a" * 16], False])
def test_an_identifier_of_another_form_is_refused(identifier: Any) -> None:
    with pytest.raises(HeaderError, match=r"an id is 16-128 of \[A-Za-z0-9_-\]"):
        x402.payment_identifier({"payment-identifier": {"info": {"id": identifier}}})


@given(st.text(st.sampled_from("abcXYZ019_-"), min_size=16, max_size=128))
def test_an_identifier_of_the_right_form_is_one_for_the_official_package_too(identifier: str) -> None:
    assert x402.payment_identifier({"payment-identifier": {"info": {"id": identifier}}}) == identifier
    assert TypeAdapter(x402.PaymentIdentifier).validate_python(identifier) == identifier
    assert is_valid_payment_id(identifier)

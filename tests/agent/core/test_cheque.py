"""The cheque: the same run and number give the same one, another run or number another; the world can read it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cheque import authorization_for, payment_header, payment_id, payment_nonce
from tests.agent.core.values import PAY_TO, PAYER, T0, USDC, challenge, required, requirements
from wire.eip712 import typed_data
from wire.x402 import (
    Authorization,
    PaymentPayload,
    PaymentRequired,
    declare_payment_identifier,
    decode_header,
    payment_identifier,
)

KEY = "0x" + "42" * 32
IDENTIFIER = payment_id("run_" + "0" * 32, 1)
EXTRA = {"name": "USDC", "version": "2", "note": None, "nested": {"empty": None, "list": [None, 1]}}
EXTENSIONS = {**declare_payment_identifier(required=True), "other": {"info": {"kept": None}}}


def test_a_payments_id_is_its_runs_and_its_number() -> None:
    assert payment_id("run_1", 2) == "run_1-payment-2"


def test_an_id_of_a_payment_is_a_payment_identifier() -> None:
    assert payment_identifier({"payment-identifier": {"info": {"id": IDENTIFIER}}}) == IDENTIFIER


@pytest.mark.row(16)
def test_a_nonce_is_the_digest_of_the_run_and_the_number() -> None:
    assert payment_nonce("run_1", 1) == "0x" + keccak(b"livery/payment/1\0run_1\x001").hex()
    assert payment_nonce("run_1", 1) == payment_nonce("run_1", 1)


@pytest.mark.row(16)
@given(st.sets(st.tuples(st.text("run_019", min_size=1), st.integers(1, 10**6)), min_size=2, max_size=5))
def test_no_two_payments_of_any_runs_share_a_nonce(payments: set[tuple[str, int]]) -> None:
    assert len({payment_nonce(run_id, number) for run_id, number in payments}) == len(payments)


def test_an_authorization_says_exactly_what_was_asked() -> None:
    assert authorization_for(requirements(), PAYER, payment_nonce("run_1", 1), T0) == Authorization(
        from_=PAYER,
        to=PAY_TO,
        value="1400000",
        valid_after="0",
        valid_before=str(int(T0.timestamp()) + 300),
        nonce=payment_nonce("run_1", 1),
    )


def test_a_cheque_lapses_on_the_second_whatever_the_microseconds() -> None:
    asked = requirements(max_timeout_seconds=1)
    late = T0.replace(microsecond=999_999)
    lapses = {authorization_for(asked, PAYER, "0x" + "00" * 32, now).valid_before for now in (T0, late)}
    assert lapses == {"1769851801"}
    later = authorization_for(asked, PAYER, "0x" + "00" * 32, T0 + timedelta(seconds=7))
    assert later.valid_before == "1769851808"


def a_header(asked: PaymentRequired) -> tuple[Authorization, str, str]:
    account = Account.from_key(KEY)
    authorization = authorization_for(asked.accepts[0], account.address, payment_nonce("run_1", 1), T0)
    signed = account.sign_typed_data(full_message=typed_data(authorization, USDC))
    signature = "0x" + signed.signature.hex()
    header = payment_header(challenge(asked), asked.accepts[0], authorization, signature, IDENTIFIER)
    return authorization, signature, header


def test_a_header_holds_the_sellers_words_the_cheque_and_our_id() -> None:
    asked = required(requirements(extra=EXTRA), extensions=EXTENSIONS)
    authorization, signature, header = a_header(asked)
    payload = decode_header(PaymentPayload, header)
    assert payload.x402_version == 2
    assert payload.resource == asked.resource
    assert payload.accepted == asked.accepts[0]
    assert payload.payload.authorization == authorization
    assert payload.payload.signature == signature
    assert payload.extensions is not None
    assert payment_identifier(payload.extensions) == IDENTIFIER
    assert payload.extensions["other"] == EXTENSIONS["other"]


def test_a_seller_that_declared_nothing_gets_no_extensions_back() -> None:
    assert decode_header(PaymentPayload, a_header(required(requirements()))[2]).extensions is None


def test_the_same_payment_makes_the_same_header() -> None:
    asked = required(requirements(), extensions=EXTENSIONS)
    assert a_header(asked)[2] == a_header(asked)[2]


@pytest.mark.row(16)
def test_the_official_package_reads_the_header() -> None:
    from x402.http.utils import decode_payment_signature_header
    from x402.mechanisms.evm.types import ExactEIP3009Payload

    authorization, signature, header = a_header(required(requirements(), extensions=EXTENSIONS))
    theirs = decode_payment_signature_header(header)
    payload = ExactEIP3009Payload.from_dict(theirs.payload)
    assert (theirs.x402_version, theirs.accepted.pay_to, theirs.accepted.amount) == (2, PAY_TO, "1400000")
    assert payload.signature == signature
    assert (payload.authorization.from_address, payload.authorization.to) == (authorization.from_, authorization.to)
    assert (payload.authorization.value, payload.authorization.nonce) == ("1400000", authorization.nonce)
    assert theirs.extensions["payment-identifier"]["info"]["id"] == IDENTIFIER


@pytest.mark.row(16)
def test_the_signer_recovered_is_the_payer_and_on_another_chain_it_is_not() -> None:
    authorization, signature, _ = a_header(required(requirements()))
    signers = [
        Account.recover_message(encode_typed_data(full_message=typed_data(authorization, asset)), signature=signature)
        for asset in (USDC, replace(USDC, network="eip155:8453"))
    ]
    assert signers[0] == authorization.from_ == Account.from_key(KEY).address
    assert signers[1] != signers[0]

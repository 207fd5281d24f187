"""The official facilitator behind our HTTP, fed with what `wire` alone has built."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chain.devchain import DevAccount, DevChain
from outbound.http import HttpClient
from tests.chain.signing import payload_for, requirements_for
from vendor_mock.facilitator import BODY_BYTES_MAX, create_facilitator
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse, VerifyResponse

PRICE = 1_400_000


async def call(app: FastAPI, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    client = HttpClient(httpx.ASGITransport(app))
    headers = {"content-type": "application/json"}
    reply = await client.request(
        method, f"http://facilitator{path}", headers=headers, content=body, timeout_s=30, body_bytes_max=100_000
    )
    return reply.status, decimal_json.loads(reply.content)


def body_of(payload: PaymentPayload, requirements: PaymentRequirements) -> bytes:
    document = {
        "x402Version": 2,
        "paymentPayload": payload.document(),
        "paymentRequirements": requirements.document(),
    }
    return decimal_json.dumps(document)


@pytest.fixture
def bought(payer: DevAccount, seller: DevAccount) -> bytes:
    """Return the body that verifies and settles one payment of PRICE."""
    requirements = requirements_for(seller.address, PRICE)
    return body_of(payload_for(payer, requirements), requirements)


@pytest.mark.row(17)
async def test_the_facilitator_says_what_it_supports(facilitator: FastAPI, facilitator_account: DevAccount) -> None:
    status, supported = await call(facilitator, "GET", "/supported")
    assert status == 200
    kinds = {(kind["x402Version"], kind["scheme"], kind["network"]) for kind in supported["kinds"]}
    assert (2, "exact", BASE_SEPOLIA_USDC.network) in kinds
    assert supported["signers"] == {"eip155:*": [facilitator_account.address]}
    assert (await call(facilitator, "GET", "/health"))[0] == 200


async def test_the_official_facilitator_accepts_and_settles_what_wire_signs(
    facilitator: FastAPI, chain: DevChain, payer: DevAccount, seller: DevAccount, bought: bytes
) -> None:
    status, verdict = await call(facilitator, "POST", "/verify", bought)
    assert status == 200
    assert VerifyResponse.model_validate(verdict) == VerifyResponse(is_valid=True, payer=payer.address)
    _, answer = await call(facilitator, "POST", "/settle", bought)
    settled = SettleResponse.model_validate(answer)
    assert (settled.success, settled.payer, settled.network) == (True, payer.address, BASE_SEPOLIA_USDC.network)
    assert chain.rpc("eth_getTransactionReceipt", settled.transaction)["status"] == "0x1"
    assert chain.balance(seller.address) == PRICE


@pytest.mark.row(17)
async def test_settling_the_same_payload_twice_answers_the_same_and_moves_the_balance_once(
    facilitator: FastAPI, chain: DevChain, seller: DevAccount, bought: bytes
) -> None:
    first = await call(facilitator, "POST", "/settle", bought)
    assert await call(facilitator, "POST", "/settle", bought) == first
    assert first[1]["success"]
    assert chain.balance(seller.address) == PRICE


async def test_ten_settlements_of_the_same_payload_at_once_are_one_transaction(
    facilitator: FastAPI, chain: DevChain, seller: DevAccount, facilitator_account: DevAccount, bought: bytes
) -> None:
    answers = await asyncio.gather(*(call(facilitator, "POST", "/settle", bought) for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][1]["success"]
    assert chain.balance(seller.address) == PRICE
    assert chain.rpc("eth_getTransactionCount", facilitator_account.address, "latest") == "0x1"


@pytest.mark.row(17)
async def test_a_facilitator_that_has_forgotten_refuses_the_used_nonce(
    facilitator: FastAPI, chain: DevChain, seller: DevAccount, facilitator_account: DevAccount, bought: bytes
) -> None:
    await call(facilitator, "POST", "/settle", bought)
    restarted = create_facilitator(chain.url, facilitator_account.key, BASE_SEPOLIA_USDC.network)
    status, answer = await call(restarted, "POST", "/settle", bought)
    assert (status, answer["success"], answer["errorReason"]) == (200, False, "invalid_exact_evm_nonce_already_used")
    assert chain.balance(seller.address) == PRICE


async def test_a_payer_without_funds_is_refused_by_reason(
    facilitator: FastAPI, payer: DevAccount, seller: DevAccount
) -> None:
    requirements = requirements_for(seller.address, 10**15)
    _, verdict = await call(facilitator, "POST", "/verify", body_of(payload_for(payer, requirements), requirements))
    assert (verdict["isValid"], verdict["invalidReason"]) == (False, "invalid_exact_evm_insufficient_balance")


async def test_a_refusal_holds_codes_and_no_words_of_the_libraries_beneath(
    facilitator: FastAPI, chain: DevChain, facilitator_account: DevAccount, bought: bytes
) -> None:
    chain.fund(facilitator_account.address, 0)
    _, refused = await call(facilitator, "POST", "/settle", bought)
    assert (refused["success"], refused["errorReason"]) == (False, "transaction_failed")
    assert not {"errorMessage", "error_message", "invalidMessage"} & set(refused)


async def test_a_settlement_not_mined_in_time_is_pending_and_then_found(
    chain: DevChain, seller: DevAccount, facilitator_account: DevAccount, bought: bytes
) -> None:
    slow = create_facilitator(chain.url, facilitator_account.key, BASE_SEPOLIA_USDC.network, confirmation_s=0.2)
    chain.rpc("evm_setAutomine", False)
    try:
        _, pending = await call(slow, "POST", "/settle", bought)
        assert (pending["success"], pending["errorReason"]) == (False, "settlement_pending")
    finally:
        chain.mine()
        chain.rpc("evm_setAutomine", True)
    _, settled = await call(slow, "POST", "/settle", bought)
    assert (settled["success"], settled["transaction"]) == (True, pending["transaction"])
    assert chain.balance(seller.address) == PRICE


@pytest.mark.parametrize("path", ["/verify", "/settle"])
async def test_a_chain_that_does_not_answer_is_503_and_not_an_invalid_payment(
    facilitator_account: DevAccount, bought: bytes, path: str
) -> None:
    lost = create_facilitator("http://127.0.0.1:9/v2/hidden", facilitator_account.key, BASE_SEPOLIA_USDC.network)
    status, problem = await call(lost, "POST", path, bought)
    assert (status, problem["code"]) == (503, "chain_unavailable")
    assert problem["detail"] == "the chain does not answer"
    assert (await call(lost, "GET", "/health"))[0] == 503


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "payment_malformed"),
        (b"[1]", 400, "payment_malformed"),
        (b'{"paymentPayload": {"x402Version": 2}}', 400, "payment_malformed"),
        (b"x" * (BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/verify", "/settle"])
async def test_a_body_that_is_no_payment_is_a_problem_document(
    facilitator: FastAPI, path: str, body: bytes, status: int, code: str
) -> None:
    answered, problem = await call(facilitator, "POST", path, body)
    assert (answered, problem["code"]) == (status, code)


@pytest.mark.parametrize("broken", [{"nonce": "0x12"}, {"value": "many"}, {"from": "nobody"}, {"validBefore": ""}])
async def test_a_payload_that_breaks_the_package_is_not_a_500(
    facilitator: FastAPI, bought: bytes, broken: dict[str, str]
) -> None:
    document = decimal_json.loads(bought)
    document["paymentPayload"]["payload"]["authorization"].update(broken)
    for path in ("/verify", "/settle"):
        status, answer = await call(facilitator, "POST", path, decimal_json.dumps(document))
        assert status == 400 or answer.get("isValid") is False or answer.get("success") is False


async def test_wire_reads_what_the_official_client_signs_and_it_settles(
    facilitator: FastAPI, chain: DevChain, payer: DevAccount, seller: DevAccount
) -> None:
    from eth_account import Account
    from x402 import x402Client
    from x402.mechanisms.evm.exact import register_exact_evm_client
    from x402.schemas import PaymentRequired as OfficialPaymentRequired

    client = x402Client()
    register_exact_evm_client(client, Account.from_key(payer.key))
    requirements = requirements_for(seller.address, 10_000)
    asked = PaymentRequired(resource=ResourceInfo(url="http://vendor/submit-job"), accepts=(requirements,))
    official = await client.create_payment_payload(OfficialPaymentRequired.model_validate_json(asked.to_json()))
    read = PaymentPayload.from_json(official.model_dump_json(by_alias=True, exclude_none=True))
    assert read.accepted == requirements
    assert read.payload.authorization.to == seller.address
    _, settled = await call(facilitator, "POST", "/settle", body_of(read, requirements))
    assert settled["success"]
    assert chain.balance(seller.address) == 10_000


async def test_the_facilitator_serves_on_a_real_socket(facilitator_url: str) -> None:
    reply = await HttpClient().request(
        "GET", f"{facilitator_url}/health", headers={}, content=None, timeout_s=5, body_bytes_max=1_000
    )
    assert reply.status == 200

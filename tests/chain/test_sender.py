"""Refunds as raw transactions: prepared, broadcast as often as one likes, mined once."""

from typing import Any

import httpx
import pytest

from chain.devchain import DevAccount, DevChain
from chain.errors import ChainError, NonceTaken, ReceiptLate, RpcRefused, RpcUnavailable
from chain.rpc import Rpc
from chain.sender import SignedTransfer, TokenSender
from chain.token import TokenReader
from outbound.http import HttpClient
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC


@pytest.fixture
def sender(chain: DevChain, seller: DevAccount) -> TokenSender:
    chain.mint(seller.address, 1_000)
    return TokenSender(Rpc(chain.url, HttpClient()), BASE_SEPOLIA_USDC, seller.key)


async def prepared(sender: TokenSender, to: str, value_atomic: int) -> SignedTransfer:
    return await sender.prepare(to, value_atomic, await sender.account_nonce())


async def test_a_transfer_moves_what_it_says_and_its_hash_is_known_before(
    sender: TokenSender, reader: TokenReader, seller: DevAccount, payer: DevAccount
) -> None:
    assert sender.address == seller.address
    transfer = await prepared(sender, payer.address, 400)
    assert await reader.balance(seller.address) == 1_000
    await sender.broadcast(transfer)
    assert await sender.await_receipt(transfer.transaction, timeout_s=10)
    moved = await reader.transfers(transfer.transaction, seller.address, payer.address)
    assert [log.value_atomic for log in moved] == [400]
    assert await reader.balance(seller.address) == 600


async def test_broadcasting_again_moves_nothing_more(
    sender: TokenSender, reader: TokenReader, chain: DevChain, seller: DevAccount, payer: DevAccount
) -> None:
    transfer = await prepared(sender, payer.address, 400)
    chain.rpc("evm_setAutomine", False)
    await sender.broadcast(transfer)
    await sender.broadcast(transfer)  # pending: "already known"
    chain.mine()
    chain.rpc("evm_setAutomine", True)
    await sender.broadcast(transfer)  # mined: "nonce too low"
    assert await sender.await_receipt(transfer.transaction, timeout_s=10)
    assert await reader.balance(seller.address) == 600


async def test_the_same_refund_prepared_twice_is_the_same_transaction(sender: TokenSender, payer: DevAccount) -> None:
    first, second = await sender.prepare(payer.address, 1, 0), await sender.prepare(payer.address, 1, 0)
    assert first == second


async def test_of_two_transfers_under_one_account_nonce_the_second_can_never_be_mined_once_the_first_is_finalised(
    sender: TokenSender, reader: TokenReader, chain: DevChain, seller: DevAccount, payer: DevAccount
) -> None:
    nonce = await sender.account_nonce()
    first, second = await sender.prepare(payer.address, 1, nonce), await sender.prepare(payer.address, 2, nonce)
    await sender.broadcast(first)
    await sender.await_receipt(first.transaction, timeout_s=10)
    with pytest.raises(RpcUnavailable):
        await sender.broadcast(second)
    chain.mine(2)
    with pytest.raises(NonceTaken):
        await sender.broadcast(second)
    assert await reader.balance(seller.address) == 999


@pytest.mark.parametrize(
    ("said", "finalized_count", "receipt", "raised"),
    [
        ("nonce too low", "0x5", None, RpcUnavailable),
        ("nonce too low", "0x6", {"status": "0x1"}, RpcUnavailable),
        ("nonce too low", "0x6", None, NonceTaken),
        ("OldNonce", "0x6", None, NonceTaken),
        ("OldNonce", "0x5", None, RpcRefused),
    ],
)
async def test_a_node_that_lags_behind_does_not_make_a_transfer_look_superseded(
    said: str, finalized_count: str, receipt: Any, raised: type[ChainError], seller: DevAccount
) -> None:
    asked: list[list[Any]] = []
    results = {
        "eth_sendRawTransaction": {"error": {"code": -32000, "message": said}},
        "eth_getTransactionByHash": {"result": None},
        "eth_getTransactionCount": {"result": finalized_count},
        "eth_getTransactionReceipt": {"result": receipt},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        call = decimal_json.loads(request.content)
        asked.append([call["method"], *call["params"]])
        reply = {"jsonrpc": "2.0", "id": call["id"], **results[call["method"]]}
        return httpx.Response(200, content=decimal_json.dumps(reply))

    rpc = Rpc("http://node", HttpClient(httpx.MockTransport(answer)))
    transfer = SignedTransfer("0x" + "1" * 64, "0x02", 5)
    with pytest.raises(raised) as caught:
        await TokenSender(rpc, BASE_SEPOLIA_USDC, seller.key).broadcast(transfer)
    assert caught.type is raised
    assert ["eth_getTransactionCount", seller.address, "finalized"] in asked


async def test_a_pending_transfer_counts_in_the_next_account_nonce(
    sender: TokenSender, chain: DevChain, payer: DevAccount
) -> None:
    nonce = await sender.account_nonce()
    chain.rpc("evm_setAutomine", False)
    await sender.broadcast(await sender.prepare(payer.address, 1, nonce))
    assert await sender.account_nonce() == nonce + 1
    chain.mine()
    chain.rpc("evm_setAutomine", True)


async def test_more_than_the_account_holds_is_refused_before_anything_is_signed(
    sender: TokenSender, payer: DevAccount
) -> None:
    with pytest.raises(RpcRefused, match="transfer amount exceeds balance"):
        await prepared(sender, payer.address, 1_001)


async def test_a_transfer_that_came_too_late_for_the_balance_is_mined_as_failed(
    sender: TokenSender, payer: DevAccount
) -> None:
    nonce = await sender.account_nonce()
    first, second = await sender.prepare(payer.address, 600, nonce), await sender.prepare(payer.address, 600, nonce + 1)
    await sender.broadcast(first)
    await sender.broadcast(second)
    assert await sender.await_receipt(first.transaction, timeout_s=10)
    assert not await sender.await_receipt(second.transaction, timeout_s=10)


async def test_an_account_without_coin_for_the_fee_is_refused(
    sender: TokenSender, chain: DevChain, seller: DevAccount, payer: DevAccount
) -> None:
    transfer = await prepared(sender, payer.address, 1)
    chain.fund(seller.address, 0)
    with pytest.raises(RpcRefused, match=r"(?i)insufficient funds"):
        await sender.broadcast(transfer)


async def test_a_transaction_that_nobody_sent_is_late_and_may_still_come(sender: TokenSender) -> None:
    with pytest.raises(ReceiptLate) as caught:
        await sender.await_receipt("0x" + "1" * 64, timeout_s=0.2)
    assert caught.value.retryable


async def test_neither_repr_nor_error_shows_the_key(chain: DevChain, seller: DevAccount) -> None:
    rpc = Rpc(chain.url, HttpClient())
    assert seller.key[2:] not in repr(TokenSender(rpc, BASE_SEPOLIA_USDC, seller.key))
    for wrong in (seller.key + "00", "0x" + "z" * 64, "", "0x" + "0" * 64):
        with pytest.raises(ChainError) as caught:
            _ = TokenSender(rpc, BASE_SEPOLIA_USDC, wrong).address
        assert seller.key[2:] not in str(caught.value)

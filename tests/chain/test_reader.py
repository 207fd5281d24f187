"""What TokenReader reads from a real chain, and what it makes of a node that lies."""

from typing import Any

import httpx
import pytest

from chain.abi import TOPICS, word
from chain.devchain import DevAccount, DevChain, dev_account
from chain.errors import RpcUnavailable
from chain.rpc import Rpc
from chain.token import TokenReader, TransferLog
from outbound.http import HttpClient
from tests.chain.signing import authorization_for, settle_data, signature_of
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import Authorization

USDC = BASE_SEPOLIA_USDC.address
NONCE = "0x" + "ab" * 32


@pytest.fixture
def cheque(payer: DevAccount, seller: DevAccount) -> Authorization:
    return authorization_for(payer, seller.address, 700_000)


def settle(chain: DevChain, payer: DevAccount, cheque: Authorization) -> str:
    return chain.transact(USDC, settle_data(cheque, signature_of(payer, cheque)))


async def test_balances_and_the_chain_id_are_the_chains(reader: TokenReader, payer: DevAccount) -> None:
    assert await reader.balance(payer.address) == 1_000_000_000
    assert await reader.native_balance(dev_account(3).address) == 10_000 * 10**18
    assert await reader.chain_id() == 84532


async def test_a_nonce_is_used_at_once_and_finalised_two_blocks_later(
    reader: TokenReader, chain: DevChain, payer: DevAccount, cheque: Authorization
) -> None:
    assert not await reader.is_nonce_used(payer.address, cheque.nonce)
    settle(chain, payer, cheque)
    assert await reader.is_nonce_used(payer.address, cheque.nonce)
    assert not await reader.is_nonce_used_finalized(payer.address, cheque.nonce)
    chain.mine(2)
    assert await reader.is_nonce_used_finalized(payer.address, cheque.nonce)


async def test_finalised_time_is_that_of_the_finalised_block(reader: TokenReader, chain: DevChain) -> None:
    chain.increase_time(5_000)
    finalized = chain.rpc("eth_getBlockByNumber", "finalized", False)
    assert await reader.finalized_time_s() == int(finalized["timestamp"], 16)
    chain.mine(2)
    assert await reader.finalized_time_s() >= int(finalized["timestamp"], 16) + 5_000


async def test_a_settlement_is_found_by_its_nonce(
    reader: TokenReader, chain: DevChain, payer: DevAccount, seller: DevAccount, cheque: Authorization
) -> None:
    head = await reader.head()
    assert await reader.settlement(payer.address, cheque.nonce, seller.address, 700_000, head) is None
    transaction = settle(chain, payer, cheque)
    assert await reader.settlement(payer.address, cheque.nonce, seller.address, 700_000, head) == transaction
    other_nonce = "0x" + "1" * 64
    assert await reader.settlement(payer.address, other_nonce, seller.address, 700_000, head) is None
    assert await reader.settlement(payer.address, cheque.nonce, seller.address, 700_000, head + 2) is None


async def test_a_settlement_of_another_value_or_to_another_payee_is_none(
    reader: TokenReader, chain: DevChain, payer: DevAccount, seller: DevAccount, cheque: Authorization
) -> None:
    settle(chain, payer, cheque)
    assert await reader.settlement(payer.address, cheque.nonce, seller.address, 700_001, 0) is None
    assert await reader.settlement(payer.address, cheque.nonce, dev_account(5).address, 700_000, 0) is None
    assert await reader.settlement(seller.address, cheque.nonce, seller.address, 700_000, 0) is None


@pytest.mark.parametrize("blocks_before", range(9))
async def test_a_settlement_is_found_in_whichever_window_of_blocks_it_is(
    chain: DevChain, payer: DevAccount, seller: DevAccount, cheque: Authorization, blocks_before: int
) -> None:
    reader = TokenReader(Rpc(chain.url, HttpClient()), BASE_SEPOLIA_USDC, log_window_blocks=3)
    from_block = await reader.head()
    chain.mine(blocks_before)
    transaction = settle(chain, payer, cheque)
    chain.mine(8 - blocks_before)
    assert await reader.settlement(payer.address, cheque.nonce, seller.address, 700_000, from_block) == transaction


async def test_no_question_for_logs_is_wider_than_a_window_and_none_is_left_out() -> None:
    asked: list[tuple[int, int]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        call = decimal_json.loads(request.content)
        if call["method"] == "eth_getLogs":
            asked.append((int(call["params"][0]["fromBlock"], 16), int(call["params"][0]["toBlock"], 16)))
        result = hex(12_000) if call["method"] == "eth_blockNumber" else []
        return httpx.Response(200, content=decimal_json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}))

    reader = TokenReader(Rpc("http://node", HttpClient(httpx.MockTransport(answer))), BASE_SEPOLIA_USDC)
    assert await reader.settlement(PAYER, NONCE, PAYEE, 5, 100) is None
    assert asked == [(100, 5_099), (5_100, 10_099), (10_100, 12_000)]


async def test_transfers_are_those_from_the_sender_to_the_receiver(
    reader: TokenReader, chain: DevChain, payer: DevAccount, seller: DevAccount, cheque: Authorization
) -> None:
    transaction = settle(chain, payer, cheque)
    # The first log of its block is AuthorizationUsed.
    block = await reader.head()
    assert await reader.transfers(transaction, payer.address, seller.address) == [TransferLog(1, 700_000, block)]
    assert await reader.transfers(transaction, seller.address, payer.address) == []
    assert await reader.transfers("0x" + "9" * 64, payer.address, seller.address) == []


async def test_a_transaction_that_is_no_hash_is_refused_before_it_is_asked_for(reader: TokenReader) -> None:
    with pytest.raises(RpcUnavailable, match="not a transaction hash"):
        await reader.transfers("latest", NONCE[:42], NONCE[:42])


async def test_a_chain_without_the_token_is_an_error_and_not_an_unused_nonce(chain: DevChain) -> None:
    from dataclasses import replace

    elsewhere = replace(BASE_SEPOLIA_USDC, address="0x" + "7" * 40)
    reader = TokenReader(Rpc(chain.url, HttpClient()), elsewhere)
    for read in (reader.is_nonce_used, reader.is_nonce_used_finalized):
        with pytest.raises(RpcUnavailable, match="there is no USDC"):
            await read(NONCE[:42], NONCE)


# --- a node that says what it is told to


def scripted(answers: dict[str, Any]) -> TokenReader:
    """Return a reader whose node answers each method with the value, or in turn with the values, given for it."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = decimal_json.loads(request.content)
        result = answers[asked["method"]]
        if isinstance(result, tuple):
            result, answers[asked["method"]] = result[0], result[1:]
        return httpx.Response(200, content=decimal_json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}))

    return TokenReader(Rpc("http://node", HttpClient(httpx.MockTransport(answer))), BASE_SEPOLIA_USDC)


PAYER, PAYEE, HASH = "0x" + "a" * 40, "0x" + "b" * 40, "0x" + "c" * 64


def log(event: str, index: int, *topics: str, data: str = "0x", contract: str = USDC) -> dict[str, Any]:
    place = {"address": contract, "logIndex": hex(index), "transactionHash": HASH, "data": data, "blockNumber": "0xf"}
    return {**place, "topics": [TOPICS[event], *map(word, topics)]}


MINED = {"status": "0x1", "blockNumber": "0xf"}
USED = log("AuthorizationUsed(address,bytes32)", 4, PAYER, NONCE)


def moved(index: int, **other: Any) -> dict[str, Any]:
    return log("Transfer(address,address,uint256)", index, PAYER, PAYEE, data=word(5), **other)


def answers(receipt: Any, logs: Any = (USED,)) -> dict[str, Any]:
    if isinstance(receipt, dict):
        receipt = {"blockNumber": "0xf", **receipt}
    return {"eth_blockNumber": "0x10", "eth_getLogs": list(logs), "eth_getTransactionReceipt": receipt}


async def test_a_transfer_beside_the_nonce_and_not_after_it_settles_nothing() -> None:
    """A payer may settle two cheques in one transaction: the Transfer of one must not serve for the other."""
    for index, found in ((5, HASH), (3, None), (6, None), (7, None)):
        receipt = {"status": "0x1", "logs": [USED, moved(index)]}
        assert await scripted(answers(receipt)).settlement(PAYER, NONCE, PAYEE, 5, 0) == found


@pytest.mark.parametrize(
    "receipt",
    [
        None,
        {"status": "0x0", "logs": [moved(5)]},
        {"status": "0x1", "logs": []},
        {"status": "0x1", "logs": [moved(5, contract="0x" + "d" * 40)]},
        {"status": "0x1", "logs": ["?", {"topics": 5}, {"topics": []}]},
        {"status": "0x1", "logs": [{**moved(5), "removed": True}]},
    ],
)
async def test_a_receipt_without_the_transfer_settles_nothing(receipt: Any) -> None:
    assert await scripted(answers(receipt)).settlement(PAYER, NONCE, PAYEE, 5, 0) is None


async def test_a_log_that_was_not_asked_for_is_passed_over() -> None:
    other = log("AuthorizationUsed(address,bytes32)", 4, PAYEE, NONCE)
    reader = scripted(answers({"status": "0x1", "logs": [moved(5)]}, logs=[other, {**USED, "removed": True}]))
    assert await reader.settlement(PAYER, NONCE, PAYEE, 5, 0) is None


@pytest.mark.parametrize(
    "lie",
    [
        {"eth_blockNumber": "many"},
        {"eth_blockNumber": 7},
        {"eth_getLogs": {}},
        {"eth_getLogs": [{**USED, "transactionHash": "0x12"}]},
        {"eth_getLogs": [{**USED, "logIndex": None}]},
        {"eth_getTransactionReceipt": "yes"},
        {"eth_getTransactionReceipt": {}},
        {"eth_getTransactionReceipt": {**MINED, "logs": 5}},
        {"eth_getTransactionReceipt": {**MINED, "logs": [{**moved(5), "data": "0x" + "1" * 65}]}},
        {"eth_getTransactionReceipt": {**MINED, "blockNumber": None, "logs": [moved(5)]}},
        {"eth_getTransactionReceipt": {**MINED, "logs": [{**moved(5), "blockNumber": "0xe"}]}},
        {"eth_getTransactionReceipt": {**MINED, "logs": [{**moved(5), "blockNumber": None}]}},
    ],
)
async def test_an_answer_that_is_not_what_was_asked_is_unavailable(lie: dict[str, Any]) -> None:
    told = answers({"status": "0x1", "logs": [moved(5)]}) | lie
    with pytest.raises(RpcUnavailable):
        await scripted(told).settlement(PAYER, NONCE, PAYEE, 5, 0)


async def test_a_node_that_lags_behind_what_was_read_as_finalised_is_unavailable() -> None:
    newer, older = {"number": "0x9", "timestamp": "0x64"}, {"number": "0x8", "timestamp": "0x63"}
    reader = scripted({"eth_getBlockByNumber": (newer, older), "eth_call": "0x" + "0" * 64})
    assert await reader.finalized_time_s() == 100
    with pytest.raises(RpcUnavailable, match="finalised block 8"):
        await reader.is_nonce_used_finalized(PAYER, NONCE)


@pytest.mark.parametrize("block", [None, "0x1", {}, {"number": "0x1"}])
async def test_a_node_without_a_finalised_block_is_unavailable(block: Any) -> None:
    with pytest.raises(RpcUnavailable):
        await scripted({"eth_getBlockByNumber": block}).finalized_time_s()

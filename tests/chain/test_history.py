"""What an account did, read from a real chain: each transfer, the cheque that moved it, the cheques taken back."""

import httpx
import pytest
from eth_account import Account

from chain.cancelling import draft_cancellation, send_raw
from chain.devchain import DevAccount, DevChain, dev_account
from chain.errors import RpcRefused, RpcUnavailable
from chain.history import history
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.chain.signing import authorization_for, settle_data, signature_of
from wire import decimal_json
from wire.eip712 import cancellation_data
from wire.money import BASE_SEPOLIA_USDC

USDC = BASE_SEPOLIA_USDC.address
NONCE = "0x" + "ab" * 32


async def take_back(chain: DevChain, payer: DevAccount, nonce: str) -> str:
    """Cancel a cheque of the payer's by its own account; return the mined transaction."""
    rpc, account = Rpc(chain.url, HttpClient()), Account.from_key(payer.key)
    signed = account.sign_typed_data(full_message=cancellation_data(payer.address, nonce, BASE_SEPOLIA_USDC))
    signature = signed.signature.to_0x_hex()
    fields = await draft_cancellation(rpc, BASE_SEPOLIA_USDC, payer.address, nonce, signature)
    transaction = await send_raw(rpc, account.sign_transaction(fields).raw_transaction.to_0x_hex())
    chain.receipt(transaction)
    return transaction


async def test_every_transfer_is_there_with_the_cheque_that_moved_it(
    chain: DevChain, payer: DevAccount, seller: DevAccount
) -> None:
    # Windows of two blocks: what stands at their edges is neither lost nor told twice.
    reader = TokenReader(Rpc(chain.url, HttpClient()), BASE_SEPOLIA_USDC, log_window_blocks=2)
    start = await reader.head()
    cheques = [authorization_for(payer, seller.address, value) for value in (5, 6)]
    settled = [chain.transact(USDC, settle_data(one, signature_of(payer, one))) for one in cheques]
    by_hand = chain.mint(payer.address, 7)
    cancelled = authorization_for(payer, seller.address, 8)
    await take_back(chain, payer, cancelled.nonce)
    found = await history(reader, payer.address, start + 1, await reader.head())
    own, other = payer.address.lower(), seller.address.lower()
    assert [(one.transaction, one.sender, one.receiver, one.value_atomic, one.nonce) for one in found.moves] == [
        (settled[0], own, other, 5, cheques[0].nonce),
        (settled[1], own, other, 6, cheques[1].nonce),
        (by_hand, "0x" + "0" * 40, own, 7, None),
    ]
    assert found.cancelled == (cancelled.nonce,)
    # The other side sees money come, and no cheque of its own.
    theirs = await history(reader, seller.address, start + 1, await reader.head())
    assert [(one.value_atomic, one.nonce) for one in theirs.moves] == [(5, None), (6, None)]
    assert (await history(reader, dev_account(7).address, start + 1, await reader.head())).moves == ()


async def test_a_cancellation_is_seen_once_its_block_is_final(
    reader: TokenReader, chain: DevChain, payer: DevAccount, seller: DevAccount
) -> None:
    head = await reader.head()
    cheque = authorization_for(payer, seller.address, 5)
    transaction = await take_back(chain, payer, cheque.nonce)
    assert await reader.is_nonce_used(payer.address, cheque.nonce)
    assert await reader.cancellation(payer.address, cheque.nonce, head) is None
    chain.mine(2)
    assert await reader.cancellation(payer.address, cheque.nonce, head) == transaction
    assert await reader.cancellation(payer.address, NONCE, head) is None
    assert await reader.cancellation(seller.address, cheque.nonce, head) is None
    with pytest.raises(RpcRefused, match="used or canceled"):
        await take_back(chain, payer, cheque.nonce)


async def test_a_settled_cheque_is_not_a_cancelled_one_and_cannot_be_taken_back(
    reader: TokenReader, chain: DevChain, payer: DevAccount, seller: DevAccount
) -> None:
    head = await reader.head()
    cheque = authorization_for(payer, seller.address, 5)
    chain.transact(USDC, settle_data(cheque, signature_of(payer, cheque)))
    chain.mine(2)
    assert await reader.cancellation(payer.address, cheque.nonce, head) is None
    with pytest.raises(RpcRefused, match="used or canceled"):
        await take_back(chain, payer, cheque.nonce)


async def test_a_balance_of_an_earlier_block_is_that_blocks(
    reader: TokenReader, chain: DevChain, payer: DevAccount
) -> None:
    head = await reader.head()
    chain.mint(payer.address, 7)
    assert await reader.balance(payer.address, head) == 1_000_000_000
    assert await reader.balance(payer.address) == 1_000_000_007


@pytest.mark.parametrize("logs", [[{}], [{"topics": ["0x1"]}], ["x"], {}])
async def test_logs_that_are_none_are_not_believed(logs: object) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        asked = decimal_json.loads(request.content)
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": asked["id"], "result": logs})

    reader = TokenReader(Rpc("http://node", HttpClient(httpx.MockTransport(answer))), BASE_SEPOLIA_USDC)
    with pytest.raises(RpcUnavailable):
        await history(reader, dev_account(1).address, 1, 2)

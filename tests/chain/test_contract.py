"""The test USDC on a real EVM, against the digests of `wire`."""

from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from chain.abi import SELECTORS, TOPICS
from chain.artifacts import load_artifact
from chain.compile import HERE, artifact_text
from chain.devchain import DevAccount, DevChain, dev_account
from chain.errors import RpcRefused
from tests.chain.signing import authorization_for, settle_data, signature_of
from wire.eip712 import authorization_digest, keccak256, typed_data
from wire.money import BASE_SEPOLIA_USDC

USDC = BASE_SEPOLIA_USDC.address


def test_the_committed_artifact_is_what_the_source_compiles_to() -> None:
    assert (HERE / "artifacts" / "TestUSD.json").read_text() == artifact_text("TestUSD")


def test_deploying_the_bytecode_leaves_the_runtime_code(chain: DevChain) -> None:
    artifact = load_artifact("TestUSD")
    sent = chain.rpc("eth_sendTransaction", {"from": dev_account(0).address, "data": artifact.bytecode})
    address = chain.receipt(sent)["contractAddress"]
    assert chain.rpc("eth_getCode", address, "latest") == artifact.runtime


def test_every_selector_and_topic_written_by_hand_is_the_keccak_of_its_signature() -> None:
    assert {name: "0x" + keccak256(name.encode())[:4].hex() for name in SELECTORS} == SELECTORS
    assert {name: "0x" + keccak256(name.encode()).hex() for name in TOPICS} == TOPICS


@pytest.mark.row(16)
def test_the_digest_of_wire_is_what_eth_account_signs_and_recovers_to_the_payer(
    payer: DevAccount,
) -> None:
    authorization = authorization_for(payer, dev_account(2).address, 5)
    signed = Account.from_key(payer.key).sign_typed_data(full_message=typed_data(authorization, BASE_SEPOLIA_USDC))
    assert signed.message_hash == authorization_digest(authorization, BASE_SEPOLIA_USDC)
    message = encode_typed_data(full_message=typed_data(authorization, BASE_SEPOLIA_USDC))
    assert Account.recover_message(message, signature=signed.signature) == payer.address


@pytest.mark.row(16)
def test_the_token_settles_a_cheque_signed_over_the_digest_of_wire_once(
    chain: DevChain, payer: DevAccount, seller: DevAccount
) -> None:
    authorization = authorization_for(payer, seller.address, 1_400_000)
    digest = authorization_digest(authorization, BASE_SEPOLIA_USDC)
    signature = Account.from_key(payer.key).unsafe_sign_hash(digest).signature.to_0x_hex()
    before = chain.balance(payer.address)
    chain.transact(USDC, settle_data(authorization, signature))
    assert (chain.balance(seller.address), chain.balance(payer.address)) == (1_400_000, before - 1_400_000)
    with pytest.raises(RpcRefused, match="FiatTokenV2: authorization is used or canceled"):
        chain.transact(USDC, settle_data(authorization, signature))


@pytest.mark.row(16)
@pytest.mark.parametrize(
    "domain",
    [
        {"network": "eip155:8453"},
        {"name": "USD Coin"},
        {"version": "1"},
        {"address": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"},
    ],
)
def test_a_cheque_of_another_chain_id_or_domain_is_rejected(
    chain: DevChain, payer: DevAccount, seller: DevAccount, domain: dict[str, str]
) -> None:
    authorization = authorization_for(payer, seller.address, 5)
    signature = signature_of(payer, authorization, replace(BASE_SEPOLIA_USDC, **domain))
    with pytest.raises(RpcRefused, match="FiatTokenV2: invalid signature"):
        chain.transact(USDC, settle_data(authorization, signature))


def test_a_cheque_is_refused_in_the_words_of_fiat_token(chain: DevChain, payer: DevAccount, seller: DevAccount) -> None:
    good = authorization_for(payer, seller.address, 5)
    refused = {
        "FiatTokenV2: authorization is expired": good.model_copy(update={"valid_before": "1"}),
        "FiatTokenV2: authorization is not yet valid": good.model_copy(update={"valid_after": "99999999999"}),
        "ERC20: transfer amount exceeds balance": good.model_copy(update={"value": str(10**18)}),
        "ERC20: transfer to the zero address": good.model_copy(update={"to": "0x" + "0" * 40}),
    }
    for words, authorization in refused.items():
        with pytest.raises(RpcRefused, match=words):
            chain.transact(USDC, settle_data(authorization, signature_of(payer, authorization)))


def test_the_mirrored_signature_of_a_cheque_is_refused(chain: DevChain, payer: DevAccount, seller: DevAccount) -> None:
    authorization = authorization_for(payer, seller.address, 5)
    parts = bytes.fromhex(signature_of(payer, authorization)[2:])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    mirrored = parts[:32] + (order - int.from_bytes(parts[32:64], "big")).to_bytes(32, "big") + bytes([55 - parts[64]])
    with pytest.raises(RpcRefused, match="ECRecover: invalid signature 's' value"):
        chain.transact(USDC, settle_data(authorization, "0x" + mirrored.hex()))


def test_a_cancelled_cheque_moves_nothing(chain: DevChain, payer: DevAccount, seller: DevAccount) -> None:
    from web3 import Web3

    authorization = authorization_for(payer, seller.address, 5)
    document = typed_data(authorization, BASE_SEPOLIA_USDC)
    document["types"] = {
        "EIP712Domain": document["types"]["EIP712Domain"],
        "CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}],
    }
    document["primaryType"] = "CancelAuthorization"
    document["message"] = {"authorizer": payer.address, "nonce": authorization.nonce}
    signed = Account.from_key(payer.key).sign_typed_data(full_message=document)
    token = Web3().eth.contract(address=USDC, abi=load_artifact("TestUSD").abi)
    arguments = [payer.address, authorization.nonce, signed.v, signed.r.to_bytes(32), signed.s.to_bytes(32)]
    chain.transact(USDC, token.encode_abi("cancelAuthorization", args=arguments))
    with pytest.raises(RpcRefused, match="used or canceled"):
        chain.transact(USDC, settle_data(authorization, signature_of(payer, authorization)))
    assert chain.balance(seller.address) == 0


def test_an_allowance_bounds_what_another_may_take(chain: DevChain, payer: DevAccount, seller: DevAccount) -> None:
    from web3 import Web3

    token = Web3().eth.contract(address=USDC, abi=load_artifact("TestUSD").abi)
    taker = dev_account(0).address
    approve = {"from": payer.address, "to": USDC, "data": token.encode_abi("approve", args=[taker, 10])}
    chain.receipt(chain.rpc("eth_sendTransaction", approve))
    chain.transact(USDC, token.encode_abi("transferFrom", args=[payer.address, seller.address, 7]))
    with pytest.raises(RpcRefused, match="exceeds allowance"):
        chain.transact(USDC, token.encode_abi("transferFrom", args=[payer.address, seller.address, 4]))
    assert chain.balance(seller.address) == 7

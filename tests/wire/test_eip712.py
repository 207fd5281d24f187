"""The digest of a cheque, with eth-account and the official package as oracles."""

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization

from wire.eip712 import authorization_digest, checksum_address, keccak256, typed_data
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC
from wire.x402 import Authorization

uint256 = st.integers(0, 2**256 - 1)
addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
authorizations = st.fixed_dictionaries(
    {
        "from": addresses,
        "to": addresses,
        "value": uint256.map(str),
        "validAfter": uint256.map(str),
        "validBefore": uint256.map(str),
        "nonce": st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex()),
    }
).map(Authorization.model_validate)
CHEQUE = Authorization.model_validate(
    {
        "from": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "to": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "value": "1400000",
        "validAfter": "0",
        "validBefore": "1800000000",
        "nonce": "0x" + "ab" * 32,
    }
)


@given(authorizations, st.sampled_from([BASE_SEPOLIA_USDC, BASE_USDC]))
def test_the_digest_is_the_one_eth_account_signs(authorization: Authorization, asset) -> None:
    signable = encode_typed_data(full_message=typed_data(authorization, asset))
    assert authorization_digest(authorization, asset) == bytes(_hash_eip191_message(signable))


@given(authorizations)
def test_the_digest_is_the_one_the_official_package_signs(authorization: Authorization) -> None:
    theirs = ExactEIP3009Authorization(
        from_address=authorization.from_,
        to=authorization.to,
        value=authorization.value,
        valid_after=authorization.valid_after,
        valid_before=authorization.valid_before,
        nonce=authorization.nonce,
    )
    asset = BASE_SEPOLIA_USDC
    expected = hash_eip3009_authorization(theirs, asset.chain_id, asset.address, asset.name, asset.version)
    assert authorization_digest(authorization, asset) == expected


def test_the_typed_data_names_every_field_of_eip_3009() -> None:
    document = typed_data(CHEQUE, BASE_SEPOLIA_USDC)
    assert document["primaryType"] == "TransferWithAuthorization"
    assert document["domain"] == {
        "name": "USDC",
        "version": "2",
        "chainId": 84532,
        "verifyingContract": BASE_SEPOLIA_USDC.address,
    }
    assert document["message"] == {
        "from": CHEQUE.from_,
        "to": CHEQUE.to,
        "value": 1_400_000,
        "validAfter": 0,
        "validBefore": 1_800_000_000,
        "nonce": CHEQUE.nonce,
    }


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
    ],
)
def test_keccak_is_ethereums(data: bytes, digest: str) -> None:
    assert keccak256(data).hex() == digest


def test_a_type_hash_is_the_one_the_token_contract_holds() -> None:
    # TRANSFER_WITH_AUTHORIZATION_TYPEHASH, as EIP-3009 prints it.
    kind = (
        b"TransferWithAuthorization(address from,address to,uint256 value,"
        b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    )
    assert keccak256(kind).hex() == "7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"


def test_another_asset_is_another_digest() -> None:
    assert authorization_digest(CHEQUE, BASE_SEPOLIA_USDC) != authorization_digest(CHEQUE, BASE_USDC)


@pytest.mark.parametrize(
    "address",
    [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_addresses_are_written_in_the_mixed_case_of_eip_55(address: str) -> None:
    assert checksum_address(address.lower()) == address
    assert checksum_address("0x" + address[2:].upper()) == address

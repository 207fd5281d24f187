"""A text that an account signs is known by its address, as every wallet knows it."""

from eth_account import Account
from eth_account.messages import encode_defunct

from chain.devchain import dev_account
from chain.keystore import account_from_key
from chain.signed import signed, signer_of

ALICE, BOB = account_from_key(dev_account(1).key), account_from_key(dev_account(2).key)


def test_who_signed_a_text_is_known_and_another_text_is_somebody_elses() -> None:
    signature = signed(ALICE, "grüße {1}")
    assert len(signature) == 132
    assert signer_of("grüße {1}", signature) == ALICE.address
    assert signer_of("grüße {2}", signature) not in (ALICE.address, BOB.address)
    assert signer_of("grüße {1}", signed(BOB, "grüße {1}")) == BOB.address


def test_it_is_what_a_wallet_signs() -> None:
    theirs = Account.sign_message(encode_defunct(text="hello"), dev_account(1).key)
    assert signed(ALICE, "hello") == f"0x{bytes(theirs.signature).hex()}"


def test_what_is_no_signature_is_nobodys() -> None:
    for nothing in ("", "0x", "0x" + "00" * 65, "0x" + "ff" * 65, "zz", "0x" + "11" * 64):
        assert signer_of("hello", nothing) is None

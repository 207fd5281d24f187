"""
The agent's key: any eth-account `BaseAccount`, from an encrypted keystore file or from the environment.

A key is never logged, never in a repr, and read when it is first needed.
"""

import asyncio
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from agent.core.errors import WalletError
from chain import keystore
from chain.errors import KeystoreError

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount

P = ParamSpec("P")
T = TypeVar("T")


class EvmWallet:
    """
    Signs with the account that `load` returns, loaded once, when it is first needed.

    Off the event loop: opening a keystore takes a second, and a remote signer's account waits for its network.
    """

    def __init__(self, load: Callable[[], "BaseAccount"]) -> None:
        self._load = cache(load)

    async def address(self) -> str:
        """Return the payer's address. Raises WalletError."""
        return str((await asyncio.to_thread(self._load)).address)

    async def sign(self, typed_data: dict[str, Any]) -> str:
        """Return the 65-byte EIP-712 signature of `typed_data`, 0x-hex. Raises WalletError."""
        return await asyncio.to_thread(self._sign, typed_data)

    async def sign_transaction(self, fields: dict[str, Any]) -> str:
        """Return `fields` signed, the bytes to send, 0x-hex. Raises WalletError."""
        account = await asyncio.to_thread(self._load)
        try:
            signed = await asyncio.to_thread(account.sign_transaction, fields)
        except Exception as error:
            raise WalletError(f"the signer failed: {type(error).__name__}") from None
        return "0x" + bytes(signed.raw_transaction).hex()

    def _sign(self, typed_data: dict[str, Any]) -> str:
        account = self._load()
        try:
            # Every account of eth-account's family has it; their common base does not declare it.
            signed = account.sign_typed_data(full_message=typed_data)  # type: ignore[attr-defined]
        except Exception as error:
            # A remote signer may fail in any way; what it said may hold a secret, its kind does not.
            raise WalletError(f"the signer failed: {type(error).__name__}") from None
        return "0x" + bytes(signed.signature).hex()


def _ours(of_chain: Callable[P, T]) -> Callable[P, T]:
    """Return `of_chain` that raises WalletError where it raised KeystoreError."""

    @wraps(of_chain)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return of_chain(*args, **kwargs)
        except KeystoreError as error:
            raise WalletError(str(error)) from None

    return call


account_from_key = _ours(keystore.account_from_key)
account_from_keystore = _ours(keystore.account_from_keystore)
create_keystore = _ours(keystore.create_keystore)
write_secret = _ours(keystore.write_secret)

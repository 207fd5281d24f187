"""
The agent's key: any eth-account `BaseAccount`, from an encrypted keystore file or from the environment.

A key is never logged, never in a repr, and read when it is first needed.
"""

import asyncio
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.core.errors import WalletError

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount


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


def account_from_key(private_key: str) -> "BaseAccount":
    """Return the account of a raw 32-byte key, hex. Raises WalletError without repeating the key."""
    from eth_account import Account

    try:
        account: BaseAccount = Account.from_key(private_key.strip())
    except Exception:
        raise WalletError("the private key is not 32 bytes of hex") from None
    return account


def account_from_keystore(path: Path, password: str) -> "BaseAccount":
    """Return the account in an encrypted keystore file (Web3 Secret Storage v3). Raises WalletError."""
    from eth_account import Account

    try:
        key = Account.decrypt(json.loads(path.read_text()), password)
    except FileNotFoundError:
        raise WalletError(f"there is no keystore at {path}") from None
    except OSError as error:
        raise WalletError(f"the keystore at {path} cannot be read: {error.strerror}") from None
    except Exception:
        # Wrong password, other JSON, a cipher or version that eth-keyfile does not know: it fails in many ways.
        raise WalletError(f"the keystore at {path} does not open with this password") from None
    account: BaseAccount = Account.from_key(key)
    return account


def create_keystore(path: Path, password: str) -> str:
    """
    Make a new key, write it encrypted to `path` (mode 0600), return its address.

    Raises:
        WalletError: there is a file already; a key is never overwritten.
    """
    from eth_account import Account

    account = Account.create()
    write_secret(path, json.dumps(Account.encrypt(account.key, password)))
    return str(account.address)


def write_secret(path: Path, secret: str) -> str:
    """
    Write `secret` to a new file that its owner alone can read (mode 0600), whole or not at all, and return it.

    Raises:
        WalletError: there is a file already; a secret is never overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        raise WalletError(f"there is a file at {path} already; it is never overwritten") from None
    finally:
        draft.unlink()
    return secret

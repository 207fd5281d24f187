"""
Keys of accounts: raw, or in an encrypted file that its owner alone can read. Never logged, never in a repr.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chain.errors import KeystoreError

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount


def account_from_key(private_key: str) -> "BaseAccount":
    """Return the account of a raw 32-byte key, hex. Raises KeystoreError without repeating the key."""
    from eth_account import Account

    try:
        account: BaseAccount = Account.from_key(private_key.strip())
    except Exception:
        raise KeystoreError("the private key is not 32 bytes of hex") from None
    return account


def account_from_keystore(path: Path, password: str) -> "BaseAccount":
    """Return the account in an encrypted keystore file (Web3 Secret Storage v3). Raises KeystoreError."""
    from eth_account import Account

    try:
        key = Account.decrypt(json.loads(path.read_text()), password)
    except FileNotFoundError:
        raise KeystoreError(f"there is no keystore at {path}") from None
    except OSError as error:
        raise KeystoreError(f"the keystore at {path} cannot be read: {error.strerror}") from None
    except Exception:
        # Wrong password, other JSON, a cipher or version that eth-keyfile does not know: it fails in many ways.
        raise KeystoreError(f"the keystore at {path} does not open with this password") from None
    account: BaseAccount = Account.from_key(key)
    return account


def create_keystore(path: Path, password: str) -> str:
    """
    Make a new key, write it encrypted to `path` (mode 0600), return its address.

    Raises:
        KeystoreError: there is a file already; a key is never overwritten.
    """
    from eth_account import Account

    account = Account.create()
    write_secret(path, json.dumps(Account.encrypt(account.key, password)))
    return str(account.address)


def write_secret(path: Path, secret: str) -> str:
    """
    Write `secret` to a new file that its owner alone can read (mode 0600), whole or not at all, and return it.

    Raises:
        KeystoreError: there is a file already; a secret is never overwritten.
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
        raise KeystoreError(f"there is a file at {path} already; it is never overwritten") from None
    finally:
        draft.unlink()
    return secret

"""Keys of accounts: raw ones refused without being repeated, encrypted ones in files that are their owner's alone."""

import json
import stat
from pathlib import Path

import pytest

from chain.errors import KeystoreError
from chain.keystore import account_from_key, account_from_keystore, create_keystore, write_secret

KEY = "0x" + "4c" * 32


@pytest.mark.parametrize("key", ["", "0x", KEY[:-2], KEY + "00", "zz" * 32, "00" * 32, "correct horse battery"])
def test_what_is_no_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(KeystoreError, match=r"^the private key is not 32 bytes of hex$") as refused:
        account_from_key(key)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("wallet") / "new" / "wallet.json"
    return path, create_keystore(path, "correct horse")


@pytest.mark.row(24)
def test_a_keystore_is_encrypted_and_its_owners_alone_and_opens_as_its_address(keystore: tuple[Path, str]) -> None:
    path, address = keystore
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert document["version"] == 3
    assert document["crypto"]["kdf"] in ("scrypt", "pbkdf2")
    account = account_from_keystore(path, "correct horse")
    assert account.address == address
    assert bytes(account.key).hex() not in path.read_text().lower()


def test_a_keystore_does_not_open_with_another_password(keystore: tuple[Path, str]) -> None:
    with pytest.raises(KeystoreError, match=r"does not open with this password$") as refused:
        account_from_keystore(keystore[0], "correct horse ")
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"version": 3}', '{"version": 9, "crypto": {}}', "\x00"])
def test_a_file_that_is_no_keystore_does_not_open(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(text)
    with pytest.raises(KeystoreError, match=r"does not open"):
        account_from_keystore(path, "correct horse")


def test_a_keystore_that_is_not_there_or_is_a_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match=r"^there is no keystore at "):
        account_from_keystore(tmp_path / "wallet.json", "")
    with pytest.raises(KeystoreError, match=r"cannot be read: Is a directory$"):
        account_from_keystore(tmp_path, "")


def test_a_keystore_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    path.write_text("the only copy")
    with pytest.raises(KeystoreError, match=r"already; it is never overwritten$"):
        create_keystore(path, "correct horse")
    assert path.read_text() == "the only copy"


def test_a_secret_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "password"
    assert write_secret(path, "s3cret") == "s3cret"
    assert path.read_text() == "s3cret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeystoreError, match=f"^there is a file at {path} already; it is never overwritten$"):
        write_secret(path, "another")

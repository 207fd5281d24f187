"""The agent's key: kept encrypted, opened late, never shown; or held by somebody else who signs by HTTP."""

import io
import json
import logging
import stat
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.datastructures import SignedMessage
from eth_account.messages import encode_typed_data
from eth_account.signers.base import BaseAccount
from eth_utils.conversions import to_bytes
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.cheque import authorization_for, payment_nonce
from agent.core.errors import WalletError
from agent.edges.wallet_evm import (
    EvmWallet,
    account_from_key,
    account_from_keystore,
    create_keystore,
    write_secret,
)
from agent.ports import Wallet
from agent.wiring import open_wallet
from tests.agent.core.values import T0, USDC, requirements
from wire.eip712 import typed_data

KEY = "0x" + "4c" * 32
ADDRESS = Account.from_key(KEY).address


def a_document(payer: str = ADDRESS) -> dict[str, Any]:
    return typed_data(authorization_for(requirements(), payer, payment_nonce("run_1", 1), T0), USDC)


async def signer_of(wallet: Wallet, document: dict[str, Any]) -> str:
    signature = await wallet.sign(document)
    assert len(signature) == 2 + 2 * 65
    assert signature.startswith("0x")
    return str(Account.recover_message(encode_typed_data(full_message=document), signature=signature))


@pytest.mark.row(16)
@pytest.mark.parametrize("key", [KEY, KEY[2:], f"  {KEY}\n"])
async def test_a_raw_key_signs_as_its_address(key: str) -> None:
    wallet = EvmWallet(lambda: account_from_key(key))
    assert await wallet.address() == ADDRESS
    assert await signer_of(wallet, a_document()) == ADDRESS
    assert await wallet.sign(a_document()) == await wallet.sign(a_document())


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("wallet") / "new" / "wallet.json"
    return path, create_keystore(path, "correct horse")


@pytest.mark.row(24)
async def test_a_keystore_is_encrypted_and_its_owners_alone_and_opens_as_its_address(
    keystore: tuple[Path, str],
) -> None:
    path, address = keystore
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert document["version"] == 3
    assert document["crypto"]["kdf"] in ("scrypt", "pbkdf2")
    account = account_from_keystore(path, "correct horse")
    assert bytes(account.key).hex() not in path.read_text().lower()
    assert await signer_of(EvmWallet(lambda: account), a_document(address)) == address


def test_a_key_that_cannot_be_read_is_the_wallets_error(tmp_path: Path) -> None:
    for broken in (
        lambda: account_from_key(KEY[:-2]),
        lambda: account_from_keystore(tmp_path / "none.json", ""),
        lambda: create_keystore(tmp_path, "correct horse"),
        lambda: write_secret(tmp_path, "s3cret"),
    ):
        with pytest.raises(WalletError) as refused:
            broken()
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


async def test_a_key_is_read_when_it_is_first_needed_and_once() -> None:
    loads = []

    def load() -> BaseAccount:
        loads.append(1)
        return account_from_key(KEY)

    wallet = EvmWallet(load)
    assert loads == []
    for _ in range(2):
        await wallet.address()
        await wallet.sign(a_document())
    assert loads == [1]


async def test_a_key_that_could_not_be_read_is_tried_again() -> None:
    answers: list[BaseAccount] = []

    def load() -> BaseAccount:
        if not answers:
            raise WalletError("not yet")
        return answers[0]

    wallet = EvmWallet(load)
    with pytest.raises(WalletError, match=r"not yet"):
        await wallet.address()
    answers.append(account_from_key(KEY))
    assert await wallet.address() == ADDRESS


class Signer(BaseHTTPRequestHandler):
    """Signs the EIP-712 document that is posted; the key never leaves it."""

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["content-length"])))
        broken = document["message"]["value"] == 0
        signed = Account.from_key(KEY).sign_typed_data(full_message=document)
        self.send_response(500 if broken else 200)
        self.end_headers()
        self.wfile.write(f"broken with {KEY}".encode() if broken else signed.signature)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class RemoteAccount(BaseAccount):
    """An account whose key is another process's: everything but typed data is refused."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def address(self) -> str:
        return str(ADDRESS)

    def sign_typed_data(self, *, full_message: dict[str, Any]) -> SignedMessage:
        with httpx.Client(trust_env=False, timeout=5) as client:
            signature = client.post(self._url, json=full_message).raise_for_status().content
        return SignedMessage(to_bytes(0), 0, 0, 0, signature)

    def sign_message(self, signable_message: Any) -> Any:
        raise PermissionError("typed data only")

    def unsafe_sign_hash(self, message_hash: Any) -> Any:
        raise PermissionError("typed data only")

    def sign_transaction(self, transaction_dict: Any) -> Any:
        raise PermissionError("typed data only")


@pytest.fixture
def signer() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Signer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


async def test_an_account_that_signs_elsewhere_is_a_wallet_like_any_other(signer: str) -> None:
    wallet = EvmWallet(lambda: RemoteAccount(signer))
    assert await wallet.address() == ADDRESS
    assert await signer_of(wallet, a_document()) == ADDRESS
    local = EvmWallet(lambda: account_from_key(KEY))
    assert await wallet.sign(a_document()) == await local.sign(a_document())


@pytest.mark.row(24)
async def test_a_signer_that_fails_is_named_by_its_kind_and_not_by_its_words(signer: str) -> None:
    document = a_document()
    document["message"]["value"] = 0
    with pytest.raises(WalletError, match=r"^the signer failed: HTTPStatusError$") as failed:
        await EvmWallet(lambda: RemoteAccount(signer)).sign(document)
    assert failed.value.__suppress_context__
    with pytest.raises(WalletError, match=r"^the signer failed: ConnectError$"):
        await EvmWallet(lambda: RemoteAccount("http://127.0.0.1:1/")).sign(a_document())


@pytest.mark.row(24)
async def test_no_key_is_in_any_log_record_or_repr(keystore: tuple[Path, str]) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        settings = AgentSettings(
            _env_file=None, private_key=SecretStr(KEY), keystore_password=SecretStr("correct horse")
        )
        wallet = open_wallet(settings)
        assert wallet is not None
        await wallet.sign(a_document())
        stored = AgentSettings(_env_file=None, keystore_path=keystore[0], keystore_password=SecretStr("correct horse"))
        opened = open_wallet(stored)
        assert opened is not None
        await opened.address()
        account = account_from_key(KEY)
        for value in (settings, wallet, stored, opened, account, settings.model_dump(), settings.model_dump_json()):
            logging.getLogger("agent").info("%s %r", value, value)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    secret = bytes(account_from_keystore(stored.keystore_path, "correct horse").key).hex()
    everything = said.getvalue().lower()
    assert "agentsettings" in everything or "private_key" in everything
    assert KEY[2:] not in everything
    assert secret not in everything
    assert "correct horse" not in everything

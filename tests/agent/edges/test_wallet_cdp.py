"""The agent's key in Coinbase's custody: what CDP is asked, and what is believed of its answers."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.cheque import authorization_for, payment_nonce
from agent.core.errors import WalletError
from agent.edges.wallet_cdp import CdpWallet, cdp_authorize
from agent.edges.wallet_evm import EvmWallet
from agent.ports import Wallet
from agent.wiring import open_wallet
from outbound.http import HttpClient
from tests.agent.core.values import T0, USDC, requirements
from wire.eip712 import typed_data

KEY = "0x" + "4c" * 32
ACCOUNT = Account.from_key(KEY)
DOCUMENT = typed_data(authorization_for(requirements(), ACCOUNT.address, payment_nonce("run_1", 1), T0), USDC)
CDP_KEYS = {
    "cdp_api_key_id": SecretStr("key-id"),
    "cdp_api_key_secret": SecretStr("hush-hush"),
    "cdp_wallet_secret": SecretStr("hush-hush"),
}


class Cdp(httpx.AsyncBaseTransport):
    """CDP's API with one account, named `payer`. `answer` replaces what it says."""

    def __init__(self, answer: httpx.Response | Exception | None = None) -> None:
        self.answer = answer
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == "api.cdp.coinbase.com"
        body = json.loads(request.content) if request.content else None
        # CDP holds the hash of the sorted body against what the SDK signed.
        assert body is None or request.content == json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        # The request is authorised as it was sent: host, path and body are what was signed.
        signed = json.dumps([request.method, request.url.host, request.url.raw_path.decode(), body], sort_keys=True)
        assert request.headers["authorization"] == f"Bearer {signed}"
        self.paths.append(f"{request.method} {request.url.path}")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or self._serve(request.url.path, body)

    def _serve(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        if path == "/platform/v2/evm/accounts/by-name/payer":
            return httpx.Response(200, json={"address": ACCOUNT.address, "name": "payer"})
        if path == f"/platform/v2/evm/accounts/{ACCOUNT.address}/sign/typed-data":
            signed = ACCOUNT.sign_message(encode_typed_data(full_message=body))
            return httpx.Response(200, json={"signature": "0x" + signed.signature.hex()})
        return httpx.Response(404, json={"errorType": "not_found"})


def authorize(method: str, host: str, path: str, body: dict[str, Any] | None) -> dict[str, str]:
    return {"authorization": f"Bearer {json.dumps([method, host, path, body], sort_keys=True)}"}


def wallet(cdp: Cdp, account: str = "payer") -> CdpWallet:
    return CdpWallet(lambda: authorize, HttpClient(cdp), account)


async def signer_of(wallet: Wallet) -> str:
    signature = await wallet.sign(DOCUMENT)
    return str(Account.recover_message(encode_typed_data(full_message=DOCUMENT), signature=signature))


async def test_a_named_account_signs_as_its_address_which_is_asked_for_once() -> None:
    cdp = Cdp()
    payer = wallet(cdp)
    assert await payer.address() == ACCOUNT.address
    assert await signer_of(payer) == ACCOUNT.address
    assert cdp.paths == [
        "GET /platform/v2/evm/accounts/by-name/payer",
        f"POST /platform/v2/evm/accounts/{ACCOUNT.address}/sign/typed-data",
    ]


async def test_an_account_known_by_its_address_is_not_looked_up() -> None:
    cdp = Cdp()
    payer = wallet(cdp, ACCOUNT.address)
    assert await payer.address() == ACCOUNT.address
    assert cdp.paths == []
    assert await signer_of(payer) == ACCOUNT.address


async def test_an_account_that_is_not_there_is_named_by_its_variable() -> None:
    with pytest.raises(WalletError, match="no account of that name: X402_WALLET_ID"):
        await wallet(Cdp(), "nobody/../payer").address()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(401, json={"errorMessage": "key hush-hush is wrong"}), r"^CDP answered 401$"),
        (httpx.Response(500), r"^CDP answered 500$"),
        (httpx.Response(302, headers={"location": "http://evil.example"}), r"^CDP answered 302$"),
        (httpx.Response(200, content=b"<html>"), r"^CDP answered 200$"),
        (httpx.Response(200, json=["0x"]), r"^CDP answered 200$"),
        (httpx.Response(200, json={}), r"^CDP's answer is not of its API$"),
        (httpx.Response(200, json={"signature": "0x00"}), r"^CDP's answer is not of its API$"),
        (httpx.Response(200, json={"signature": ["0x" + "00" * 65]}), r"^CDP's answer is not of its API$"),
        (httpx.Response(200, content=b" " * 100_000), r"^CDP did not answer: .* exceeds"),
        (httpx.ConnectError("refused"), r"^CDP did not answer: .*api\.cdp\.coinbase\.com"),
    ],
)
async def test_what_is_not_a_signature_is_a_missing_signer(answer: httpx.Response | Exception, told: str) -> None:
    with pytest.raises(WalletError, match=told) as refused:
        await wallet(Cdp(answer), ACCOUNT.address).sign(DOCUMENT)
    assert refused.value.retryable
    assert "hush" not in str(refused.value)


async def test_keys_that_cannot_be_read_are_not_repeated() -> None:
    def broken(*request: Any) -> dict[str, str]:
        raise ValueError("hush-hush is not a key")

    with pytest.raises(WalletError, match=r"^CDP's keys cannot sign a request: ValueError$") as refused:
        await CdpWallet(lambda: broken, HttpClient(Cdp()), "payer").address()
    assert refused.value.__suppress_context__


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cdp", None)
    with pytest.raises(WalletError, match=r"pip install 'livery\[cdp\]'"):
        cdp_authorize("id", "secret", "secret")


def test_the_sdk_signs_the_request_as_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = ModuleType("cdp.auth.utils.http")
    sdk.GetAuthHeadersOptions = SimpleNamespace  # type: ignore[attr-defined]
    sdk.get_auth_headers = lambda options: {"given": json.dumps(vars(options))}  # type: ignore[attr-defined]
    for name in ("cdp", "cdp.auth", "cdp.auth.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cdp.auth.utils.http", sdk)
    given = json.loads(cdp_authorize("id", "of-key", "of-wallet")("POST", "host", "/path", {"a": 1})["given"])
    assert given == {
        "api_key_id": "id",
        "api_key_secret": "of-key",
        "wallet_secret": "of-wallet",
        "request_method": "POST",
        "request_host": "host",
        "request_path": "/path",
        "request_body": {"a": 1},
        "source": "livery",
    }


def settings(tmp_path: Path, **changes: Any) -> AgentSettings:
    values: dict[str, Any] = {
        "keystore_path": tmp_path / "wallet.json",
        "mainnet_confirmed_path": tmp_path / "confirmed",
    }
    return AgentSettings(_env_file=None, **values | changes)


def test_a_raw_key_wins_over_cdp_and_cdp_over_a_keystore(tmp_path: Path) -> None:
    assert open_wallet(settings(tmp_path)) is None
    assert isinstance(open_wallet(settings(tmp_path, **CDP_KEYS)), CdpWallet)
    (tmp_path / "wallet.json").write_text("{}")
    assert isinstance(open_wallet(settings(tmp_path, **CDP_KEYS)), CdpWallet)
    assert isinstance(open_wallet(settings(tmp_path)), EvmWallet)
    assert isinstance(open_wallet(settings(tmp_path, **CDP_KEYS, private_key=SecretStr(KEY))), EvmWallet)


@pytest.mark.parametrize("missing", sorted(CDP_KEYS))
def test_two_of_the_three_settings_are_no_wallet(tmp_path: Path, missing: str) -> None:
    keys = {name: value for name, value in CDP_KEYS.items() if name != missing}
    assert open_wallet(settings(tmp_path, **keys)) is None


async def test_the_wallet_secret_is_never_a_key_of_the_chain(tmp_path: Path) -> None:
    keys = CDP_KEYS | {"cdp_wallet_secret": SecretStr(KEY)}
    elsewhere = "0x" + "11" * 20
    payer = open_wallet(settings(tmp_path, **keys, wallet_id=elsewhere), HttpClient(Cdp()))
    assert isinstance(payer, CdpWallet)
    assert await payer.address() == elsewhere


async def test_a_cdp_account_is_named_and_on_mainnet_confirmed_first(tmp_path: Path) -> None:
    unnamed = open_wallet(settings(tmp_path, **CDP_KEYS), HttpClient(Cdp()))
    assert unnamed is not None
    with pytest.raises(WalletError, match="needs X402_WALLET_ID"):
        await unnamed.address()
    mainnet = open_wallet(settings(tmp_path, **CDP_KEYS, wallet_id="payer", network="base"), HttpClient(Cdp()))
    assert mainnet is not None
    with pytest.raises(WalletError, match="mainnet was never confirmed"):
        await mainnet.address()

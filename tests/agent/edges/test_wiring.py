"""Joining the parts from settings, and the chain's errors made ours."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.errors import ChainUnavailable, WalletError
from agent.core.planning import Question
from agent.core.policy import SpendingPolicy
from agent.edges.artifacts_folder import FolderArtifacts
from agent.edges.chain_evm import EvmChain
from agent.edges.planner_stub import StubPlanner
from agent.edges.store_mongo import MongoStore
from agent.edges.store_sqlite import SqliteStore
from agent.edges.wallet_evm import EvmWallet, account_from_keystore
from agent.ports import Limits
from agent.wiring import (
    create_wallet,
    keystore_password,
    open_agent,
    open_planner,
    open_store,
    open_wallet,
    spending_policy,
)
from chain.errors import RpcUnavailable
from outbound.http import HttpClient
from tests.agent.core.values import a_run, a_vendor, at
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC

KEY = "0x" + "4c" * 32


def settings(tmp_path: Path, **changes: Any) -> AgentSettings:
    values: dict[str, Any] = {
        "database_url": SecretStr(f"sqlite:///{tmp_path}/livery.db"),
        "keystore_path": tmp_path / "wallet.json",
        "keystore_password_path": tmp_path / "wallet.password",
    }
    return AgentSettings(_env_file=None, **values | changes)


def with_url(url: str) -> AgentSettings:
    return AgentSettings(_env_file=None, database_url=SecretStr(url), database_name="fallback")


async def test_a_path_opens_sqlite(tmp_path: Path) -> None:
    store = open_store(settings(tmp_path))
    assert isinstance(store, SqliteStore)
    await store.migrate()
    assert (tmp_path / "livery.db").exists()
    await store.close()


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
async def test_a_mongodb_url_opens_mongodb_and_connects_to_nothing_yet(scheme: str) -> None:
    store = open_store(with_url(f"{scheme}://user:hush@nowhere.invalid/named?replicaSet=rs0"))
    assert isinstance(store, MongoStore)
    assert "hush" not in repr(store)
    await store.close()


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("postgres://user:hush@host/db", "postgres"),
        ("livery.db", "nothing"),
        ("sqlite:livery.db", "sqlite"),
        ("sqlite://livery.db", "sqlite"),
    ],
)
def test_a_url_of_another_kind_is_refused_without_showing_it(url: str, scheme: str) -> None:
    with pytest.raises(ValueError, match=f"begins with sqlite:///, mongodb:// or mongodb\\+srv://, not {scheme}") as no:
        open_store(with_url(url))
    assert "hush" not in str(no.value)


def test_the_policy_is_the_settings_in_atomic_units(tmp_path: Path) -> None:
    caps = {
        "payment_max": Decimal("0.000001"),
        "run_max": Decimal("2.5"),
        "vendor_day_max": Decimal(3),
        "wallet_day_max": Decimal(4),
    }
    assert spending_policy(settings(tmp_path, **caps)) == SpendingPolicy(
        asset=BASE_SEPOLIA_USDC,
        payment_atomic_max=1,
        run_atomic_max=2_500_000,
        vendor_day_atomic_max=3_000_000,
        wallet_day_atomic_max=4_000_000,
    )
    assert spending_policy(settings(tmp_path, network="base")).asset == BASE_USDC
    with pytest.raises(ValueError, match=r"USDC has 6 decimals"):
        spending_policy(settings(tmp_path, payment_max=Decimal("0.0000001")))


def test_without_a_key_there_is_no_wallet(tmp_path: Path) -> None:
    assert open_wallet(settings(tmp_path)) is None


async def test_a_made_wallet_opens_and_is_not_made_again(tmp_path: Path) -> None:
    mine = settings(tmp_path / "new")
    address = create_wallet(mine)
    wallet = open_wallet(mine)
    assert isinstance(wallet, EvmWallet)
    assert await wallet.address() == address
    with pytest.raises(WalletError, match=r"never overwritten"):
        create_wallet(mine)


def test_a_password_comes_from_the_setting_then_from_its_file(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match=r"none is set and none is in .*wallet.password$"):
        keystore_password(settings(tmp_path))
    (tmp_path / "wallet.password").write_text("from the file\n")
    assert keystore_password(settings(tmp_path)) == "from the file"
    assert keystore_password(settings(tmp_path, keystore_password=SecretStr("set"))) == "set"


async def test_a_mainnet_key_is_not_opened_before_it_was_confirmed(tmp_path: Path) -> None:
    confirmed = tmp_path / "confirmed"
    mine = settings(tmp_path, network="base", private_key=SecretStr(KEY), mainnet_confirmed_path=confirmed)
    wallet = open_wallet(mine)
    assert wallet is not None
    with pytest.raises(WalletError, match=r"mainnet was never confirmed"):
        await wallet.address()
    confirmed.write_text("yes")
    assert (await wallet.address()).startswith("0x")
    confirmed.unlink()
    on_host = open_wallet(mine.model_copy(update={"mainnet_confirmed": True}))
    assert on_host is not None
    assert await on_host.address() == await wallet.address()


async def test_an_agent_is_joined_from_its_settings(tmp_path: Path) -> None:
    limits = {"lease_s": 7, "poll_interval_s": 3, "attempts_max": 2, "artifact_bytes_max": 5}
    agent = open_agent(settings(tmp_path, private_key=SecretStr(KEY), **limits))
    assert agent.planner.mode == "bandit"
    assert isinstance(agent.chain, EvmChain)
    assert agent.wallet is not None
    assert agent.limits == Limits(artifacts_s=2, **limits)
    assert isinstance(agent.artifacts, FolderArtifacts)
    await agent.store.close()


@pytest.mark.parametrize(
    ("mode", "key", "opened"),
    [
        (None, None, "bandit"),
        (None, "secret", "llm"),
        ("stub", "secret", "stub"),
        ("bandit", "secret", "bandit"),
        ("llm", None, "llm"),
        ("ab", None, "ab"),
    ],
)
def test_the_planner_is_the_one_asked_for_or_the_best_there_is(
    tmp_path: Path, mode: str | None, key: str | None, opened: str
) -> None:
    secret = None if key is None else SecretStr(key)
    assert open_planner(settings(tmp_path, planner_mode=mode, llm_api_key=secret), HttpClient()).mode == opened


async def test_without_a_model_ab_is_the_bandit_and_the_stub(tmp_path: Path) -> None:
    planner = open_planner(settings(tmp_path, planner_mode="ab"), HttpClient())
    wish = await planner.propose(Question(run=a_run(), vendors=(a_vendor(1),), standings=(), now=at(0)))
    assert wish.other is not None
    assert {wish.mode, wish.other.mode} == {"bandit", "stub"}


@pytest.mark.row(9)
async def test_the_stub_planner_needs_no_network_and_takes_the_first_vendor() -> None:
    planner = StubPlanner()
    question = Question(run=a_run(), vendors=(a_vendor(2), a_vendor(1)), standings=(), now=at(0))
    proposal = await planner.propose(question)
    assert (planner.mode, proposal.mode, proposal.vendor_id) == ("stub", "stub", "gpu_vendor_2")


class Node(httpx.AsyncBaseTransport):
    """A node that answers every request the same way."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._answer is None:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, content=self._answer)


WHO = "0x" + "11" * 20
QUESTIONS: dict[str, tuple[Any, ...]] = {
    "head": (),
    "finalized_time_s": (),
    "is_nonce_used": (WHO, "0x" + "00" * 32),
    "is_nonce_used_finalized": (WHO, "0x" + "00" * 32),
    "settlement": (WHO, "0x" + "00" * 32, WHO, 1, 0),
    "transfers": ("0x" + "00" * 32, WHO, WHO),
    "balance": (WHO,),
}


@pytest.mark.parametrize(
    "answer", [None, b"<html>", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}']
)
@pytest.mark.parametrize("question", sorted(QUESTIONS))
async def test_a_chain_that_does_not_answer_is_unavailable_and_nothing_else(
    tmp_path: Path, question: str, answer: bytes | None
) -> None:
    agent = open_agent(settings(tmp_path), HttpClient(Node(answer)))
    with pytest.raises(ChainUnavailable) as unavailable:
        await getattr(agent.chain, question)(*QUESTIONS[question])
    assert unavailable.value.retryable
    assert unavailable.value.code == "chain_unavailable"
    assert str(unavailable.value) == str(unavailable.value.__cause__)
    if answer is None:
        assert isinstance(unavailable.value.__cause__, RpcUnavailable)
    await agent.store.close()


def test_a_wallet_whose_making_was_interrupted_is_made_with_the_password_that_was_left(tmp_path: Path) -> None:
    interrupted = settings(
        tmp_path, keystore_path=tmp_path / "wallet.json", keystore_password_path=tmp_path / "wallet.password"
    )
    (tmp_path / "wallet.password").write_text("left behind")
    address = create_wallet(interrupted)
    assert account_from_keystore(tmp_path / "wallet.json", "left behind").address == address
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wallet.json", "wallet.password"]
    with pytest.raises(WalletError, match="never overwritten"):
        create_wallet(interrupted)

"""The local chain as a process: found, started, at the right tempo, stopped."""

import time
from pathlib import Path

import pytest

from chain.config import ChainSettings
from chain.devchain import DevChain, dev_account, find_anvil
from chain.errors import AnvilMissing, DevChainError, RpcRefused
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from wire.money import BASE_SEPOLIA_USDC

ANYONE = "0x00000000000000000000000000000000000000aa"


@pytest.mark.slow
async def test_finalized_follows_the_newest_block_and_time_moves_by_itself() -> None:
    with DevChain.start(block_time_s=1) as running:
        running.mint(ANYONE, 5)
        reader = TokenReader(Rpc(running.url, HttpClient()), BASE_SEPOLIA_USDC)
        began_at_s = await reader.finalized_time_s()
        deadline = time.monotonic() + 15
        while await reader.finalized_time_s() <= began_at_s + 1:
            assert time.monotonic() < deadline, "finalized stands still"
        assert await reader.head() >= 3
        assert not await reader.is_nonce_used_finalized(ANYONE, "0x" + "1" * 64)
        # In real time: the chain's clock is the world's, give or take the age of two blocks.
        assert abs(await reader.finalized_time_s() - time.time()) < 10
        process = running.process
    assert process.poll() is not None


def test_the_chain_is_base_sepolia_to_whoever_asks(chain: DevChain) -> None:
    assert int(chain.rpc("eth_chainId"), 16) == 84532
    assert chain.rpc("eth_getCode", BASE_SEPOLIA_USDC.address, "latest") != "0x"


def test_minting_and_funding_change_what_an_address_has(chain: DevChain) -> None:
    chain.mint(ANYONE, 5)
    chain.mint(ANYONE, 7)
    chain.fund(ANYONE, 3 * 10**18)
    assert chain.balance(ANYONE) == 12
    assert int(chain.rpc("eth_getBalance", ANYONE, "latest"), 16) == 3 * 10**18


def test_placing_the_token_again_keeps_the_balances(chain: DevChain) -> None:
    chain.mint(ANYONE, 5)
    assert chain.deploy() == BASE_SEPOLIA_USDC.address
    assert chain.balance(ANYONE) == 5


def test_a_snapshot_brings_back_balances_and_the_clock(chain: DevChain) -> None:
    snapshot = chain.snapshot()
    chain.mint(ANYONE, 5)
    chain.increase_time(86_400)
    assert int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16) > time.time() + 86_000
    chain.revert(snapshot)
    chain.mine()
    assert chain.balance(ANYONE) == 0
    assert int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16) < time.time() + 60
    with pytest.raises(DevChainError, match="no snapshot"):
        chain.revert("0x999")


def test_minting_does_not_wait_for_a_block_to_come(chain: DevChain) -> None:
    chain.rpc("evm_setAutomine", False)
    try:
        chain.mint(ANYONE, 5)
    finally:
        chain.rpc("evm_setAutomine", True)
    assert chain.balance(ANYONE) == 5


def test_the_dev_accounts_are_the_ones_anvil_has_unlocked(chain: DevChain) -> None:
    assert [dev_account(index).address.lower() for index in range(10)] == chain.rpc("eth_accounts")


def test_a_call_that_reverts_says_why_and_sends_nothing(chain: DevChain) -> None:
    before = chain.rpc("eth_blockNumber")
    with pytest.raises(RpcRefused, match="execution reverted"):
        chain.transact(BASE_SEPOLIA_USDC.address, "0x12345678")
    assert chain.rpc("eth_blockNumber") == before


def test_a_taken_port_is_an_error_that_names_it(chain: DevChain) -> None:
    with pytest.raises(DevChainError, match=f"port {chain.port} is taken"):
        DevChain.start(port=chain.port)


def test_a_program_that_ends_at_once_is_shown_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "anvil"
    program.write_text("#!/bin/sh\necho no license >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(DevChainError, match="anvil ended at once: no license"):
        DevChain.start(settings=ChainSettings(anvil_bin=program))


def test_a_chain_that_was_stopped_says_so_and_stopping_it_again_is_harmless() -> None:
    running = DevChain.start(block_time_s=None)
    running.stop()
    running.stop()
    with pytest.raises(DevChainError, match="does not answer"):
        running.balance(ANYONE)


def test_anvil_is_looked_for_where_it_is_named_then_on_the_path_then_in_node_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, on_path = tmp_path / "named", tmp_path / "bin" / "anvil"
    on_path.parent.mkdir()
    for program in (named, on_path):
        program.write_text("")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("ANVIL_BIN", str(named))
    assert find_anvil() == named
    monkeypatch.delenv("ANVIL_BIN")
    assert find_anvil() == on_path
    monkeypatch.setenv("PATH", "")
    assert "node_modules/@foundry-rs/anvil-" in str(find_anvil())


def test_a_named_anvil_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AnvilMissing, match=r"ANVIL_BIN names .*nowhere"):
        find_anvil(ChainSettings(anvil_bin=tmp_path / "nowhere"))


def test_a_missing_anvil_is_one_sentence_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ANVIL_BIN", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnvilMissing, match=r"npm i @foundry-rs/anvil"):
        find_anvil(project=tmp_path)
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(AnvilMissing, match=r"`npm ci`"):
        find_anvil(project=tmp_path)

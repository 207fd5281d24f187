"""
A real EVM on this machine: anvil, with Base Sepolia's chain id and a test USDC at Base Sepolia's USDC address.

So x402 clients and servers of any language work against it unmodified. Every call here is synchronous and goes
to our own child process on loopback. Its keys are anvil's, known to the world: never fund them elsewhere.
"""

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from chain.abi import call_data, quantity
from chain.artifacts import load_artifact
from chain.config import ChainSettings
from chain.errors import AnvilMissing, DevChainError, RpcRefused
from wire.money import BASE_SEPOLIA_USDC, Asset

MNEMONIC = "test test test test test test test test test test test junk"
START_S = 10.0
STOP_S = 5.0
CALL_S = 30.0

# The checkout, or the folder of the installed packages.
PROJECT = Path(__file__).resolve().parents[1]

_NPM_ANVIL = "node_modules/@foundry-rs/anvil-*/bin/anvil"


@dataclass(frozen=True, slots=True)
class DevAccount:
    """One of anvil's unlocked accounts; `key` is 0x-hex and public."""

    address: str
    key: str


@cache
def dev_account(index: int) -> DevAccount:
    """Return the account `index` (0-9) of anvil's test mnemonic; each begins with 10,000 ether."""
    from eth_account import Account

    Account.enable_unaudited_hdwallet_features()
    account = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return DevAccount(account.address, account.key.to_0x_hex())


def find_anvil(settings: ChainSettings | None = None, project: Path = PROJECT) -> Path:
    """
    Return the anvil program: ANVIL_BIN, PATH, then node_modules of the project and of the working directory.

    Raises:
        AnvilMissing: with the command that brings it.
    """
    named = (settings or ChainSettings()).anvil_bin
    if named is not None:
        if named.is_file():
            return named
        raise AnvilMissing(f"ANVIL_BIN names {named}, which is not there: unset it or set it to the anvil program")
    on_path = shutil.which("anvil")
    if on_path:
        return Path(on_path)
    for folder in (project, Path.cwd()):
        for found in sorted(folder.glob(_NPM_ANVIL)):
            return found
    command = "npm ci" if (project / "package.json").is_file() else "npm i @foundry-rs/anvil"
    raise AnvilMissing(f"The local chain needs anvil, which is not here: run `{command}`")


class DevNode:
    """An anvil on this machine, whoever started it: `url` is its JSON-RPC address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def rpc(self, method: str, *params: Any) -> Any:
        """Return the result of one JSON-RPC call. Raises RpcRefused, DevChainError (it is gone)."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_S)
        try:
            connection.request("POST", "/", body, {"content-type": "application/json"})
            reply = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DevChainError(f"the local chain at {self.url} does not answer: {error}") from error
        finally:
            connection.close()
        if "error" in reply:
            raise RpcRefused(reply["error"]["code"], reply["error"]["message"])
        return reply["result"]

    def deploy(self, asset: Asset = BASE_SEPOLIA_USDC) -> str:
        """Place the test USDC's code at `asset.address` and return that address; balances there stay as they are."""
        self.rpc("anvil_setCode", asset.address, load_artifact("TestUSD").runtime)
        return asset.address

    def fund(self, address: str, ether_wei: int) -> None:
        """Set the native balance of `address`."""
        self.rpc("anvil_setBalance", address, hex(ether_wei))

    def mint(self, address: str, value_atomic: int) -> str:
        """Give `address` that much test USDC, on top of what it has; return the mined transaction."""
        return self.transact(BASE_SEPOLIA_USDC.address, call_data("mint(address,uint256)", address, value_atomic))

    def balance(self, address: str) -> int:
        """Return the test USDC of `address`, atomic."""
        call = {"to": BASE_SEPOLIA_USDC.address, "data": call_data("balanceOf(address)", address)}
        return quantity(self.rpc("eth_call", call, "latest"))

    def transact(self, contract: str, data: str) -> str:
        """
        Return a transaction of account 0 to `contract`, mined.

        Raises:
            RpcRefused: it would revert, and why; nothing was sent.
        """
        call = {"from": dev_account(0).address, "to": contract, "data": data}
        self.rpc("eth_call", call, "latest")
        transaction = str(self.rpc("eth_sendTransaction", call))
        if quantity(self.receipt(transaction)["status"]) != 1:
            raise DevChainError(f"the local chain did not execute {transaction}")
        return transaction

    def receipt(self, transaction: str) -> dict[str, Any]:
        """Return the receipt of a sent transaction; a block is made for it where none comes by itself."""
        if not self.rpc("anvil_getAutomine"):
            self.mine()
        # The block of a transaction is made just after its hash is answered.
        deadline = time.monotonic() + CALL_S
        while time.monotonic() < deadline:
            receipt: dict[str, Any] | None = self.rpc("eth_getTransactionReceipt", transaction)
            if receipt is not None:
                return receipt
            time.sleep(0.002)
        raise DevChainError(f"the local chain did not mine {transaction}")

    def mine(self, blocks: int = 1) -> None:
        self.rpc("anvil_mine", hex(blocks))

    def increase_time(self, seconds: int) -> None:
        """Move the chain's clock ahead and make a block with the new time."""
        self.rpc("evm_increaseTime", seconds)
        self.mine()

    def set_clock(self) -> None:
        """Set the chain's clock to the world's: a snapshot that was brought back has brought its time back, too."""
        self.rpc("evm_setTime", int(time.time()))

    def snapshot(self) -> str:
        return str(self.rpc("evm_snapshot"))

    def revert(self, snapshot: str) -> None:
        """Bring everything back to `snapshot`, the clock too; the snapshot is used up by it."""
        if self.rpc("evm_revert", snapshot) is not True:
            raise DevChainError(f"the local chain has no snapshot {snapshot}")


class DevChain(DevNode):
    """An anvil of our own; leave it with `stop` or as a context manager."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        super().__init__(port)
        self.process = process
        self._complaints = complaints
        # Also when the interpreter ends without `stop`, so that no anvil outlives us.
        self._end = weakref.finalize(self, _end, process, complaints)

    @classmethod
    def start(
        cls, port: int | None = None, block_time_s: int | None = 1, settings: ChainSettings | None = None
    ) -> Self:
        """
        Start anvil on loopback, place the test USDC and return when it answers, in about 0.2 s.

        Every epoch has one slot, so `finalized` follows two blocks behind the newest. With `block_time_s` None a
        block is made per transaction instead, and time stands still between them.

        Raises:
            AnvilMissing: there is no anvil.
            DevChainError: the port is taken, or anvil did not come up in START_S.
        """
        anvil = find_anvil(settings)
        port = _free_port(port)
        command = [str(anvil), "--quiet", "--host", "127.0.0.1", "--port", str(port), "--slots-in-an-epoch", "1"]
        command += ["--chain-id", str(BASE_SEPOLIA_USDC.chain_id), "--mnemonic", MNEMONIC]
        if block_time_s is not None:
            command += ["--block-time", str(block_time_s)]
        complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # Its own group: Ctrl-C reaches us alone, and we stop it in our order.
        process = subprocess.Popen(  # noqa: S603 - the program is the one that the owner named or installed
            command, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints, start_new_session=True
        )
        chain = cls(port, process, complaints)
        try:
            chain._wait_until_it_answers()
            chain.deploy()
        except BaseException:
            chain.stop()
            raise
        return chain

    def stop(self) -> None:
        """End anvil and wait for it; doing so twice is harmless."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.rpc("eth_chainId")
                return
            except DevChainError as error:
                if self.process.poll() is not None:
                    self._complaints.seek(0)
                    said = self._complaints.read().decode(errors="replace").strip()[-500:]
                    raise DevChainError(f"anvil ended at once: {said or self.process.returncode}") from None
                if time.monotonic() > deadline:
                    raise DevChainError(f"anvil did not answer in {START_S:g} s") from error
                time.sleep(0.02)


def _end(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    complaints.close()


def _free_port(wanted: int | None) -> int:
    """Return `wanted` if it is free, any free port for None. Raises DevChainError for a taken one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise DevChainError(f"port {wanted} is taken: {error.strerror}") from None
        return int(probe.getsockname()[1])

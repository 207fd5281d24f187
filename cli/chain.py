"""`livery chain`: a local EVM chain with a test USDC, for developers."""

import signal
import threading
from typing import Annotated, Any

import typer

from chain.devchain import DevChain, DevNode
from chain.errors import ChainError
from cli.console import Json, branch, fail, out, show
from wire.money import BASE_SEPOLIA_USDC, MoneyError, to_atomic, to_decimal

app = branch("chain", "A local chain (Base Sepolia's id, a test USDC at its address): up, deploy, fund, balance, tx.")

Port = Annotated[int, typer.Option("--port", help="The local chain's port.")]
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="0x-hex, 20 bytes.")]


@app.command("up")
def up(
    port: Port = 8545,
    block_time: Annotated[int, typer.Option("--block-time", min=1, help="Seconds per block.")] = 1,
) -> None:
    """Run a chain until Ctrl-C."""
    try:
        chain = DevChain.start(port, block_time)
    except ChainError as error:
        fail(str(error))
    with chain:
        out.print(f"chain {BASE_SEPOLIA_USDC.chain_id} at {chain.url}, test USDC at {BASE_SEPOLIA_USDC.address}")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()


@app.command("deploy")
def deploy(port: Port = 8545, as_json: Json = False) -> None:
    """Place the test USDC on a running anvil."""
    address = _asked(lambda: DevNode(port).deploy(), as_json)
    show({"asset": address}, lambda: f"test USDC at {address}", as_json=as_json)


@app.command("fund")
def fund(
    address: Address,
    usdc: Annotated[str, typer.Option(help="Test USDC to give.")] = "100",
    ether: Annotated[int, typer.Option(min=0, help="Ether to have, for gas.")] = 1,
    port: Port = 8545,
    as_json: Json = False,
) -> None:
    """
    Give an address test USDC and ether.

    Example: livery chain fund 0x7099… --usdc 100
    """
    from decimal import Decimal, InvalidOperation

    try:
        atomic = to_atomic(Decimal(usdc), BASE_SEPOLIA_USDC)
    except (MoneyError, InvalidOperation):
        raise typer.BadParameter(f"{usdc} is no amount of USDC") from None

    def give() -> str:
        node = DevNode(port)
        node.fund(address, ether * 10**18)
        return node.mint(address, atomic)

    transaction = _asked(give, as_json)
    show({"transaction": transaction}, lambda: f"{usdc} USDC for {address} in {transaction}", as_json=as_json)


@app.command("balance")
def balance(address: Address, port: Port = 8545, as_json: Json = False) -> None:
    """Show what an address holds."""
    held = _asked(lambda: to_decimal(DevNode(port).balance(address), BASE_SEPOLIA_USDC), as_json)
    show({"address": address, "usdc": held}, lambda: f"{held} USDC", as_json=as_json)


@app.command("tx")
def tx(transaction: Annotated[str, typer.Argument(metavar="HASH")], port: Port = 8545, as_json: Json = False) -> None:
    """Show a transaction's receipt."""
    receipt = _asked(lambda: DevNode(port).rpc("eth_getTransactionReceipt", transaction), as_json)
    if receipt is None:
        fail(f"no transaction {transaction} was mined", as_json=as_json)
    state = "succeeded" if receipt["status"] == "0x1" else "failed"
    show(
        receipt,
        lambda: f"{state} in block {int(receipt['blockNumber'], 16)} with {len(receipt['logs'])} logs",
        as_json=as_json,
    )


def _asked(ask: Any, as_json: bool) -> Any:
    try:
        return ask()
    except (ChainError, ValueError) as error:
        fail(str(error), "Start one with `livery chain up`.", as_json=as_json)

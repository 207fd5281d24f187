"""A worker on this machine in a developer's world: the tiny model that it trains, its settings, its process."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chain.devchain import dev_account
from cli import processes

if TYPE_CHECKING:
    from gpu_worker.config import WorkerSettings

MODEL = "tiny-llm"
TEXT = "house-text.jsonl"
MAKING_S = 300
# Of the dev chain's accounts: they have the ether that refunds need. The payer and the mocks have others.
NAMES = ("worker", "worker-2")
ACCOUNTS = (8, 4)
# The chain goes with this process, and what a job owes on it with the chain: nothing to wait for as long as a worker
# that rents its machine to others would.
DRAIN_S = 10


def make_tiny(into: Path) -> None:
    """Make the tiny model and its text in `into`, once. Raises NotReady with what its program said."""
    if into.is_dir():
        return
    draft = into.with_name(f"{into.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    command = [sys.executable, "-m", "gpu_worker.engine.tiny", str(draft)]
    try:
        made = subprocess.run(  # noqa: S603 - a program of ours
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAKING_S
        )
    except subprocess.TimeoutExpired:
        raise processes.NotReady(f"the tiny model was not made in {MAKING_S} s") from None
    if made.returncode != 0:
        raise processes.NotReady(f"the tiny model could not be made: {made.stderr[-1_500:].strip()}")
    draft.rename(into)


def settings_of(
    folder: Path, tiny: Path, *, number: int, secret: str, chain_url: str, paid_at: str, **more: Any
) -> "WorkerSettings":
    """
    Return the settings of worker `number` (from 0) of a world on this machine alone, which sells training.

    What its owner's environment says besides holds; but it neither rests for the owner's sake, who waits for it, nor
    asks for more free disk than the tiny model needs.

    Args:
        folder: where it keeps its books and its jobs.
        tiny: what `make_tiny` made.
        paid_at: the facilitator.
    """
    from gpu_worker.config import WorkerSettings

    return WorkerSettings.model_validate(
        {
            "name": NAMES[number],
            "kinds": "fine_tune",
            "data": folder,
            "models": tiny,
            "default_model": MODEL,
            "default_dataset": tiny / TEXT,
            "allow_private_urls": True,
            "checkpoint_steps": 20,
            "yield_on": "none",
            "hours": "",
            "disk_reserve_mb": 256,
            "private_key": dev_account(ACCOUNTS[number]).key,
            "secret": secret,
            "facilitator_url": paid_at,
            "rpc_url": chain_url,
            "chain_id": 84532,
            "public_url": None,
            "drain_s": DRAIN_S,
            **more,
        }
    )


def start(children: processes.Processes, settings: "WorkerSettings", port: "int | socket.socket") -> str:
    """Start the worker and return its address; it does not sell yet."""
    stop_s = settings.drain_s + 5
    return children.start(processes.worker, settings.vendor_id, port, settings, stop_s=stop_s)

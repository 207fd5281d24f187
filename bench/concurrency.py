"""
Sixteen processes on one store, on both kinds of store: `python -m bench.concurrency` (`make concurrency`).

A chain with a block each second, the facilitator, the vendors and every buyer are processes of their own; each payment
that is counted was settled on that chain. The table and the last line say what happened; exit 1 where something is not
as it has to be.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from agent.config import AgentSettings
from bench import records
from bench.concurrent import scenes
from bench.concurrent.crowd import Crowd, Member
from bench.concurrent.place import Place
from bench.concurrent.scenes import Scene
from chain.devchain import DevChain, DevNode, dev_account
from tests.e2e.conftest import Server
from tests.fixtures.mongod import Mongod

PROCESSES = 16
TICKS = (64, 512)
RUNS = 1_000
# Ten minutes for half of the crowd, ten the other way for the rest, and for two of them a whole day.
SKEWS_S = (86_400, -86_400, *((600, -600) * 7))
STORES = ("sqlite", "mongo")
PAYER = dev_account(1)
SECRET = "the-secret-of-every-vendor"  # noqa: S105 - of vendors that live as long as this program
# A vendor with room for every run at once.
GPUS = [{"gpuType": "A10", "vramGb": 24, "count": 100_000}]
VENDORS = (
    {"vendorId": "gpu_vendor_1", "name": "FastGPU", "pricePerHour": 1.4, "gpus": GPUS, "faults": {"failAtEpoch": 3}},
    {"vendorId": "gpu_vendor_2", "name": "ReliableGPU", "pricePerHour": 1.8, "gpus": GPUS},
)


def main(arguments: list[str] | None = None) -> int:
    """Play the scenes and print what came of them; return 1 where one is broken."""
    reader = argparse.ArgumentParser(prog="python -m bench.concurrency", description=__doc__)
    reader.add_argument("--runs", type=int, default=RUNS, help="runs that share one day cap, on each store")
    reader.add_argument("--store", choices=STORES, default=None, help="this one alone")
    records.add_arguments(reader)
    told = reader.parse_args(arguments)
    seed = Random().randrange(2**32) if told.seed is None else told.seed
    stores = STORES if told.store is None else (told.store,)
    played: dict[tuple[str, str], Scene] = {}
    with street() as (chain, url, folder), Crowd([0] * PROCESSES + list(SKEWS_S)) as crowd:
        for store in stores:
            for name, play in _scenes(crowd.members[:PROCESSES], crowd.members[PROCESSES:], told.runs, seed).items():
                with database(store, folder) as address:
                    place = _place(address, chain, url, folder)
                    began_s = time.monotonic()
                    played[store, name] = asyncio.run(play(place))
                    played[store, name].figures["s"] = round(time.monotonic() - began_s)
                print(f"{store}: {name}: {played[store, name]}", file=sys.stderr)
    document = _document(played, seed)
    _show(played)
    print(json.dumps(document))
    if told.record:
        records.record("concurrency", document)
    return 1 if document["broken"] else 0


_Play = Callable[[Place], Coroutine[Any, Any, Scene]]


def _scenes(members: Sequence[Member], wrong: Sequence[Member], runs: int, seed: int) -> dict[str, _Play]:
    # A fifth of what the runs want: 0.35 hours on average, at 1.8.
    cap = (Decimal(runs) * Decimal("0.35") * Decimal("1.8") / 5).quantize(Decimal("0.01")) + Decimal("0.000001")
    bursts: dict[str, _Play] = {f"{ticks} ticks of one run": _burst(members, ticks) for ticks in TICKS}
    return {
        **bursts,
        f"{runs} runs under one day's cap": lambda place: scenes.day_cap(_capped(place, cap), members, runs, seed),
        "frozen past the lease": lambda place: scenes.frozen(place, members),
        "wrong clocks": lambda place: scenes.skewed(place, wrong, 64),
    }


def _burst(members: Sequence[Member], ticks: int) -> _Play:
    return lambda place: scenes.one_run(place, members, ticks)


@contextmanager
def street() -> Iterator[tuple[DevNode, str, Path]]:
    """Yield a chain with a block each second, where vendors paid through a facilitator listen, and a folder."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livery-concurrency-")))
        chain = stack.enter_context(DevChain.start(block_time_s=1))
        chain.mint(PAYER.address, 10**12)
        paid_by = Server(
            folder / "facilitator.log", "cli", "facilitator", "--port", "0", LIVERY_FACILITATOR_RPC_URL=chain.url
        )
        stack.callback(paid_by.stop)
        (folder / "vendors.json").write_text(json.dumps(VENDORS))
        vendors = Server(
            folder / "vendors.log",
            *("cli", "vendor-mock"),
            GPU_VENDOR_SECRET=SECRET,
            LIVERY_VENDOR_MOCK_PORT="0",
            LIVERY_VENDOR_MOCK_RPC_URL=chain.url,
            LIVERY_VENDOR_MOCK_FACILITATOR_URL=paid_by.url,
            LIVERY_VENDOR_MOCK_DATABASE=str(folder / "vendors.db"),
            LIVERY_VENDOR_MOCK_VENDORS_FILE=str(folder / "vendors.json"),
        )
        stack.callback(vendors.stop)
        yield chain, vendors.url, folder


@contextmanager
def database(store: str, folder: Path) -> Iterator[str]:
    """Yield the address of an empty store."""
    if store == "sqlite":
        yield f"sqlite:///{folder}/{uuid.uuid4().hex}.db"
        return
    server = Mongod(replica_set=True)
    try:
        yield server.url
    finally:
        server.stop()


def _place(address: str, chain: DevNode, vendors_url: str, folder: Path) -> Place:
    settings = AgentSettings.model_validate(
        {
            "database_url": SecretStr(address),
            "private_key": SecretStr(PAYER.key),
            "rpc_url": chain.url,
            "vendor_secrets": SecretStr(SECRET),
            "planner_mode": "stub",
            "artifact_url": SecretStr(str(folder / "artifacts")),
            "vendor_day_max": Decimal(10**6),
        }
    )
    return Place(
        settings=settings,
        chain=chain,
        payer=PAYER.address,
        vendors_url=vendors_url,
        vendors_db=folder / "vendors.db",
    )


def _capped(place: Place, wallet_day_max: Decimal) -> Place:
    return replace(place, settings=place.settings.model_copy(update={"wallet_day_max": wallet_day_max}))


def _document(played: dict[tuple[str, str], Scene], seed: int) -> dict[str, Any]:
    """Return the figures of all scenes: sums of what is counted, the worst of what is measured."""
    figures = [scene.figures for scene in played.values()]

    def every(name: str) -> list[float]:
        return [one[name] for one in figures if name in one]

    bursts = {
        ticks: [played[key].figures for key in played if key[1] == f"{ticks} ticks of one run"] for ticks in TICKS
    }
    return {
        "processes": PROCESSES,
        "ticks": int(sum(every("ticks"))),
        "served": int(sum(every("served"))),
        "busy": int(sum(every("busy"))),
        "unavailable": int(sum(every("unavailable"))),
        "holders_max": int(max(every("holders_max"))),
        "runs": int(sum(every("runs"))),
        "paid": int(sum(every("paid"))),
        "refused_over_day_cap": int(sum(every("refused"))),
        "unreached": int(sum(every("unreached"))),
        "overspend": int(sum(every("overspend"))),
        "cap_used_percent_min": min(every("cap_used_percent")),
        "frozen": int(sum(every("frozen"))),
        "frozen_refused": int(sum(every("frozen_refused"))),
        "skew_minutes": int(min(abs(skew_s) for skew_s in SKEWS_S)) // 60,
        **{
            f"{name}_of_{ticks}": max(one[name] for one in found)
            for ticks, found in bursts.items()
            for name in ("loser_ms_p99", "loser_per_winner")
        },
        "broken": sum(len(scene.broken) for scene in played.values()),
        "stores": sorted({store for store, _ in played}),
        "s": int(sum(every("s"))),
        "seed": seed,
    }


def _show(played: dict[tuple[str, str], Scene]) -> None:
    table = Table(title=f"{PROCESSES} processes on one store")
    for heading in ("store", "scene", "figures", "broken"):
        table.add_column(heading, overflow="fold")
    for (store, name), scene in played.items():
        figures = ", ".join(f"{what} {value:g}" for what, value in scene.figures.items())
        table.add_row(store, name, figures, "\n".join(scene.broken) or "nothing")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

"""
The agent's ports in a simulated process: every call crosses a boundary where the process may die, stand still, wait,
be refused or lose the answer. Behind it, each is one step of a model.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Protocol

from agent.core.errors import (
    AgentError,
    CannotRevoke,
    ChainUnavailable,
    StaleClaim,
    StoreUnavailable,
    VendorError,
    VendorGarbled,
    VendorUnreachable,
    WalletError,
)
from agent.core.model import Vendor
from agent.ports import Hold, Unsettled
from bench.sim.chain import MemoryChain, Node
from bench.sim.faults import Faults
from bench.sim.store import MemoryStore
from bench.sim.vendors import FILE, Vendors
from wire.vendor import JobStatus

# How many in a thousand crossings let others run first.
YIELDS = {"store": 150, "vendor": 500, "chain": 150, "wallet": 500}


# What a vendor does, and does not only tell: that it is asked for twice is of consequence here alone.
CHANGES = ("submit", "cancel")


class Killed(BaseException):
    """Where a process ended: nothing that it still runs reaches anybody."""


class Process:
    """
    One of the agent's processes. Once it is dead every port raises Killed and does nothing.

    `trace` keeps what crossed its boundary, in order.
    """

    def __init__(self, name: str, faults: Faults, trace: Callable[[str], None], lease_s: int) -> None:
        self.name = name
        self.faults = faults
        self.is_dead = False
        self.frozen_until_s = 0.0
        self._trace = trace
        self._lease_s = lease_s

    async def before(self, kind: str, verb: str) -> None:
        """Cross the boundary on the way out. Raises Killed."""
        await self._cross(kind, f"crash_before_{kind}")
        self._trace(f"{self.name} {verb}")

    async def after(self, kind: str, wait_s: float = 0.0) -> None:
        """Cross it on the way back. Raises Killed."""
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await self._cross(kind, f"crash_after_{kind}")

    async def _cross(self, kind: str, crash: str) -> None:
        if self.is_dead:
            raise Killed(self.name)
        faults = self.faults
        fault = faults.one_of((crash, "frozen"))
        if fault is not None:
            faults.count(fault)
        if fault == "frozen":
            self.frozen_until_s = asyncio.get_running_loop().time() + self._lease_s * faults.chance.uniform(1.05, 2.5)
        elif fault is not None:
            self.is_dead = True
            self._trace(f"{self.name} {fault}")
            raise Killed(self.name)
        elif faults.chance.random() * 1000 < YIELDS[kind]:
            await asyncio.sleep(faults.chance.random() * 0.2)
        await self._thaw()
        if self.is_dead:
            raise Killed(self.name)

    async def _thaw(self) -> None:
        """Stand still with the whole process; what it ran meanwhile may have frozen it again."""
        left_s = self.frozen_until_s - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s)
            await self._thaw()


class _Port:
    """Every verb of `model`, each through the process's boundary."""

    kind = ""
    away: type[AgentError]
    away_fault = ""
    lost_fault: str | None = None

    def __init__(self, process: Process, model: Any) -> None:
        self._process = process
        self._model = model

    def __getattr__(self, verb: str) -> Any:
        return partial(self._call, getattr(self._model, verb), verb)

    async def _call(self, step: Callable[..., Any], verb: str, *args: Any, **named: Any) -> Any:
        process = self._process
        await process.before(self.kind, verb)
        if process.faults.hit(self.away_fault):
            raise self.away(self.away_fault)
        self.prepare()
        answer = step(*args, **named)
        if self.lost_fault is not None and process.faults.hit(self.lost_fault):
            raise self.away(self.lost_fault)
        await process.after(self.kind)
        return answer

    def prepare(self) -> None:
        """What comes before every step of the model."""

    async def close(self) -> None:
        """Nothing is open."""


class StorePort(_Port):
    kind, away, away_fault, lost_fault = "store", StoreUnavailable, "store_away", "store_answer_lost"
    _model: MemoryStore

    async def save(self, *args: Any, **named: Any) -> Hold | None:
        try:
            refused: Hold | None = await self._call(self._model.save, "save", *args, **named)
        except StaleClaim:
            self._process.faults.count("stale_save")
            raise
        return refused


class ChainPort(_Port):
    """Its node may be some blocks behind, from one call to the next."""

    kind, away, away_fault = "chain", ChainUnavailable, "chain_away"

    def __init__(self, process: Process, chain: MemoryChain) -> None:
        super().__init__(process, Node(chain))

    def prepare(self) -> None:
        lags = self._process.faults.hit("chain_node_lags")
        self._model.lag = self._process.faults.chance.randrange(1, 6) if lags else 0


class WalletPort(_Port):
    kind, away, away_fault = "wallet", WalletError, "signer_away"


class RevokerPort:
    """Cancels cheques on the chain, some seconds after it was asked to."""

    def __init__(self, process: Process, chain: MemoryChain) -> None:
        self._process = process
        self._chain = chain

    async def revoke(self, payer: str, nonce: str) -> str:
        await self._process.before("wallet", "revoke")
        if self._process.faults.hit("signer_away"):
            raise CannotRevoke("no coin for the fee")
        faults = self._process.faults

        def mined() -> None:
            if self._chain.revoke(payer, nonce):
                faults.count("cheque_revoked")

        asyncio.get_running_loop().call_later(faults.chance.uniform(1, 10), mined)
        await self._process.after("wallet")
        return "0x" + hashlib.sha256(nonce.encode()).hexdigest()


class Lost(Protocol):
    """Is told of every poll that brought nothing."""

    def missed(self, vendor: Vendor, vendor_job_id: str) -> None: ...


class VendorPort:
    """The vendors through a network that is away, slow, forgetful or says things twice."""

    def __init__(self, process: Process, vendors: Vendors, lost: Lost) -> None:
        self._process = process
        self._vendors = vendors
        self._lost = lost

    def __getattr__(self, verb: str) -> Any:
        return partial(self._through, verb)

    async def submit(self, vendor: Vendor, *args: Any) -> Any:
        try:
            return await self._through("submit", vendor, *args)
        except VendorError as error:
            return Unsettled(str(error))

    async def job_status(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        return await self._told("job_status", vendor, vendor_job_id, cursor)

    async def cancel(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        job = self._vendors.sellers[vendor.vendor_id].jobs.get(vendor_job_id)
        if job is not None:
            job.cancels_asked += 1
        return await self._told("cancel", vendor, vendor_job_id, cursor)

    async def download(
        self, vendor: Vendor, url: str, *, timeout_s: float, bytes_max: int
    ) -> AsyncGenerator[bytes, None]:
        await self._process.before("vendor", "download")
        yield FILE if not self._process.faults.hit("files_not_kept") else FILE[:-1]
        await self._process.after("vendor")

    async def _told(self, verb: str, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        try:
            told: JobStatus = await self._through(verb, vendor, vendor_job_id, cursor)
        except VendorError:
            self._lost.missed(vendor, vendor_job_id)
            raise
        if told.vendor_job_id != vendor_job_id:
            self._lost.missed(vendor, vendor_job_id)
        return told

    async def _through(self, verb: str, vendor: Vendor, *args: Any) -> Any:
        process, faults = self._process, self._process.faults
        await process.before("vendor", verb)
        seller, chance = self._vendors.sellers[vendor.vendor_id], faults.chance
        now_s = asyncio.get_running_loop().time()
        fault = faults.one_of(
            ("vendor_away", "vendor_5xx", "vendor_answer_lost", "vendor_answer_late", "vendor_called_twice")
        )
        if fault == "vendor_away" and now_s >= seller.away_until_s:
            faults.count(fault)
            seller.away_until_s = now_s + chance.uniform(5, 300)
        if now_s < seller.away_until_s and not faults.quiet:
            await process.after("vendor", 1.0)
            raise VendorUnreachable("connection refused")
        if fault == "vendor_5xx":
            faults.count(fault)
            await process.after("vendor")
            raise VendorUnreachable("503 try later")
        step = getattr(self._vendors, verb)
        if fault == "vendor_called_twice" and verb in CHANGES:
            # The first answer is the one that nobody reads.
            faults.count(fault)
            _first(step, vendor, *args)
        answer = step(vendor, *args)
        if fault in ("vendor_answer_lost", "vendor_answer_late"):
            faults.count(fault)
        if fault == "vendor_answer_lost":
            await process.after("vendor", 10.0)
            raise VendorUnreachable("no answer in 10 s")
        await process.after("vendor", chance.uniform(5, 40) if fault == "vendor_answer_late" else 0.0)
        return answer


def _first(step: Callable[..., Any], *args: Any) -> None:
    try:
        step(*args)
    except (VendorError, VendorGarbled):
        return

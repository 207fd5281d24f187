"""The agent's smaller ports in a simulated process: its signer, what keeps its files, its planner."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from decimal import Decimal
from typing import Any, Literal

from agent.core.errors import ArtifactsUnavailable
from agent.core.planning import Proposal, Question
from agent.ports import Planner, Usage
from bench.sim.ports import Process
from bench.sim.training import Files


class Signer:
    """A wallet that signs with a hash: the chain of this world does not look at signatures."""

    def __init__(self, payer: str) -> None:
        self.payer = payer

    def address(self) -> str:
        return self.payer

    def sign(self, typed_data: dict[str, Any]) -> str:
        signed = hashlib.sha512(repr(typed_data["message"]).encode()).hexdigest()
        return f"0x{signed}1b"


class Believed:
    """Signatures of vendors are not looked at in this world."""

    def is_signed(self, vendor_id: str, headers: Mapping[str, str], body: bytes) -> bool:
        return True


class Tokens:
    """Who asks at the files' door is not looked at in this world: its vendors push past it."""

    def token(self, vendor_id: str, run_id: str, job_id: str) -> str:
        return hashlib.sha256(f"{run_id} {job_id}".encode()).hexdigest()

    def is_token(self, vendor_id: str, run_id: str, job_id: str, token: str) -> bool:
        return token == self.token(vendor_id, run_id, job_id)


class Shelf:
    """Where files are kept: what jobs pushed is there, what is fetched goes nowhere, now and then not even there."""

    def __init__(self, process: Process, files: Files) -> None:
        self._process = process
        self._files = files

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        async for _ in chunks:
            continue
        if self._process.faults.hit("files_not_kept"):
            raise ArtifactsUnavailable("the disk is full")

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        if self._process.faults.hit("files_away"):
            raise ArtifactsUnavailable("the disk is away")
        content = self._files.kept.get((run_id, job_id, name))
        return None if content is None else len(content)

    async def open(self, run_id: str, job_id: str, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        yield self._files.kept[run_id, job_id, name]

    async def remove(self, run_id: str, job_id: str, name: str) -> bool:
        return self._files.kept.pop((run_id, job_id, name), None) is not None

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        if self._process.faults.hit("files_away"):
            raise ArtifactsUnavailable("the disk is away")
        for run, job, name in tuple(self._files.kept):
            if (run, job) == (run_id, job_id) and not stays(name):
                del self._files.kept[run, job, name]

    async def usage(self, run_id: str, job_id: str) -> Usage:
        sizes = [len(content) for (run, job, _), content in self._files.kept.items() if (run, job) == (run_id, job_id)]
        return Usage(len(sizes), sum(sizes))

    async def close(self) -> None:
        """Nothing is open."""


class Astray:
    """A planner whose wish is, now and then, anybody's."""

    def __init__(self, process: Process, planner: Planner) -> None:
        self._process = process
        self._planner = planner
        self.mode = planner.mode

    async def propose(self, question: Question) -> Proposal:
        wish = await self._planner.propose(question)
        faults = self._process.faults
        if not faults.draw("planner_strays"):
            return wish
        chance = faults.chance
        names = [*(vendor.vendor_id for vendor in question.vendors), "nobody"]
        hours = chance.choice(("0.01", "0.02", "0.05", "1000", "-1", "NaN", "0"))
        action: Literal["start_job", "wait"] = "wait" if chance.random() < 0.25 else "start_job"
        stray = Proposal(
            action=action, reason="astray", vendor_id=chance.choice(names), max_hours=Decimal(hours), mode="astray"
        )
        if _wanted(stray) != _wanted(wish):
            faults.count("planner_strays")
        return stray


def _wanted(wish: Proposal) -> tuple[str, ...]:
    return wish.action, str(wish.vendor_id), str(wish.max_hours)

"""
A worker's answer to a challenge: its report and a product of matrices, signed with its key.

One challenge at a time is taken, and it is ended when its time is over: it holds memory of the device.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from gpu_worker.core.attest import PURPOSE, ROUNDS_MAX, SIZE_MAX, SIZE_MIN, SIZE_STEP, is_size
from gpu_worker.core.errors import WorkerError
from wire import decimal_json
from wire.capability import ChallengeReady, ChallengeRequest, GpuCheck, Proof, StartRequest, Statement

# What a device is given to make a matrix, the start of its program included, and to keep it until it is asked.
PREPARE_S = 120
KEPT_S = 60


class CannotAttest(WorkerError):
    """The message says what is missing here, or what is wrong with the challenge."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.retryable = code == "challenge_busy"


class Prepared(Protocol):
    """A matrix on its device."""

    device: str

    async def prove(self, start: bytes, rounds: int) -> tuple[bytes, Decimal]:
        """Return the vectors and the seconds that they took. Raises CannotAttest."""

    async def close(self) -> None:
        """Give the memory back. Idempotent."""


class Prover(Protocol):
    async def prepare(self, seed: bytes, size: int) -> Prepared:
        """Return the matrix of `seed`. Raises CannotAttest: there is no room for it, or nothing to compute with."""


@dataclass(slots=True)
class _Open:
    id: str
    request: ChallengeRequest
    prepared: Prepared
    expiry: asyncio.TimerHandle


class Attestor:
    """
    Args:
        address: of the worker's key, empty where it has none; `sign` returns the signature of a text.
        report: returns what the machine has now, for whom.
        new_id: makes an id that cannot be guessed.
        kept_s: how long a matrix is kept for who does not go on.
    """

    def __init__(
        self,
        prover: Prover,
        report: Callable[[str], Awaitable[GpuCheck]],
        *,
        address: str,
        sign: Callable[[str], str],
        new_id: Callable[[], str],
        kept_s: float = KEPT_S,
    ) -> None:
        self._prover = prover
        self._report = report
        self._address = address
        self._sign = sign
        self._new_id = new_id
        self._kept_s = kept_s
        self._is_taken = False
        self._open: _Open | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def prepare(self, request: ChallengeRequest) -> ChallengeReady:
        """
        Put the matrix of a challenge on the device, and return how it is gone on with.

        Raises:
            CannotAttest: invalid_argument, challenge_busy (another one is open), cannot_attest.
        """
        if not self._address:
            raise CannotAttest("cannot_attest", "this worker has no key to sign with")
        if not is_size(request.size):
            raise CannotAttest("invalid_argument", f"size is a multiple of {SIZE_STEP} from {SIZE_MIN} to {SIZE_MAX}")
        if self._is_taken:
            raise CannotAttest("challenge_busy", "another challenge is open")
        self._is_taken = True
        try:
            prepared = await self._prepared(request)
        except BaseException:
            self._is_taken = False
            raise
        expiry = asyncio.get_running_loop().call_later(self._kept_s, self._expire)
        self._open = _Open(self._new_id(), request, prepared, expiry)
        return ChallengeReady(challenge=self._open.id, device=prepared.device, keeps_s=int(self._kept_s))

    async def _prepared(self, request: ChallengeRequest) -> Prepared:
        try:
            async with asyncio.timeout(PREPARE_S):
                return await self._prover.prepare(bytes.fromhex(request.seed), request.size)
        except TimeoutError:
            raise CannotAttest("cannot_attest", f"the matrix was not made within {PREPARE_S} s") from None

    async def answer(self, challenge: str, request: StartRequest) -> Proof:
        """
        Return the signed answer; the challenge is over with it, whatever came of it.

        Raises:
            CannotAttest: challenge_unknown, invalid_argument, cannot_attest (not in time, or the program failed).
        """
        if not 1 <= request.rounds <= ROUNDS_MAX:
            raise CannotAttest("invalid_argument", f"rounds is from 1 to {ROUNDS_MAX}")
        opened = self._open
        if opened is None or opened.id != challenge:
            raise CannotAttest("challenge_unknown", "there is no such challenge, or no longer")
        self._open = None
        opened.expiry.cancel()
        try:
            async with asyncio.timeout(request.deadline_s):
                vectors, took_s = await opened.prepared.prove(bytes.fromhex(request.start), request.rounds)
                report = await self._report(opened.request.agent_id)
        except TimeoutError:
            raise CannotAttest("cannot_attest", f"there was no answer within {request.deadline_s} s") from None
        finally:
            await self._ended(opened.prepared)
        statement = Statement(
            purpose=PURPOSE,
            address=self._address,
            seed=opened.request.seed,
            start=request.start,
            size=opened.request.size,
            rounds=request.rounds,
            vectors_sha256=hashlib.sha256(vectors).hexdigest(),
            device=opened.prepared.device,
            seconds=took_s,
            report=report,
        )
        text = decimal_json.dumps(statement.model_dump()).decode()
        return Proof(statement=text, signature=self._sign(text), vectors=base64.b64encode(vectors).decode())

    async def close(self) -> None:
        """End what is open. Idempotent."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.expiry.cancel()
            await self._ended(opened.prepared)
        if self._ending:
            await asyncio.wait(self._ending)

    def _expire(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            task = asyncio.create_task(self._ended(opened.prepared))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _ended(self, prepared: Prepared) -> None:
        with suppress(CannotAttest):
            await prepared.close()
        self._is_taken = False

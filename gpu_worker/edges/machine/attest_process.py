"""
Challenges are answered by a program of their own: the worker's first process never loads torch.

The program has a pipe whose end tells it to go, so that none outlives its worker.
"""

import asyncio
import base64
import binascii
import json
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gpu_worker.attesting import CannotAttest
from gpu_worker.core.attest import HELD_NUMBER_BYTES, NUMBER_BYTES, ROUNDS_MAX, SIZE_MAX
from gpu_worker.core.hardware import MIB, Device
from wire import decimal_json

PROGRAM = (sys.executable, "-m", "gpu_worker.engine.attest")
# A challenge may have a part of what is free: the machine is its owner's.
FREE_SHARE = 4
_LINE_BYTES_MAX = NUMBER_BYTES * SIZE_MAX * ROUNDS_MAX * 2


class AttestProcess:
    """
    Implements `gpu_worker.attesting.Prover`.

    `device` returns what is computed on and its free bytes, None while nothing is; `environment` is what a program is
    told, `visible` and all.
    """

    def __init__(
        self,
        device: Callable[[], tuple[Device, int] | None],
        environment: Callable[[Device], Mapping[str, str]],
        threads: Callable[[], int],
    ) -> None:
        self._device = device
        self._environment = environment
        self._threads = threads

    async def prepare(self, seed: bytes, size: int) -> "PreparedProcess":
        found = self._device()
        if found is None:
            raise CannotAttest("cannot_attest", "nothing is computed now: it starts, or its owner needs the machine")
        device, free_bytes = found
        needed = HELD_NUMBER_BYTES * size * size
        if needed > free_bytes // FREE_SHARE:
            raise CannotAttest(
                "cannot_attest",
                f"a matrix of size {size} takes {needed // MIB} MiB, and at most a {FREE_SHARE}th of the "
                f"{free_bytes // MIB} MiB that are free is given",
            )
        # Apple's GPUs have no doubles; their memory is the processor's.
        name = "cpu" if device.kind == "mps" else device.name
        program = await asyncio.create_subprocess_exec(
            *PROGRAM,
            name,
            str(self._threads()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environment(device),
            start_new_session=True,
            limit=_LINE_BYTES_MAX,
        )
        prepared = PreparedProcess(program, name)
        try:
            await prepared.ask({"seed": seed.hex(), "size": size})
        except BaseException:
            await prepared.close()
            raise
        return prepared


class PreparedProcess:
    """Implements `gpu_worker.attesting.Prepared`."""

    def __init__(self, program: asyncio.subprocess.Process, device: str) -> None:
        self._program = program
        self.device = device

    @property
    def pid(self) -> int:
        return self._program.pid

    async def prove(self, start: bytes, rounds: int) -> tuple[bytes, Decimal]:
        said = await self.ask({"start": start.hex(), "rounds": rounds})
        try:
            return base64.b64decode(said["vectors"], validate=True), Decimal(said["seconds"])
        except (KeyError, TypeError, ArithmeticError, binascii.Error):
            raise CannotAttest("cannot_attest", "the program that computes said what cannot be read") from None

    async def ask(self, question: Mapping[str, Any]) -> Any:
        """Return what the program answers. Raises CannotAttest: it has ended."""
        stdin, stdout = self._program.stdin, self._program.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            await stdin.drain()
            return decimal_json.loads(await stdout.readline())
        except (ConnectionError, ValueError):
            # torch is not there, or the device has no room after all: which of them is for the owner's log alone.
            raise CannotAttest(
                "cannot_attest", "the program that computes has ended: is the extra [worker] installed, and room left?"
            ) from None

    async def close(self) -> None:
        if self._program.returncode is None:
            try:
                self._program.kill()
            except ProcessLookupError:
                pass  # it ended just now
        await self._program.wait()

"""
The speed of a device, measured by a program of its own and kept: this process never loads torch.

A measurement is good for one device, driver, torch and number of threads; anything else is measured anew.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from decimal import Decimal
from importlib import metadata
from pathlib import Path

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import Device, Speed
from wire import decimal_json

PROGRAM = "gpu_worker.engine.measure"
LIMIT_S = 180.0
WORDS_MAX = 300
_LIBRARIES = ("torch", "transformers")


class MeasureProcess:
    """`folder` keeps what was measured; `environment` and `threads` are those that jobs run with."""

    def __init__(self, folder: Path, environment: Mapping[str, str], threads: int, driver: str = "") -> None:
        self._folder = folder
        self._environment = environment
        self._threads = threads
        self._driver = driver

    async def speed(self, device: Device) -> Speed:
        """Return what `device` does, measured once. Raises OwnersFault: it cannot be measured, and why."""
        kept = self._folder / f"{self._key(device)}.json"
        known = _read(kept)
        if known is None:
            await self._measure(device, kept)
            known = _read(kept)
        if known is None:
            raise OwnersFault("the program that measures the device wrote nothing that can be read")
        return known

    def kept(self, device: Device) -> Speed | None:
        """Return what was measured before, None: nothing was."""
        return _read(self._folder / f"{self._key(device)}.json")

    def forget(self, device: Device) -> None:
        """From now on the device is not measured. Idempotent."""
        (self._folder / f"{self._key(device)}.json").unlink(missing_ok=True)

    def _key(self, device: Device) -> str:
        facts = [device.name, device.gpu_type, device.visible, device.memory_bytes if device.kind == "cuda" else 0]
        facts += [self._driver, self._threads, *(_version(library) for library in _LIBRARIES)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    async def _measure(self, device: Device, into: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = into.with_name(f".{into.name}.{os.getpid()}")
        seen = {} if device.visible is None else {"CUDA_VISIBLE_DEVICES": device.visible}
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            PROGRAM,
            device.name,
            str(draft),
            str(self._threads),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**self._environment, **seen},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                _, said = await program.communicate()
        except TimeoutError:
            raise OwnersFault(f"the device {device.name} was not measured within {LIMIT_S:.0f} s") from None
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
        if program.returncode != 0 or not draft.exists():
            draft.unlink(missing_ok=True)
            words = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {program.returncode}"]
            raise OwnersFault(f"the device {device.name} cannot be measured: {words[0][:WORDS_MAX]}")
        draft.replace(into)


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> Speed | None:
    try:
        document = decimal_json.loads(path.read_bytes())
        return Speed(
            memory_bytes_per_s=int(document["memory_bytes_per_s"]),
            flops=int(document["flops"]),
            **{name: Decimal(document[name]) for name in ("tokens_per_s", "layer_s", "start_s")},
        )
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError):
        return None

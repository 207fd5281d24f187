"""llama.cpp's server as a child of this process: started, heard, ended. Its stderr is read for the reason alone."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.llama import LlamaSpec, Package, reason_of

PROGRAM = (sys.executable, "-m", "gpu_worker.edges.engines.llama_child")
SAID_BYTES_MAX = 32 * 1024
LINE_BYTES_MAX = 4 * 1024
END_S = 3.0
OFFLOADS_S = 30.0


class LlamaProcess:
    """A child that serves. `url` is the root of its server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = bytearray()
        self._hearing = asyncio.create_task(self._hear())
        self.url = ""

    @classmethod
    async def start(
        cls,
        spec: LlamaSpec,
        environment: Mapping[str, str],
        *,
        start_s: float,
        program: Sequence[str] = PROGRAM,
    ) -> "LlamaProcess":
        """
        Return the child once its model is loaded.

        Args:
            environment: all that it has of one.
            start_s: how long that may take.

        Raises:
            OwnersFault: it ended or did not come so far; the sentence says why.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
                # A stack trace of its own would start a debugger.
                env={**environment, "GGML_NO_BACKTRACE": "1", "LLAMA_LOG_COLORS": "0"},
                start_new_session=True,
            )
        except OSError as error:
            raise OwnersFault(f"llama.cpp's process cannot be started: {error.strerror or error}") from error
        child = cls(process)
        try:
            async with asyncio.timeout(start_s):
                child.url = await child._first_line(spec)
            # What it said while it was loaded is no reason of a later end.
            child._said.clear()
        except TimeoutError:
            raise OwnersFault(
                f"{spec.name} was not loaded within {start_s:g} s: {reason_of(child.said, None)}"
            ) from None
        finally:
            if not child.url:
                child.kill()
                await child.end()
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_there(self) -> bool:
        return self._process.returncode is None

    @property
    def said(self) -> str:
        """What it said last."""
        return self._said.decode(errors="replace")

    async def ended(self) -> str:
        """Return why it ended, once it has."""
        code = await self._process.wait()
        await asyncio.wait({self._hearing})
        return reason_of(self.said, code)

    async def end(self) -> None:
        """End it, if need be by force. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        finally:
            self._hearing.cancel()

    def kill(self) -> None:
        """End it by force, and all that it started. It is gone when `ended` returns."""
        if self.is_there:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended

    async def _first_line(self, spec: LlamaSpec) -> str:
        """Tell the child what to serve, and return the URL that it answers with. Raises OwnersFault: it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        try:
            self._process.stdin.write(spec.model_dump_json().encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
            return str(json.loads(line)["url"])
        except (OSError, ValueError, LookupError, TypeError):
            if line:
                self.kill()  # it says something else, and goes on
            raise OwnersFault(f"{spec.name} cannot be served: {await self.ended()}") from None

    async def _hear(self) -> None:
        """Keep the end of what it says; a pipe that nobody reads would stop it."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(SAID_BYTES_MAX):
            self._said += chunk
            del self._said[:-SAID_BYTES_MAX]


async def offloads(package: Package, environment: Mapping[str, str]) -> bool:
    """Return whether the llama.cpp that is installed computes on a GPU: the wheels of the common registry do not."""
    try:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, package, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env={**environment}
        )
        async with asyncio.timeout(OFFLOADS_S):
            told, _ = await process.communicate()
        return bool(told.strip().endswith(b"true"))
    except (OSError, TimeoutError):
        return False

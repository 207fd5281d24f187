"""The two ways to the same engine: llama.cpp's own server, and the worker's door before another one like it."""

import json
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.decode.arms import ROOT, Worker
from bench.decode.client import Turn, ask
from bench.decode.config import environment
from gpu_worker.core.inference.llama import LlamaSpec
from gpu_worker.edges.engines.llama_process import PROGRAM

CONTEXT = 1_024
THREADS = 1
# Every answer is as long as it was asked for.
FIELDS: dict[str, Any] = {"ignore_eos": True}


@dataclass
class Direct:
    """llama.cpp's server, as the worker starts it, asked without a worker before it."""

    model: Path
    slots: int
    name: str = "llama.cpp's server"

    def start(self) -> None:
        self._key = secrets.token_hex(16)
        spec = LlamaSpec(
            package="xllamacpp",
            path=str(self.model),
            name=self.model.stem,
            key=self._key,
            context=CONTEXT,
            slots=self.slots,
            threads=THREADS,
        )
        self._program = subprocess.Popen(
            [*PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(THREADS),
        )
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(spec.model_dump_json().encode() + b"\n")
        self._program.stdin.flush()
        self._url = json.loads(self._program.stdout.readline())["url"]

    @property
    def processes(self) -> tuple[str, ...]:
        return (f"{self._program.pid} llama.cpp, threads: {THREADS}",)

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        return ask(self._url, prompts, count, FIELDS, self._key)

    def stop(self) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait(10)
        self._program.stdout.close()


@dataclass
class Through:
    """A worker that serves the same file, asked at its door."""

    model: Path
    slots: int
    name: str = "through the door"

    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        options = (
            "--engine",
            "gguf",
            "--max-jobs",
            str(self.slots),
            "--context",
            str(CONTEXT),
            "--capability-port",
            "0",
        )
        self._worker = Worker(self.model, "", 0, Path(self._folder.name), threads=THREADS, options=options)
        self._worker.start()
        self._worker.wait()

    @property
    def processes(self) -> tuple[str, ...]:
        return (f"{self._worker.pid} the worker, and its llama.cpp, threads: {THREADS}",)

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        return ask(self._worker.url, prompts, count, FIELDS)

    def stop(self) -> None:
        self._worker.stop()
        self._folder.cleanup()

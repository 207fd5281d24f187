"""
llama.cpp beside us, by the wheel `xllamacpp`, in the interpreter that was named for peers.

This file is run by it, too, which has nothing of ours: `python peers.py serve FILE THREADS SLOTS CONTEXT`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.decode.config import environment

if TYPE_CHECKING:
    from bench.decode.client import Turn

ROOT = Path(__file__).resolve().parents[2]
# What it is asked beside what ours is: no answer to be had from an earlier prompt.
ASKED = {"ignore_eos": True, "cache_prompt": False}


def problem(python: str) -> str | None:
    """Return why llama.cpp cannot be run by that interpreter, None where it can."""
    try:
        said = subprocess.run([python, "-c", "import xllamacpp, gguf"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if said.returncode == 0 else (said.stderr.strip().splitlines() or ["it ended"])[-1]


@dataclass
class LlamaCpp:
    """A llama.cpp server with the model in `folder`, `kind` f32 or q8_0, in one process; asked over HTTP."""

    name: str
    python: str
    folder: Path
    kind: str
    threads: int = 1
    slots: int = 1
    context: int = 256

    def start(self) -> None:
        file = self.folder / f"{self.kind}.gguf"
        if not file.exists():
            command = [self.python, "-m", "bench.decode.gguf_file", str(self.folder), str(file), self.kind]
            subprocess.run(command, check=True, cwd=ROOT, env=environment(2))
        numbers = [str(each) for each in (self.threads, self.slots, self.context)]
        self._process = subprocess.Popen(
            [self.python, "-m", "bench.decode.peers", "serve", str(file), *numbers],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(self.threads),
        )
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith("{")), None)
        if line is None:
            raise RuntimeError(f"llama.cpp ended with {self._process.wait()}")
        self.said: dict[str, Any] = json.loads(line)

    @property
    def processes(self) -> tuple[str, ...]:
        return (f"{self._process.pid} {self.kind}, {self.threads} threads, {self.slots} slots",)

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> "Turn":
        from bench.decode.client import ask

        return ask(str(self.said["url"]), prompts, count, ASKED)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve(file: str, threads: int, slots: int, context: int) -> None:
    """Serve until stdin ends; one line of JSON says where."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = file
    asked.n_parallel = slots
    asked.n_ctx = slots * context
    asked.kv_unified = False
    asked.n_gpu_layers = 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
    asked.hostnames, asked.port = ["127.0.0.1"], 0
    asked.sampling.temp = 0.0
    asked.verbosity = -1
    server = xllamacpp.Server(asked)
    url = server.listening_address
    print(json.dumps({"url": url, "build": xllamacpp.BUILD_INFO, "system": xllamacpp.get_system_info()}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[2], *map(int, sys.argv[3:6]))

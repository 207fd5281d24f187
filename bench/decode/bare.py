"""
What two processes can reach at all: two engines and a bare pipe, no gRPC, no HTTP, no scheduler.

`python -m bench.decode.bare FOLDER FIRST LAST` is a program as those of `bench.decode.programs`; it starts itself again
for the last slice and hands the rows over by a pair of sockets.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.decode import config
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Done, Open, Run, Step, Tensor
from gpu_worker.engine.slice.slice_engine import EngineOptions, SliceEngine, open_engine

SESSION = "s"
POSITIONS = 4_000
# Position of the first row, and how many there are; the token that follows comes back.
HEAD, TOKEN = struct.Struct("<II"), struct.Struct("<I")


def opened(folder: str, layers: str) -> SliceEngine:
    options = EngineOptions(cache_bytes_max=1 << 28, dtype="fp32", back_end="lean", threads=config.threads())
    return open_engine(Path(folder), layers, options)


def begin(engine: SliceEngine, first: int) -> None:
    new = Open(
        session=SESSION,
        epoch=1,
        positions=POSITIONS,
        sampling=Sampling(temperature=0.0),
        history=(first,),
        prompt_len=1,
    )
    engine.step(Step(closes=(SESSION,), opens=(new,)))


def through(engine: SliceEngine, position: int, rows: Sequence[int] | Tensor, count: int) -> Done:
    run = Run(session=SESSION, epoch=1, position=position, count=count, samples=True)
    return engine.step(Step(runs=(run,), rows=rows if isinstance(rows, Tensor) else tuple(rows)))


def last(folder: str, layers: str, handle: int) -> None:
    """Take rows until the pipe ends, and give the token that follows."""
    engine, pipe = opened(folder, layers), socket.socket(fileno=handle)
    width = engine.info.hidden_size
    pipe.sendall(TOKEN.pack(0))
    while head := _read(pipe, HEAD.size):
        position, count = HEAD.unpack(head)
        rows = Tensor("float32", (count, width), _read(pipe, 4 * width * count))
        if position == 0:
            begin(engine, 0)
        pipe.sendall(TOKEN.pack(through(engine, position, rows, count).tokens[0].token))


def first(folder: str, mine: str, other: str) -> None:
    """Lead: a line of JSON comes in for each turn, one goes out."""
    here, there = socket.socketpair()
    command = [sys.executable, "-m", "bench.decode.bare", folder, other, str(there.fileno())]
    with there:
        behind = subprocess.Popen(command, pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL)
    with here:
        engine = opened(folder, mine)
        _read(here, TOKEN.size)
        print(json.dumps({"pids": [os.getpid(), behind.pid]}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            seconds = _turn(engine, here, asked["prompts"][0], asked["count"])
            print(json.dumps({"tokens": asked["count"] - 1, "seconds": seconds}), flush=True)
    behind.wait()


def _turn(engine: SliceEngine, pipe: socket.socket, rows: list[int], count: int) -> float:
    position, began = 0, 0.0
    begin(engine, rows[0])
    for number in range(count):
        hidden = through(engine, position, rows, len(rows)).hidden
        assert hidden is not None
        pipe.sendall(HEAD.pack(position, len(rows)) + hidden.data)
        position += len(rows)
        rows = [TOKEN.unpack(_read(pipe, TOKEN.size))[0]]
        if number == 0:
            began = time.perf_counter()
    return time.perf_counter() - began


def _read(pipe: socket.socket, count: int) -> bytes:
    """Return so many bytes, none where the pipe has ended."""
    data = bytearray()
    while len(data) < count:
        piece = pipe.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


if __name__ == "__main__":
    if sys.argv[3].isdigit():
        last(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        first(*sys.argv[1:4])

"""
Answers one challenge and ends: `python -m gpu_worker.engine.attest DEVICE THREADS` (see `gpu_worker.core.attest`).

It reads two lines of JSON, `{"seed", "size"}` and `{"start", "rounds"}`, and writes one after each: `{"ready"}` once
the matrix is on the device, then `{"seconds", "vectors"}`. Where its input ends it ends as well.
"""

import base64
import json
import sys
import time
from typing import Any

from gpu_worker.core.attest import PRIME, first_vector, row

# Rows that are made before they are brought to the device.
ROWS = 256


def main(arguments: list[str]) -> int:
    """Answer, return the exit code."""
    if len(arguments) != 2:
        print("usage: python -m gpu_worker.engine.attest DEVICE THREADS", file=sys.stderr)
        return 2
    first = sys.stdin.readline()
    if not first:
        return 0
    import torch

    torch.set_num_threads(int(arguments[1]))
    asked = json.loads(first)
    matrix = _matrix(torch, bytes.fromhex(asked["seed"]), asked["size"], arguments[0])
    # The first product of a device is slow: what it sets up is not part of what is timed.
    _vectors(torch, matrix, bytes(32), 1)
    print(json.dumps({"ready": True}), flush=True)
    second = sys.stdin.readline()
    if not second:
        return 0
    asked = json.loads(second)
    began_s = time.perf_counter()
    content = _vectors(torch, matrix, bytes.fromhex(asked["start"]), asked["rounds"])
    took_s = time.perf_counter() - began_s
    print(json.dumps({"seconds": round(took_s, 6), "vectors": base64.b64encode(content).decode()}), flush=True)
    return 0


def _matrix(torch: Any, seed: bytes, size: int, device: str) -> Any:
    """Return M on the device, in doubles: they hold every sum exactly."""
    matrix = torch.empty(size, size, dtype=torch.float64, device=device)
    for start in range(0, size, ROWS):
        end = min(size, start + ROWS)
        content = bytearray(b"".join(row(seed, index, size) for index in range(start, end)))
        matrix[start:end] = torch.frombuffer(content, dtype=torch.uint8).view(end - start, size).to(device)
    return matrix


def _vectors(torch: Any, matrix: Any, start: bytes, rounds: int) -> bytes:
    """Return the vectors, four bytes a number."""
    size = matrix.shape[0]
    vector = torch.tensor(first_vector(start, size), dtype=torch.float64, device=matrix.device)
    made = torch.empty(rounds, size, dtype=torch.int32, device=matrix.device)
    for each in range(rounds):
        vector = torch.remainder(matrix @ vector, PRIME)
        made[each] = vector
    content: bytes = made.cpu().numpy().astype("<i4").tobytes()
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Measures one device and ends: `python -m gpu_worker.engine.measure DEVICE OUT THREADS`.

OUT becomes a JSON object: bandwidth of the memory, FLOPs of a product of matrices, tokens a second of training the
reference model, and what a layer of a step costs however small it is.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_worker.core.estimate import REFERENCE, ModelShape

# Enough to leave every cache, and little enough for the smallest machine.
COPIED_NUMBERS = 16 * 1024 * 1024
SIDE = 1_024
BATCH = 4
# So small that nothing is left but the calls.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
LAYERS = ModelShape.from_config(REFERENCE).layers
LENGTH = 128
# Each is measured for about this long, after one round that does not count.
ROUND_S = 0.7
ROUNDS_MIN = 3
Seconds = Callable[[Callable[[], object]], float]


def main(arguments: list[str]) -> int:
    """Measure, write, return the exit code."""
    if len(arguments) != 3:
        print("usage: python -m gpu_worker.engine.measure DEVICE OUT THREADS", file=sys.stderr)
        return 2
    device, out, threads = arguments
    import torch

    torch.empty(0, device=device)  # one that is not there is told before anything else is loaded
    import transformers

    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    number = torch.float32 if device == "cpu" else torch.bfloat16
    wait = _waiter(torch, device)
    # What one thread does is told by the processor itself, however busy the machine is just now: it is kept for long.
    clock = time.process_time if device == "cpu" and int(threads) == 1 else time.perf_counter
    seconds = partial(_seconds, clock, wait)
    step = _training(torch, transformers, device, number, REFERENCE, BATCH, LENGTH)
    # What every program of a job pays before it can begin: in time of the processor, whatever else it does just now.
    start_s = time.process_time()
    small_step = _training(torch, transformers, device, number, {**REFERENCE, **SMALL}, 1, 8)
    document = {
        "memory_bytes_per_s": _bandwidth(torch, device, number, seconds),
        "flops": _flops(torch, device, number, seconds),
        "tokens_per_s": round(BATCH * LENGTH / seconds(step), 1),
        "layer_s": _rounded(seconds(small_step) / LAYERS),
        "start_s": _rounded(start_s),
    }
    Path(out).write_text(json.dumps(document))
    return 0


def _waiter(torch: Any, device: str) -> Callable[[], None]:
    """Return what waits until the device has done all that it was given."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return lambda: None
    waits: Callable[[], None] = torch.cuda.synchronize if kind == "cuda" else torch.mps.synchronize
    return waits


def _seconds(clock: Callable[[], float], wait: Callable[[], None], work: Callable[[], object]) -> float:
    """Return how long `work` takes, the fastest of some rounds: whatever else the machine does only adds to it."""
    work()
    wait()
    fastest, end, rounds = math.inf, clock() + ROUND_S, 0
    while rounds < ROUNDS_MIN or clock() < end:
        began = clock()
        work()
        wait()
        fastest, rounds = min(fastest, clock() - began), rounds + 1
    return fastest


def _bandwidth(torch: Any, device: str, number: Any, seconds: Seconds) -> int:
    source = torch.ones(COPIED_NUMBERS, dtype=number, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()  # read and written
    return int(moved / seconds(lambda: target.copy_(source)))


def _flops(torch: Any, device: str, number: Any, seconds: Seconds) -> int:
    left, right = (torch.randn(SIDE, SIDE, device=device).to(number) for _ in range(2))
    return int(2 * SIDE**3 / seconds(lambda: left @ right))


def _training(
    torch: Any, transformers: Any, device: str, number: Any, config: Any, batch: int, length: int
) -> Callable[[], None]:
    """Return one step of training: forward, backward, clip, AdamW, as jobs do it."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    model = model.to(device=device, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, config["vocab_size"], (batch, length), device=device)

    def step() -> None:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=number != torch.float32):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a decode pass of a stage takes, by its number of rows: the scheduler chooses its micro-batches by it."""

import statistics
import time

import torch
from torch import Tensor

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.stage import Stage

ROWS = (1, 2, 4, 8, 16, 32)
BUDGET_S = 1.5
PASSES = 5
_SESSION = "measured before the first {}"


def cost_curve(stage: Stage, budget_s: float = BUDGET_S) -> dict[int, float]:
    """
    Return seconds of a pass by its rows, one of each of so many sessions: the median of a few passes.

    It measures until `budget_s` is spent, a single row in any case; what is left out costs too much, or the cache is
    too small for it.
    """
    began_s, found, opened = time.monotonic(), dict[int, float](), list[str]()
    try:
        for rows in ROWS:
            while len(opened) < rows:
                session = _SESSION.format(len(opened))
                stage.open(session, 1)
                opened.append(session)
            seconds = _pass_s(stage, opened)
            # The first one finds nothing in the caches of the machine.
            taken = [] if found else [seconds]
            while len(taken) < PASSES and (not taken or time.monotonic() - began_s < budget_s):
                taken.append(_pass_s(stage, opened))
            found[rows] = statistics.median(taken)
            if time.monotonic() - began_s + 3 * found[rows] > budget_s:
                break
    except InferenceError:
        pass  # no more sessions fit
    finally:
        for session in opened:
            stage.close(session)
    return found


def rows_for(stage: Stage, count: int) -> Tensor:
    """Return `count` rows that the stage takes, always the same ones."""
    info, dice = stage.info, torch.Generator().manual_seed(count)
    if info.layers.is_first:
        return torch.randint(0, info.vocab_size, (count,), generator=dice)
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.randn(count, info.hidden_size, generator=dice).to(kinds[info.dtype])


def _pass_s(stage: Stage, sessions: list[str]) -> float:
    x = rows_for(stage, len(sessions)).to(stage.info.device)
    runs = [Run(session=session, epoch=0, position=0, count=1, samples=True) for session in sessions]
    began_s = time.perf_counter()
    # Reading a number waits for a device that computes on its own time.
    float(stage.forward(x, runs)[0, 0])
    seconds = time.perf_counter() - began_s
    for session in sessions:
        stage.rollback(session, 0)
    return seconds

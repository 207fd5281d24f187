"""What the benchmark reads of the environment, and what it gives to the processes that it times."""

import os


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that computes with so many threads and downloads nothing."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def threads() -> int:
    """Return with how many threads this process computes."""
    return int(os.environ["OMP_NUM_THREADS"])


def place() -> tuple[int, int]:
    """Return which of the processes that torchrun started this one is, and how many they are."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

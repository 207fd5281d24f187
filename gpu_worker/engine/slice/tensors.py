"""Bytes of the wire as tensors of torch, and back."""

import sys
from collections.abc import Sequence

import torch

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import Run, Tensor
from gpu_worker.core.inference.tensor import DTYPES, IDS, row_bytes
from gpu_worker.engine.slice.wire_int8 import pack, unpack

assert sys.byteorder == "little", "the wire's numbers are little-endian, and so must the machine's be"

# What floats are called on the wire, and how a slice's dtype is called there.
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WORDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def as_ids(rows: Sequence[int]) -> torch.Tensor:
    """Return token ids; one that fits no tensor is -1, and the caller's not to use."""
    try:
        return torch.tensor(rows, dtype=torch.int64)
    except (OverflowError, RuntimeError):
        return torch.tensor([row if 0 <= row < 2**31 else -1 for row in rows], dtype=torch.int64)


def check_rows(rows: Tensor) -> None:
    """Raises InferenceError invalid_tensor: these are no [N, H] floats, or not so many bytes as that takes."""
    if rows.dtype not in DTYPES or rows.dtype == IDS or len(rows.shape) != 2 or min(rows.shape) < 1:
        raise InferenceError("invalid_tensor", f"{rows.dtype[:32]} {list(rows.shape)[:4]} are no rows of hidden states")
    count, width = rows.shape
    if len(rows.data) != count * row_bytes(rows.dtype, width):
        raise InferenceError("invalid_tensor", f"{len(rows.data)} bytes are not {count} rows of {width} {rows.dtype}")


def as_torch(rows: Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows that `check_rows` let pass, in `dtype`: a copy, because who computes with them may write there."""
    count, width = rows.shape
    if rows.dtype not in FLOATS:
        return unpack(rows.data, count, width, rows.dtype).to(dtype)
    return torch.frombuffer(bytearray(rows.data), dtype=FLOATS[rows.dtype]).view(count, width).to(dtype)


def as_wire(hidden: torch.Tensor, dtype: str) -> Tensor:
    """Return [N, H] rows as the wire's `dtype`, in bytes of their own."""
    shape = tuple(hidden.shape)
    if dtype not in FLOATS:
        return Tensor(dtype, shape, pack(hidden.cpu(), dtype))
    found = hidden.to(FLOATS[dtype]).cpu().contiguous()
    return Tensor(dtype, shape, found.view(torch.uint8).numpy().tobytes())


def picked(x: torch.Tensor, runs: Sequence[Run], good: Sequence[Run]) -> torch.Tensor:
    """Return the rows of the `good` ones of `runs`, in the order of `runs`; `x` itself where all are."""
    if len(good) == len(runs):
        return x
    wanted, at, parts = {id(run) for run in good}, 0, []
    for run in runs:
        if id(run) in wanted:
            parts.append(x[at : at + run.count])
        at += run.count
    return torch.cat(parts) if parts else x[:0]

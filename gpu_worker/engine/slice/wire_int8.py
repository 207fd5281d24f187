"""
Hidden states as int8 on the wire: groups of numbers with one fp16 scale each, row by row.

A row is its numbers, then its scales, as `core.inference.tensor` has it. A row is packed by itself, so that a
neighbour's numbers never change it.
"""

import torch

from gpu_worker.core.inference.tensor import DTYPES, row_bytes

_LEVELS = 127
# The smallest fp16: a group of zeros stays one.
_SCALE_MIN = 2.0**-24
_SCALE_MAX = 65_504.0


def pack(hidden: torch.Tensor, dtype: str = "int8") -> bytes:
    """Return the bytes of [N, H] rows of floats; `dtype` is one with groups. Scales beyond fp16's range are cut."""
    group, (rows, width) = DTYPES[dtype].group, hidden.shape
    padding = -width % group
    padded = torch.nn.functional.pad(hidden.float(), (0, padding)).view(rows, -1, group)
    scales = _not_below((padded.abs().amax(-1, keepdim=True) / _LEVELS).clamp(_SCALE_MIN, _SCALE_MAX))
    numbers = (padded / scales.float()).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
    numbers = numbers.view(rows, -1)[:, :width]
    packed = torch.cat((numbers, scales.view(rows, -1).view(torch.int8)), dim=1)
    return bytes(packed.contiguous().numpy().data)


def _not_below(scales: torch.Tensor) -> torch.Tensor:
    """Return the next fp16 numbers from `scales` upwards: the largest number of a group keeps its size."""
    rounded = scales.half()
    return (rounded.view(torch.int16) + (rounded.float() < scales)).to(torch.int16).view(torch.float16)


def unpack(data: bytes | memoryview, rows: int, width: int, dtype: str = "int8") -> torch.Tensor:
    """Return the [N, H] float32 rows that `pack` made `data` of; its length is the caller's to have checked."""
    group = DTYPES[dtype].group
    packed = torch.frombuffer(bytearray(data), dtype=torch.int8).view(rows, row_bytes(dtype, width))
    numbers = torch.nn.functional.pad(packed[:, :width].float(), (0, -width % group)).view(rows, -1, group)
    scales = packed[:, width:].contiguous().view(torch.float16).float().unsqueeze(-1)
    return (numbers * scales).view(rows, -1)[:, :width].contiguous()

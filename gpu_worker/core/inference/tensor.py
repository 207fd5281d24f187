"""
Rows of numbers on the wire: which dtypes there are, how many bytes a row has, and what is refused before it is read.

A row of an int8 tensor is its numbers in groups, followed by one fp16 scale for each group; every other row is its
numbers alone. So a row always has `row_bytes` bytes, and rows can be cut and joined without a look at them.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.limits import MESSAGE_BYTES_MAX, REST_BYTES, ROWS_MAX
from gpu_worker.core.inference.step import Tensor


class Dtype(NamedTuple):
    """`size` is bytes a number; `group` is how many numbers share a scale, 0 where there are no scales."""

    size: int
    group: int = 0


SCALE_BYTES = 2
DTYPES: dict[str, Dtype] = {
    "float32": Dtype(4),
    "float16": Dtype(2),
    "bfloat16": Dtype(2),
    "int64": Dtype(8),
    "int8": Dtype(1, 64),
    "int8g128": Dtype(1, 128),
}
IDS = "int64"
# Those in which hidden states may be sent.
HIDDEN = tuple(name for name in DTYPES if name != IDS)


class Expected(NamedTuple):
    """What a stage takes: [N, width] rows in one of `dtypes`, at most `rows_max` of them. A width of 0: ids, [N]."""

    width: int
    dtypes: tuple[str, ...]
    rows_max: int = ROWS_MAX


def row_bytes(dtype: str, width: int) -> int:
    """Return the bytes of one row of `width` numbers. Raises InferenceError invalid_tensor: no such dtype."""
    kind = DTYPES.get(dtype)
    if kind is None:
        raise InferenceError("invalid_tensor", f"{dtype[:32]!r} is no dtype of the wire: {', '.join(DTYPES)}")
    return width * kind.size + (-(-width // kind.group) * SCALE_BYTES if kind.group else 0)


def check(dtype: str, shape: Sequence[int], length: int, expected: Expected) -> int:
    """
    Return how many rows `length` bytes with this head are. Leading dimensions of 1 are passed over.

    Raises InferenceError invalid_tensor: they are not what is expected; nothing was allocated for them.
    """
    if dtype not in expected.dtypes:
        raise InferenceError("invalid_tensor", f"dtype {dtype[:32]!r} is not taken here: {', '.join(expected.dtypes)}")
    rank = 2 if expected.width else 1
    if not rank <= len(shape) <= rank + 1:
        raise InferenceError("invalid_tensor", f"a shape of {len(shape)} dimensions, {rank} are asked for")
    if len(shape) > rank and shape[0] != 1:
        raise InferenceError("invalid_tensor", f"a batch of {shape[0]}: sessions are sent one by one")
    rows, width = shape[-rank], (shape[-1] if expected.width else 1)
    if not 1 <= rows <= expected.rows_max:
        raise InferenceError("invalid_tensor", f"{rows} rows, 1 to {expected.rows_max} are taken")
    if expected.width and width != expected.width:
        raise InferenceError("invalid_tensor", f"rows of {width} numbers, this model has {expected.width}")
    wanted = rows * row_bytes(dtype, width)
    if length != wanted:
        raise InferenceError("invalid_tensor", f"{length} bytes, {rows} rows of {dtype} are {wanted}")
    return rows


def may_send(dtype: str, own: str, takes: Collection[str]) -> bool:
    """Return whether rows of `dtype` may go from a slice whose `own` dtype that is to a stage that `takes` those."""
    return dtype == own or dtype in takes


def message_bytes(width: int) -> int:
    """Return the bytes of the largest message in which rows have `width` numbers; 0: there are no rows in it."""
    return min(MESSAGE_BYTES_MAX, width * 4 * ROWS_MAX + REST_BYTES)


def cut(tensor: Tensor, first: int, count: int) -> Tensor:
    """Return rows [first, first + count) of a [N, width] tensor; the bytes are shared, not copied."""
    width = tensor.shape[-1]
    size = row_bytes(tensor.dtype, width)
    data = memoryview(tensor.data)[first * size : (first + count) * size]
    return Tensor(tensor.dtype, (count, width), data)

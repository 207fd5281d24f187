"""
The header of a GGUF file: what it says of the model, and which tensors lie where.

Every number is held against a limit before anything is kept, because a file may come from anybody and llama.cpp ends
the process on some of them. Source: ggml's docs/gguf.md and gguf.cpp.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_worker.core.errors import OwnersFault

MAGIC = b"GGUF"
KEYS_MAX = 10_000
TENSORS_MAX = 200_000
KEY_BYTES_MAX = 1_024
TEXT_BYTES_MAX = 1024 * 1024
TENSOR_NAME_BYTES_MAX = 63
# Arrays of numbers up to this length are kept (one for each layer), of longer ones the length alone.
KEPT_MAX = 1_024
TENSOR_BYTES_MAX = 2**43
ALIGNMENT_MAX = 2**20
DIMENSIONS_MAX = 4

Value = bool | int | float | str | tuple[bool | int | float, ...]


class BadGguf(OwnersFault):
    """The file is no GGUF model that can be served; the sentence says why and never where it lies."""


class Incomplete(Exception):
    """The header is longer than the bytes that were given."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """`numbers` of a tensor stand in `bytes`."""

    name: str
    numbers: int
    bytes: int


BLOCK_TYPES: Mapping[int, BlockType] = {
    number: BlockType(name, numbers, size)
    for number, name, numbers, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
    )
}  # fmt: skip
# What was packed for one processor; llama.cpp does it itself now.
REMOVED_TYPES: Mapping[int, str] = {
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
# What `general.file_type` calls a whole file.
FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 38: "MXFP4",
}  # fmt: skip

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct(f"<{form}")
    for number, form in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` has the row's length first, as ggml counts; `offset` is from the beginning of the data."""

    name: str
    shape: tuple[int, ...]
    kind: str
    bytes: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """
    `values` are single ones and short arrays of numbers, `lengths` are those of all arrays. The data of all tensors
    begins at `size` and has `data_bytes`.
    """

    version: int
    values: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    size: int
    data_bytes: int


def parse(data: bytes, file_bytes: int) -> Header:
    """
    Return the header that `data`, the beginning of a file of `file_bytes`, holds.

    Raises:
        Incomplete: it is not all in `data`, and the file goes on.
        BadGguf: it is none, or says of itself what cannot be.
    """
    reader = _Reader(data, file_bytes)
    if data[:4] != MAGIC:
        raise BadGguf("this is no GGUF file: it does not begin with GGUF")
    reader.at = 4
    version = reader.number(_U32)
    if version & 0xFFFF == 0:
        raise BadGguf("this GGUF file was written for big-endian machines")
    if version not in (2, 3):
        raise BadGguf(f"this GGUF file is of version {version}; 2 and 3 can be read")
    tensor_count = reader.count("tensors", TENSORS_MAX)
    key_count = reader.count("keys", KEYS_MAX)
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        _read_key(reader, values, lengths)
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise BadGguf(f"general.alignment is {shown(str(alignment)[:20])}, not a power of two")
    tensors, data_bytes = _read_tensors(reader, tensor_count, alignment)
    size = reader.at + -reader.at % alignment if tensors else reader.at
    if tensors and size + data_bytes > file_bytes:
        missing = size + data_bytes - file_bytes
        raise BadGguf(f"the file is cut off: its tensors end {missing:,} bytes behind its end")
    return Header(version=version, values=values, lengths=lengths, tensors=tensors, size=size, data_bytes=data_bytes)


class _Reader:
    """Where in the header we are. What it returns lies within the data."""

    def __init__(self, data: bytes, file_bytes: int) -> None:
        self.at = 0
        self.data = data
        self.file_bytes = file_bytes

    def skip(self, size: int) -> int:
        """Go on by `size` bytes and return where they begin. Raises Incomplete, BadGguf: they are not there."""
        begin, end = self.at, self.at + size
        if end > self.file_bytes:
            raise BadGguf("the file is cut off in its header")
        if end > len(self.data):
            raise Incomplete
        self.at = end
        return begin

    def number(self, form: struct.Struct) -> Any:
        return form.unpack_from(self.data, self.skip(form.size))[0]

    def count(self, what: str, most: int) -> int:
        found: int = self.number(_U64)
        if found > most:
            raise BadGguf(f"the header says that it has {found:,} {what}; {most:,} are the most")
        return found

    def text(self, what: str, most: int) -> bytes:
        size = self.count(f"bytes of {what}", most)
        begin = self.skip(size)
        return self.data[begin : begin + size]

    def words(self, what: str, most: int) -> str:
        try:
            return self.text(what, most).decode()
        except UnicodeDecodeError:
            raise BadGguf(f"{what} is no UTF-8") from None


def _read_key(reader: _Reader, values: dict[str, Value], lengths: dict[str, int]) -> None:
    key = reader.words("a key", KEY_BYTES_MAX)
    if not key or key in values or key in lengths:
        raise BadGguf(f"the key {shown(key)} stands twice in the header" if key else "a key of the header is empty")
    kind: int = reader.number(_U32)
    if kind == _STRING:
        values[key] = reader.text("a text", TEXT_BYTES_MAX).decode(errors="replace")
    elif kind in _SCALARS:
        values[key] = reader.number(_SCALARS[kind])
    elif kind == _ARRAY:
        item: int = reader.number(_U32)
        length: int = reader.number(_U64)
        lengths[key] = length
        if item == _STRING:
            _skip_texts(reader, key, length)
        elif item not in _SCALARS:
            raise BadGguf(f"{shown(key)} is an array of an unknown type ({item})")
        else:
            form = _SCALARS[item]
            begin = reader.skip(length * form.size)
            if length <= KEPT_MAX:
                packed = reader.data[begin : reader.at]
                values[key] = tuple(number for (number,) in form.iter_unpack(packed))
    else:
        raise BadGguf(f"{shown(key)} is of an unknown type ({kind})")


def _skip_texts(reader: _Reader, key: str, length: int) -> None:
    """Go past an array of texts. Every text has its length in eight bytes, so no count can be larger than the file."""
    if length * _U64.size > reader.file_bytes:
        raise BadGguf(f"{shown(key)} says that it has {length:,} texts, more than the file could hold")
    data, at, unpack = reader.data, reader.at, _U64.unpack_from
    end = len(data) - _U64.size
    for _ in range(length):
        if at > end:
            reader.skip(at + _U64.size - reader.at)
        size = unpack(data, at)[0]
        if size > TEXT_BYTES_MAX:
            raise BadGguf(f"a text of {shown(key)} is {size:,} bytes long")
        at += _U64.size + size
    reader.skip(at - reader.at)


def _read_tensors(reader: _Reader, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    """Return the tensors, and the bytes of their data with what lies between them."""
    found: dict[str, Tensor] = {}
    expected = 0
    for _ in range(count):
        tensor = _read_tensor(reader)
        if tensor.name in found:
            raise BadGguf(f"the tensor {shown(tensor.name)} stands twice in the header")
        if tensor.offset != expected:
            raise BadGguf(f"the tensor {shown(tensor.name)} does not begin where the one before it ends")
        expected += tensor.bytes + -tensor.bytes % alignment
        found[tensor.name] = tensor
    last = next(reversed(found.values()), None)
    return tuple(found.values()), 0 if last is None else last.offset + last.bytes


def _read_tensor(reader: _Reader) -> Tensor:
    name = reader.words("a tensor's name", TENSOR_NAME_BYTES_MAX)
    dimensions: int = reader.number(_U32)
    if not 0 < dimensions <= DIMENSIONS_MAX:
        raise BadGguf(f"the tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(int(reader.number(_U64)) for _ in range(dimensions))
    number: int = reader.number(_U32)
    offset: int = reader.number(_U64)
    if number in REMOVED_TYPES:
        raise BadGguf(
            f"the tensor {shown(name)} is {REMOVED_TYPES[number]}, which llama.cpp no longer reads: take the "
            f"{REMOVED_TYPES[number].rsplit('_', 2)[0]} file, it is packed for the processor as it is loaded"
        )
    block = BLOCK_TYPES.get(number)
    if block is None:
        raise BadGguf(f"the tensor {shown(name)} is of an unknown type ({number})")
    numbers = 1
    for side in shape:
        numbers *= side
        if not 0 < numbers <= TENSOR_BYTES_MAX:
            raise BadGguf(f"the tensor {shown(name)} has sides that cannot be: {' x '.join(map(str, shape))}")
    if shape[0] % block.numbers:
        raise BadGguf(f"a row of {shown(name)} has {shape[0]} numbers, {block.name} takes {block.numbers} at a time")
    return Tensor(name, shape, block.name, numbers // block.numbers * block.bytes, offset)


def shown(name: str) -> str:
    """Return a name out of a file as it may stand in a sentence."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:80])

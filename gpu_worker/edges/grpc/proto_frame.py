"""The bytes of a StepBatch that protobuf does not write: the rows as they are, and the checksum at its end."""

from zlib import crc32

from gpu_worker.core.inference.step import Tensor
from wire.proto import inference_pb2 as pb

# Field 9 of StepBatch and field 3 of Tensor, with a length each.
_HIDDEN_TAG = bytes([9 << 3 | 2])
_DATA_TAG = bytes([3 << 3 | 2])
# Field 20 of StepBatch, four bytes.
_CHECKSUM_TAG = bytes([(20 << 3 | 5) & 0x7F | 0x80, (20 << 3 | 5) >> 7])
_CHECKSUM_BYTES = len(_CHECKSUM_TAG) + 4


def sealed(*parts: bytes | memoryview) -> bytes:
    """
    Return the parts of a StepBatch as one message, with the checksum that it is refused without.

    A byte that changes on the way past TCP's own sum would be another token, and nobody would see it.
    """
    total = 0
    for part in parts:
        total = crc32(part, total)
    return b"".join((*parts, _CHECKSUM_TAG, total.to_bytes(4, "little")))


def is_whole(data: bytes) -> bool:
    """Return whether the checksum of a message is its own."""
    bytes_of_it = memoryview(data)
    body, seal = bytes_of_it[:-_CHECKSUM_BYTES], bytes_of_it[-_CHECKSUM_BYTES:]
    return seal == _CHECKSUM_TAG + crc32(body).to_bytes(4, "little")


def tensor_parts(tensor: Tensor) -> tuple[bytes | memoryview, ...]:
    """Return the field `hidden` in parts, the rows as they are: through a message they would be copied twice more."""
    head: bytes = pb.Tensor(dtype=tensor.dtype, shape=tensor.shape).SerializeToString()
    data_head = _DATA_TAG + _varint(len(tensor.data))
    size = len(head) + len(data_head) + len(tensor.data)
    return _HIDDEN_TAG + _varint(size), head, data_head, tensor.data


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)

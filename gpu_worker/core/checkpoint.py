"""How a checkpoint is cut up for the buyer's store, and what it is called there."""

from collections.abc import Iterator
from dataclasses import dataclass

from wire.checkpoint import Manifest

NAME_CHARS_MAX = 120


@dataclass(frozen=True, slots=True)
class Piece:
    """`bytes` of a file, from `offset` on; the `number`-th of it."""

    number: int
    offset: int
    bytes: int


def pieces(size_bytes: int, piece_bytes: int) -> Iterator[Piece]:
    """Yield what a file of `size_bytes` is cut into; nothing of an empty one."""
    for number, offset in enumerate(range(0, size_bytes, piece_bytes)):
        yield Piece(number, offset, min(piece_bytes, size_bytes - offset))


def part_name(step: int, file_name: str, piece: Piece, sha256: str) -> str:
    """Return the name of a part; its hash is in it, so that no name ever comes again with other bytes."""
    tail = f".{piece.number}.{sha256[:16]}"
    return f"{step}-{file_name}"[: NAME_CHARS_MAX - len(tail)] + tail


def local(manifest: Manifest) -> Manifest:
    """Return the manifest as it lies in a job's folder: a file there is whole, not in parts."""
    return manifest.model_copy(
        update={"files": tuple(file.model_copy(update={"parts": ()}) for file in manifest.files)}
    )

"""
A worker proves what it says of itself: a product of matrices that only somebody who computes can know, in time.

Who verifies names a `seed`, from which the worker makes a matrix M of `size` times `size` bytes and puts it where it
computes. Only then is it told `start`, and the clock runs: from the vector y(0) that follows from `start` it computes
y(t+1) = M y(t) modulo PRIME, `rounds` times. A round needs the whole of M and cannot begin before the one before it
ended, so the time tells how much memory is read in a second. The vectors are the answer: with a random r who verifies
compares (r M) y(t) with r y(t+1) (Freivalds), which costs one pass through M where the worker made `rounds`.

All numbers stay below 2**53: doubles hold them exactly on every device.

Source: R. Freivalds, Fast probabilistic algorithms, MFCS 1979.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_128, shake_256
from itertools import pairwise
from operator import mul

PRIME = 2**31 - 1
SIZE_MIN, SIZE_MAX, SIZE_STEP = 64, 8_192, 64
ROUNDS_MAX = 128
SEED_BYTES = 32
# Two weights a verification: what is wrong passes both in one case of 2**60.
WEIGHTS = 2
NUMBER_BYTES = 4
# What one number of M takes where it is computed with.
HELD_NUMBER_BYTES = 8
# What the worker's statement begins with: its key signs nothing else that looks so.
PURPOSE = "livery worker attestation 1"

Vector = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What is asked of a worker. `seed` and `start` are SEED_BYTES of chance each, `start` is told last."""

    seed: bytes
    start: bytes
    size: int
    rounds: int

    @property
    def operations(self) -> int:
        """Multiplications and additions that the answer takes."""
        return 2 * self.size * self.size * self.rounds

    @property
    def matrix_bytes(self) -> int:
        """What has to be kept, or made anew each round."""
        return self.size * self.size


def is_size(size: int) -> bool:
    return SIZE_MIN <= size <= SIZE_MAX and size % SIZE_STEP == 0


def row(seed: bytes, index: int, size: int) -> bytes:
    """Return a row of the matrix, a byte a number."""
    return shake_128(b"livery/row" + seed + index.to_bytes(4, "little")).digest(size)


def first_vector(start: bytes, size: int) -> tuple[int, ...]:
    """Return y(0): numbers below PRIME."""
    return _below_prime(b"livery/start" + start, size)


def weights_of(chance: bytes, size: int) -> tuple[int, ...]:
    """Return `size` numbers below PRIME from secret `chance`, for one comparison."""
    return _below_prime(b"livery/weights" + chance, size)


def packed(vectors: Sequence[Vector]) -> bytes:
    """Return the vectors one behind the other, four bytes a number, the lowest first."""
    return b"".join(struct.pack(f"<{len(each)}I", *each) for each in vectors)


def vectors_of(content: bytes, challenge: Challenge) -> tuple[tuple[int, ...], ...] | None:
    """Return the vectors of an answer, None where it is no answer: another length, or a number that is none."""
    if len(content) != NUMBER_BYTES * challenge.size * challenge.rounds:
        return None
    numbers, size = _numbers(content), challenge.size
    if max(numbers) >= PRIME:
        return None
    return tuple(numbers[at : at + size] for at in range(0, len(numbers), size))


def is_product(challenge: Challenge, vectors: Sequence[Vector], weights: Sequence[Vector]) -> bool:
    """Return whether every vector is M times the one before it; it is wrong for the chance of `weights` alone."""
    chain = [first_vector(challenge.start, challenge.size), *vectors]
    return all(_agrees(challenge, chain, each) for each in weights)


def _agrees(challenge: Challenge, chain: Sequence[Vector], weights: Vector) -> bool:
    through = _weighted(challenge, weights)
    return all((_dot(through, before) - _dot(weights, after)) % PRIME == 0 for before, after in pairwise(chain))


def _weighted(challenge: Challenge, weights: Vector) -> tuple[int, ...]:
    """
    Return r M modulo PRIME, without a library of matrices.

    A row is one long number. Of each eight bytes of it one is taken, so that there is room for the sum of all rows, and
    multiplying that long number by a weight multiplies all that are in it: Python computes with 64 bits at a time.
    """
    size, lanes = challenge.size, 8
    mask = int.from_bytes(b"\xff" + b"\0" * (lanes - 1), "little") * sum(1 << (64 * at) for at in range(size // lanes))
    sums = [0] * lanes
    for index, weight in enumerate(weights):
        line = int.from_bytes(row(challenge.seed, index, size), "little")
        for lane in range(lanes):
            sums[lane] += weight * ((line >> (8 * lane)) & mask)
    columns = [struct.unpack(f"<{size // lanes}Q", each.to_bytes(size, "little")) for each in sums]
    return tuple(number % PRIME for at in zip(*columns, strict=True) for number in at)


def _dot(left: Vector, right: Vector) -> int:
    return sum(map(mul, left, right))


def _below_prime(chance: bytes, count: int) -> tuple[int, ...]:
    return tuple(number % PRIME for number in _numbers(shake_256(chance).digest(NUMBER_BYTES * count)))


def _numbers(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(content) // NUMBER_BYTES}I", content)

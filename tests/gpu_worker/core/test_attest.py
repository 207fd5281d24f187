"""A product of matrices is known to be right, and known to be wrong, without being computed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.attest import (
    PRIME,
    ROUNDS_MAX,
    SIZE_MAX,
    Challenge,
    first_vector,
    is_product,
    is_size,
    packed,
    row,
    vectors_of,
    weights_of,
)

SEED, START = bytes(range(32)), bytes(range(32, 64))
SMALL = Challenge(seed=SEED, start=START, size=64, rounds=4)
WEIGHTS = [weights_of(b"one", 64), weights_of(b"other", 64)]


def computed(challenge: Challenge) -> list[tuple[int, ...]]:
    """Return the vectors, as a pupil would compute them."""
    matrix = [row(challenge.seed, index, challenge.size) for index in range(challenge.size)]
    vectors = [first_vector(challenge.start, challenge.size)]
    for _ in range(challenge.rounds):
        vectors.append(tuple(sum(a * b for a, b in zip(line, vectors[-1], strict=True)) % PRIME for line in matrix))
    return vectors[1:]


RIGHT = computed(SMALL)


def test_what_was_computed_is_a_product() -> None:
    assert is_product(SMALL, RIGHT, WEIGHTS)
    odd = Challenge(seed=START, start=SEED, size=192, rounds=2)
    assert is_product(odd, computed(odd), [weights_of(b"third", 192)])


@given(round_=st.integers(0, 3), place=st.integers(0, 63), by=st.integers(1, PRIME - 1), chance=st.binary(min_size=8))
def test_one_wrong_number_is_found(round_: int, place: int, by: int, chance: bytes) -> None:
    wrong = [[*each] for each in RIGHT]
    wrong[round_][place] = (wrong[round_][place] + by) % PRIME
    assert not is_product(SMALL, wrong, [weights_of(chance, 64)])


def test_the_answer_to_another_challenge_is_no_product() -> None:
    for other in (
        Challenge(seed=START, start=START, size=64, rounds=4),
        Challenge(seed=SEED, start=SEED, size=64, rounds=4),
    ):
        assert not is_product(other, RIGHT, WEIGHTS)
    # Rounds that were left out, or told in another order.
    assert not is_product(SMALL, [RIGHT[0], *RIGHT[2:], RIGHT[1]], WEIGHTS)


def test_no_sum_passes_what_a_double_holds() -> None:
    assert 255 * (PRIME - 1) * SIZE_MAX < 2**53
    # And none of the verifier's leaves its 64 bits.
    assert 255 * (PRIME - 1) * SIZE_MAX < 2**64


def test_an_answer_is_read_only_if_it_is_whole_and_its_numbers_are() -> None:
    content = packed(RIGHT)
    assert vectors_of(content, SMALL) == tuple(RIGHT)
    assert vectors_of(content[:-4], SMALL) is None
    assert vectors_of(content + bytes(4), SMALL) is None
    assert vectors_of(b"", SMALL) is None
    assert vectors_of(struct.pack("<I", PRIME) + content[4:], SMALL) is None


def test_numbers_are_spread_over_all_that_there_are() -> None:
    numbers = first_vector(START, 4_096)
    assert len(numbers) == 4_096
    assert 0 <= min(numbers) < PRIME // 100
    assert PRIME * 99 // 100 < max(numbers) < PRIME
    assert set(row(SEED, 0, 8_192)) == set(range(256))
    assert row(SEED, 0, 64) != row(SEED, 1, 64) != row(START, 1, 64)


@pytest.mark.parametrize("size", [0, 63, 65, -64, 100, SIZE_MAX + 64])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    assert not is_size(size)
    assert is_size(64)
    assert is_size(SIZE_MAX)


def test_what_was_done_is_counted() -> None:
    assert SMALL.operations == 2 * 64 * 64 * 4
    assert SMALL.matrix_bytes == 4_096
    assert ROUNDS_MAX >= 128

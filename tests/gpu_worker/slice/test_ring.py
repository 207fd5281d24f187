"""The ring of kept rows: whole sessions from position 0, bounded in bytes, the same bytes that were sent."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.batch import Refill
from gpu_worker.core.inference.ring import BLOCK_ROWS, Ring
from gpu_worker.core.inference.step import Run, Tensor

WIDTH = 2
SIZE = 8
BLOCK = BLOCK_ROWS * SIZE


def row(session: str, position: int, salt: int = 0) -> bytes:
    return bytes([ord(session), salt]) + position.to_bytes(SIZE - 2, "little")


def run(session: str, position: int, count: int) -> Run:
    return Run(session=session, epoch=0, position=position, count=count)


def keep(ring: Ring, *runs: Run, salt: int = 0) -> None:
    data = b"".join(row(each.session, at, salt) for each in runs for at in range(each.position, each.end))
    ring.keep(runs, Tensor("float32", (len(data) // SIZE, WIDTH), data))


def kept(ring: Ring, session: str) -> list[bytes]:
    rows = ring.rows(session, 0, ring.length(session))
    return [] if rows is None else [bytes(rows.data[at : at + SIZE]) for at in range(0, len(rows.data), SIZE)]


def test_rows_come_back_by_position() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 100), run("b", 0, 3))
    keep(ring, run("b", 3, 1), run("a", 100, 1))
    assert ring.rows("a", 31, 65) == Tensor("float32", (34, WIDTH), b"".join(row("a", at) for at in range(31, 65)))
    assert (kept(ring, "b"), ring.length("a")) == ([row("b", at) for at in range(4)], 101)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (3, 4), (2, 2), (2, 1), (-1, 2)])
def test_what_is_not_kept_as_a_whole_is_not_given(start: int, end: int) -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 3))
    assert ring.rows("a", start, end) is None
    assert ring.rows("b", 0, 1) is None


def test_a_run_that_begins_earlier_cuts_what_is_behind() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 2 * BLOCK_ROWS + 5))
    keep(ring, run("a", 10, 2), salt=1)
    assert kept(ring, "a") == [*(row("a", at) for at in range(10)), row("a", 10, 1), row("a", 11, 1)]
    assert ring.bytes_used == BLOCK


def test_a_hole_makes_the_rest_useless() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 1, 2), run("b", 0, 2))
    keep(ring, run("b", 3, 1))
    assert (len(ring), ring.bytes_used) == (0, 0)
    keep(ring, run("b", 0, 1))
    assert ring.length("b") == 1


def test_the_session_that_was_used_longest_ago_goes_first_and_as_a_whole() -> None:
    ring = Ring(4 * BLOCK)
    for session in "abcd":
        keep(ring, run(session, 0, 2))
    keep(ring, run("a", 2, 1))
    assert ring.rows("b", 0, 1) is not None
    keep(ring, run("e", 0, BLOCK_ROWS + 1))
    assert [ring.length(session) for session in "abcde"] == [3, 2, 0, 0, BLOCK_ROWS + 1]
    keep(ring, run("c", 2, 1))
    assert ring.length("c") == 0, "it can begin again only at position 0"
    assert ring.bytes_used == 4 * BLOCK


def test_a_session_that_is_larger_than_the_ring_is_not_kept() -> None:
    ring = Ring(2 * BLOCK)
    keep(ring, run("a", 0, 3 * BLOCK_ROWS))
    assert (len(ring), ring.bytes_used) == (0, 0)
    nothing = Ring(0)
    keep(nothing, run("a", 0, 1))
    assert nothing.length("a") == 0


def test_rows_of_another_kind_begin_anew() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 3), run("b", 0, 1))
    ring.keep([run("a", 0, 2)], Tensor("bfloat16", (2, WIDTH), bytes(8)))
    assert ring.rows("a", 0, 2) == Tensor("bfloat16", (2, WIDTH), bytes(8))
    assert (kept(ring, "b"), ring.bytes_used) == ([row("b", 0)], BLOCK // 2 + BLOCK), "others stay"
    ring.keep([run("b", 1, 1)], Tensor("bfloat16", (1, WIDTH), bytes(4)))
    assert (ring.length("b"), ring.dtype("b"), ring.dtype("a")) == (0, "", "bfloat16"), "half of each fills nothing"


def test_a_dropped_session_gives_its_bytes_back() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 3))
    ring.drop("a")
    ring.drop("a")
    assert (ring.bytes_used, ring.length("a")) == (0, 0)


def test_fills_are_runs_of_bounded_length_in_order() -> None:
    ring = Ring(1 << 20)
    keep(ring, run("a", 0, 100))

    def fills(length: int) -> Iterator[tuple[Run, Tensor]]:
        return ring.fills(Refill(session="a", epoch=3, length=length, index=1), 40)

    got = [*fills(90)]
    assert [(each.position, each.count, each.epoch, each.fills) for each, _ in got] == [
        (0, 40, 3, True),
        (40, 40, 3, True),
        (80, 10, 3, True),
    ]
    assert b"".join(rows.data for _, rows in got) == b"".join(row("a", at) for at in range(90))
    assert [each.count for each, _ in fills(101)] == [40, 40]
    assert not [*fills(0)]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90), st.integers(1, 70), st.integers(0, 9)), max_size=40),
    st.integers(0, 8),
)
def test_what_is_kept_is_always_what_was_sent(runs: list[tuple[str, int, int, int]], blocks: int) -> None:
    """Against lists: what a session has is a prefix without a hole of the rows that were sent last."""
    ring = Ring(blocks * BLOCK)
    sent: dict[str, list[bytes]] = {}
    for session, position, count, salt in runs:
        rows = [row(session, at, salt) for at in range(position, position + count)]
        before = sent.get(session, [])
        sent[session] = [*before[:position], *rows] if position <= len(before) else []
        keep(ring, run(session, position, count), salt=salt)
        for name in [*sent]:
            if ring.length(name) == 0:
                sent[name] = []
            assert kept(ring, name) == sent[name]
        assert ring.bytes_used <= ring.bytes_max
        assert ring.bytes_used == sum(-(-len(each) // BLOCK_ROWS) * BLOCK for each in sent.values())

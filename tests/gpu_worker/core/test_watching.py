"""What is read of a program's progress, what its processes may take, a worker's life, the pieces of a checkpoint."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core import checkpoint, progress
from gpu_worker.core.bounds import Bounds, judge
from gpu_worker.core.errors import Bug
from gpu_worker.core.lifecycle import MOVES, move
from gpu_worker.core.model import Sample

LINES = [{"kind": "log", "text": f"line {number}"} for number in range(20)]
FILE = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)
MIB = 1024 * 1024
BOUNDS = Bounds(memory_bytes=100 * MIB, disk_bytes=10 * MIB, ends_by_s=1_000, stall_s=60)


@given(cuts=st.lists(st.integers(0, len(FILE)), max_size=8), lines_max=st.integers(1, 5))
def test_a_file_that_grows_is_read_once_wherever_it_is_cut(cuts: list[int], lines_max: int) -> None:
    read: list[str | None] = []
    offset = 0
    for end in [*sorted(cuts), *[len(FILE)] * len(LINES)]:
        cursor = progress.cursor_of(offset)
        start = progress.offset_of(cursor)
        assert start == offset
        lines, offset = progress.parse(FILE[start : max(end, start)], offset, lines_max)
        read += [line.text for line in lines]

    assert read == [line["text"] for line in LINES]
    assert offset == len(FILE)


def test_what_is_no_line_is_left_out_and_the_rest_is_read() -> None:
    said = b'{"kind":"log","text":"a"}\nnonsense\n\xff\xfe\n{"kind":"secret"}\n'
    said += b'{"kind":"metric","step":2,"values":{"loss":1.5}}\n'
    lines, behind = progress.parse(said, 100)
    told = progress.told(lines)

    assert behind == 100 + len(said)
    assert told.logs == ("a",)
    assert [(point.step, float(point.values["loss"])) for point in told.metrics] == [(2, 1.5)]


def test_a_line_without_an_end_is_waited_for_but_not_for_ever() -> None:
    assert progress.parse(b'{"kind":"log"', 0) == ((), 0)
    endless = b"x" * (2 * progress.LINE_BYTES_MAX)
    assert progress.parse(endless, 0) == ((), len(endless))


@pytest.mark.parametrize(
    "cursor", ["", "byte", "byte-", "byte--1", "line-3", "byte-\u0663", "byte-" + "9" * 16, "byte-1.5"]
)
def test_a_cursor_that_was_never_given_is_none(cursor: str) -> None:
    assert progress.offset_of(cursor) is None


@pytest.mark.parametrize(
    ("sample", "now_s", "still_s", "fault", "said"),
    [
        (Sample(at_s=0, memory_bytes=101 * MIB, disk_bytes=0), 0, 0, "buyer", "it needs more memory than the 100 MiB"),
        (Sample(at_s=0, memory_bytes=0, disk_bytes=11 * MIB), 0, 0, "buyer", "it needs more disk than the 10 MiB"),
        (None, 0, 61, "owner", "no progress for 60 s"),
        (None, 1_000, 0, None, "its hours are over"),
        # The clock comes first: what else is wrong then costs nothing.
        (Sample(at_s=0, memory_bytes=101 * MIB, disk_bytes=0), 1_000, 61, None, "its hours are over"),
    ],
)
def test_what_is_broken_ends_the_program(sample, now_s, still_s, fault, said) -> None:
    breach = judge(sample, BOUNDS, now_s=now_s, still_s=still_s)

    assert breach is not None
    assert breach.fault == fault
    assert breach.reason.startswith(said)
    assert breach.is_gentle is (fault is None)
    assert breach.is_final is (fault != "owner")


def test_what_keeps_to_its_bounds_goes_on() -> None:
    most = Sample(at_s=0, memory_bytes=100 * MIB, disk_bytes=10 * MIB)
    assert judge(most, BOUNDS, now_s=999, still_s=60) is None
    free = Bounds(memory_bytes=1, disk_bytes=1, ends_by_s=None, stall_s=math.inf)
    assert judge(None, free, now_s=10**12, still_s=10**12) is None


def test_a_life_has_one_order_and_every_state_leads_out() -> None:
    order = ["probing", "registering", "loading", "measuring", "online", "draining", "gone"]
    for state, later in pairwise(order):
        assert move(state, later) == later  # type: ignore[arg-type]
        with pytest.raises(Bug):
            move(later, state)  # type: ignore[arg-type]
    assert all("gone" in MOVES[state] for state in MOVES if state != "gone")


@given(size=st.integers(0, 10**9), piece=st.integers(1, 4 * MIB))
def test_pieces_are_the_whole_file_once(size: int, piece: int) -> None:
    size = min(size, piece * 50)
    cut = [*checkpoint.pieces(size, piece)]

    assert sum(each.bytes for each in cut) == size
    assert all(0 < each.bytes <= piece for each in cut)
    assert [each.offset for each in cut] == [number * piece for number in range(len(cut))]


def test_a_part_s_name_is_plain_and_tells_its_bytes_apart() -> None:
    first = checkpoint.Piece(0, 0, 10)
    names = {checkpoint.part_name(10, "m" * 200, first, sha256) for sha256 in ("a" * 64, "b" * 64)}

    assert len(names) == 2
    assert all(len(name) <= checkpoint.NAME_CHARS_MAX for name in names)

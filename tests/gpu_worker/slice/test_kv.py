"""The KV cache: what is reserved and refused, and that nothing of a session is left for the next one."""

import mmap
from collections.abc import Callable

import psutil
import pytest
import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.kv import KvCache

_POSITION_BYTES = 2 * 3 * 2 * 16 * 4


def _cache(*, positions: int = 64, context: int = 32, sessions: int = 4) -> KvCache:
    return KvCache(
        layers=3,
        kv_heads=2,
        head_dim=16,
        context=context,
        bytes_max=positions * _POSITION_BYTES,
        sessions_max=sessions,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def _run(session: str, position: int, count: int) -> Run:
    return Run(session=session, epoch=0, position=position, count=count)


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceError) as caught:
        call()
    return caught.value.code


def test_sessions_reserve_and_one_too_many_is_refused_with_nothing_taken() -> None:
    cache = _cache()
    cache.open("a", 30)
    cache.open("b", 30)
    assert _refusal(lambda: cache.open("c", 5)) == "no_capacity"
    assert (cache.use.sessions, cache.use.positions, cache.use.positions_max) == (2, 60, 64)
    assert cache.length("c") is None
    cache.open("c", 4)
    cache.close("a")
    cache.close("a")
    assert (cache.use.sessions, cache.use.positions) == (2, 34)


def test_more_sessions_than_slots_are_refused() -> None:
    cache = _cache(sessions=2)
    cache.open("a", 1)
    cache.open("b", 1)
    assert _refusal(lambda: cache.open("c", 1)) == "no_capacity"


def test_a_session_longer_than_the_context_is_refused_and_one_of_nothing_too() -> None:
    cache = _cache()
    assert _refusal(lambda: cache.open("a", 33)) == "context_length_exceeded"
    assert _refusal(lambda: cache.open("a", 0)) == "invalid_argument"
    # What no cap can hold is no context either.
    assert _cache(positions=10).context == 10
    assert _refusal(lambda: _cache(positions=0)) == "no_capacity"


def test_a_session_that_is_opened_again_begins_again_or_stays_as_it_was() -> None:
    cache = _cache()
    cache.open("a", 30)
    cache.written([_run("a", 0, 7)])
    cache.open("b", 30)
    assert _refusal(lambda: cache.open("a", 40)) == "context_length_exceeded"
    assert cache.length("a") == 7
    cache.open("a", 32)
    assert (cache.length("a"), cache.use.positions) == (0, 62)


def test_rows_have_a_place_only_behind_those_that_are_there() -> None:
    cache = _cache()
    cache.open("a", 10)
    assert cache.place([_run("a", 0, 4), _run("a", 4, 2)]) == [0, 0]
    assert cache.length("a") == 0
    cache.written([_run("a", 0, 4)])
    assert _refusal(lambda: cache.place([_run("a", 5, 1)])) == "position_gap"
    assert _refusal(lambda: cache.place([_run("a", 3, 1)])) == "position_gap"
    assert _refusal(lambda: cache.place([_run("a", 4, 7)])) == "no_capacity"
    assert _refusal(lambda: cache.place([_run("a", 4, 4), _run("a", 8, 3)])) == "no_capacity"
    assert _refusal(lambda: cache.place([_run("x", 0, 1)])) == "unknown_session"
    assert _refusal(lambda: cache.rollback("x", 0)) == "unknown_session"


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_nothing_of_a_session_is_left_where_the_next_one_reads(end: str) -> None:
    """No weight times infinity is no number: what hostile rows left would reach who comes next through the mask."""
    cache = _cache(context=33)
    cache.open("a", 20)
    cache.written([_run("a", 0, 20)])
    cache.cells[0, ..., :20, :] = float("nan")
    if end == "rollback":
        cache.rollback("a", 5)
        assert cache.cells[0, ..., :5, :].isnan().all()
        assert cache.length("a") == 5
        cache.rollback("a", 9)
        assert cache.length("a") == 5
        assert float(cache.cells[0, ..., 5:, :].abs().sum()) == 0.0
    else:
        cache.close("a")
        cache.open("b", 3)
        assert cache.place([_run("b", 0, 1)]) == [0]
        assert float(cache.cells.abs().sum()) == 0.0


def test_a_freed_slot_is_taken_first_so_that_sessions_stay_side_by_side() -> None:
    cache = _cache()
    for name in "abc":
        cache.open(name, 1)
    cache.close("b")
    cache.close("a")
    cache.open("d", 1)
    assert cache.place([_run("d", 0, 1), _run("c", 0, 1)]) == [0, 2]


def test_memory_stands_behind_what_is_written_and_is_given_back() -> None:
    """A room of 48 GiB costs nothing until it is touched."""
    mebi, process = 2**20, psutil.Process()
    cache = KvCache(
        layers=3,
        kv_heads=2,
        head_dim=64,
        context=2**16,
        bytes_max=256 * mebi,
        sessions_max=256,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert cache.cells.numel() * 4 == 256 * 3 * 2 * 2 * 2**16 * 64 * 4
    begin = process.memory_info().rss
    cache.open("a", 2**13)
    cache.open("b", 1)
    assert process.memory_info().rss - begin < 4 * mebi
    cache.cells[0, ..., : 2**13, :] = 1.0
    cache.written([_run("a", 0, 2**13)])
    grown = process.memory_info().rss - begin
    assert 2**13 * cache.bytes_per_position <= grown + mebi < 2**13 * cache.bytes_per_position + 5 * mebi
    cache.close("a")
    assert process.memory_info().rss - begin < 4 * mebi


def test_addresses_that_a_process_cannot_have_are_refused_by_name() -> None:
    with pytest.raises(OwnersFault, match="addresses"):
        KvCache(
            layers=1,
            kv_heads=1,
            head_dim=64,
            context=2**50,
            bytes_max=2**60,
            sessions_max=2,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )


def _touched(*, positions: int, context: int, sessions: int = 256) -> KvCache:
    """Return a cache whose room is memory from the start, as that of a GPU is."""
    return KvCache(
        layers=1,
        kv_heads=1,
        head_dim=2,
        context=context,
        bytes_max=positions * 16,
        sessions_max=sessions,
        dtype=torch.float32,
        device=torch.device("cpu"),
        is_lazy=False,
    )


@pytest.mark.parametrize(
    ("positions", "context", "sessions", "width", "slots"),
    [
        (131_072, 131_072, 256, 8_192, 16),
        (32_768, 131_072, 256, 4_096, 8),
        (131_072, 131_072, 2, 65_536, 2),
        (131_072, 2_048, 256, 2_048, 64),
        (1_000, 131_072, 256, 1_000, 1),
    ],
)
def test_a_room_that_is_memory_from_the_start_holds_several_sessions_of_a_long_context(
    positions: int, context: int, sessions: int, width: int, slots: int
) -> None:
    cache = _touched(positions=positions, context=context, sessions=sessions)
    assert (cache.context, len(cache.cells)) == (width, slots)
    assert cache.cells.untyped_storage().nbytes() <= positions * 16 + slots * mmap.PAGESIZE
    for number in range(slots):
        cache.open(f"session {number}", width)
    assert _refusal(lambda: cache.open("more", 1)) == "no_capacity"


def test_a_session_wider_than_a_slot_is_for_another_worker_and_one_past_the_context_for_none() -> None:
    cache = _touched(positions=32_768, context=131_072)
    assert _refusal(lambda: cache.open("a", 4_097)) == "no_capacity"
    assert _refusal(lambda: cache.open("a", 131_073)) == "context_length_exceeded"
    assert cache.use.sessions == 0
    cache.open("a", 4_096)
    cache.written([_run("a", 0, 9)])
    cache.cells[0, ..., :9, :] = float("nan")
    cache.close("a")
    assert float(cache.cells.abs().sum()) == 0.0

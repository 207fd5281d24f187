"""How long a service was up is what was seen of it, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.uptime import UptimeRecord


def looked(*looks: tuple[float, bool], window_s: float = 60.0, gap_s: float = 5.0) -> UptimeRecord:
    record = UptimeRecord(window_s=window_s, gap_s=gap_s)
    for at_s, is_up in looks:
        record.saw(at_s, {"model": is_up})
    return record


@pytest.mark.row(88)
def test_the_window_forgets_and_the_record_does_not() -> None:
    record = looked(*((float(at_s), at_s >= 60) for at_s in range(0, 121)))
    told = record.tell(120.0)["model"]
    assert (told.is_up, told.window, told.always) == (True, 1.0, 0.5)


@pytest.mark.row(88)
def test_a_minute_with_fifteen_seconds_down_is_three_quarters() -> None:
    record = looked(*((float(at_s), not 30 <= at_s < 45) for at_s in range(0, 61)))
    assert record.tell(60.0)["model"].window == pytest.approx(0.75)


def test_a_time_in_which_nobody_looked_is_not_up() -> None:
    record = looked((0, True), (1, True), (31, True))
    told = record.tell(31.0)["model"]
    assert told.window == pytest.approx((1 + 5) / 31)
    assert record.tell(37.0)["model"].is_up is False


def test_a_service_that_began_late_is_judged_from_then_on() -> None:
    record = UptimeRecord()
    record.saw(0, {"worker": True})
    for at_s in range(100, 111):
        record.saw(float(at_s), {"worker": True, "model": True})
    told = record.tell(110.0)
    assert told["model"].window == 1.0
    assert told["worker"].always == pytest.approx((5 + 10) / 110)


def test_a_service_that_is_not_told_of_any_more_is_down() -> None:
    record = UptimeRecord()
    record.saw(0, {"model": True})
    record.saw(2, {})
    record.saw(4, {})
    assert record.tell(4.0)["model"].window == pytest.approx(0.5)
    assert record.tell(4.0)["model"].is_up is False


def test_nobody_has_looked_yet() -> None:
    assert UptimeRecord().tell(5.0) == {}
    assert looked((5, True)).tell(5.0)["model"].window == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 20), st.booleans()), min_size=1, max_size=40), st.floats(0, 20))
def test_shares_are_those_of_every_tenth_of_a_second(steps: list[tuple[float, bool]], after_s: float) -> None:
    looks, at_s = [], 0.0
    for wait_s, is_up in steps:
        at_s += wait_s
        looks.append((at_s, is_up))
    record, now_s = looked(*looks), at_s + after_s
    told = record.tell(now_s)["model"]

    def up_s(since_s: float) -> float:
        ends = [at for at, _ in looks[1:]] + [now_s]
        return sum(
            max(0.0, min(end, at + 5.0) - max(at, since_s)) for (at, up), end in zip(looks, ends, strict=True) if up
        )

    began_s = looks[0][0]
    if now_s > began_s:
        assert told.always == pytest.approx(up_s(began_s) / (now_s - began_s), abs=1e-6)
        length_s = min(60.0, now_s - began_s)
        assert told.window == pytest.approx(up_s(now_s - length_s) / length_s, abs=1e-6)

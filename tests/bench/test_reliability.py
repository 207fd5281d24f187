"""The page of figures: runs add up, what was not measured says so."""

from bench.reliability import PROMISES, SUITES, total, write


def test_counts_add_up_and_the_largest_of_extremes_counts() -> None:
    lines = [
        {"date": "2026-11-21", "kills": 3, "points": 20, "loser_ms_p99": 4.5, "ok": True},
        {"date": "2026-11-22", "kills": 4, "points": 21, "loser_ms_p99": 2.5, "lost": 1},
    ]
    assert total(lines) == {"kills": 7, "points": 21, "loser_ms_p99": 4.5, "lost": 1}


def test_a_figure_that_nobody_measured_is_not_made_up() -> None:
    nothing = {suite: {} for suite in SUITES}
    assert [promise.figure(nothing) for promise in PROMISES] == ["not measured"] * len(PROMISES)


def test_a_sum_over_suites_says_which_counted_it() -> None:
    [double] = [promise for promise in PROMISES if promise.name == "double payments"]
    totals = {"kill_matrix": {"double_payments": 0}, "sim": {"double_payments": 1}, "chaos": {"runs": 5}}
    assert double.figure(totals) == "**1** (kill_matrix, sim)"


def test_the_page_holds_every_promise_and_suite() -> None:
    page = write(PROMISES)
    assert all(f"| {promise.name} |" in page for promise in PROMISES)
    assert all(f"## {title}" in page for title in SUITES.values())

"""The page of figures: runs add up, what was not measured says so."""

import subprocess
from pathlib import Path

from bench.orphans import Trial, failures, figures
from bench.records import commit_of
from bench.reliability import PROMISES, SUITES, total, write


def test_counts_add_up_and_the_worst_of_extremes_counts() -> None:
    lines = [
        {"kills": 3, "points": 20, "loser_ms_p99_of_512": 4.5, "cap_used_percent_min": 99.9, "ok": True, "seed": 7},
        {"kills": 4, "points": 21, "loser_ms_p99_of_512": 2.5, "cap_used_percent_min": 98.0, "lost": 1, "date": "now"},
    ]
    assert total(lines) == {
        "kills": 7,
        "points": 21,
        "loser_ms_p99_of_512": 4.5,
        "cap_used_percent_min": 98.0,
        "lost": 1,
    }


def test_of_the_planted_bugs_the_newest_run_counts() -> None:
    assert total([{"plants_found": 12, "plants": 12}, {"ticks": 5}, {"plants_found": 3, "plants": 12}]) == {
        "plants_found": 3,
        "plants": 12,
        "ticks": 5,
    }


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


def figure_of(name: str, suite: str, **counted: float) -> str:
    [promise] = [promise for promise in PROMISES if promise.name.startswith(name)]
    return promise.figure({**{suite: {} for suite in SUITES}, suite: counted})


def test_what_failed_stands_in_the_first_table() -> None:
    assert figure_of("kills survived", "kill_matrix", kills=9, points=3, stuck=1, lost_payments=1) == (
        "**7** of 9, at 3 points on two stores"
    )
    hostile = figure_of("hostile", "hostile", as_expected=17, trials=18, cases=18, cases_noticed=15)
    assert hostile == "**17** of 18 in 18 cases; 15 notice a missing fault"
    late = {"loser_ms_p99_of_64": 70.5, "loser_ms_p99_of_512": 900.0}
    crowds = figure_of("one run", "concurrency", ticks=100, processes=16, holders_max=2, broken=1, **late)
    assert crowds == (
        "100 ticks by 16, at most 2 at a time, **1** broken; p99 of a loser 70.5 ms of 64 at once, 900.0 ms of 512"
    )
    fail_overs = {"failovers": 2, "ended": 8, "runs": 9, "lost_writes": 1, "acknowledged_writes": 90}
    assert figure_of("fail-overs", "chaos", **fail_overs, broken_invariants=3) == (
        "**2**; 8 of 9 runs ended, 1 of 90 acknowledged writes lost, 3 broken"
    )


def test_what_an_orphan_costs_stands_beside_its_condition() -> None:
    trials = [Trial("away", minutes=[2.0, 4.0], rounds=2, left=1, unknown=1), Trial("refused")]
    found = figures(trials)
    assert figure_of("orphans", "orphans", **found) == (
        "**1** of 2 left, 0 others cancelled, found in at most 2 sweeps; 6.0 min in all, p99 4.0, where a vendor is"
        " away for at most 60 s after the end"
    )
    assert failures(found) == [
        "trials_without_orphan: 1",
        "left: 1",
        "jobs of others were seen in 1 trials only",
    ]


def test_overspend_of_trials_and_of_atomic_units_are_not_one_sum() -> None:
    [promise] = [promise for promise in PROMISES if promise.name == "overspend"]
    totals = {"kill_matrix": {"overspend": 1}, "chaos": {"overspend": 70}, "concurrency": {"overspend": 5}}
    assert promise.figure(totals) == "**1** trials (kill_matrix), **75** atomic units (chaos, concurrency)"


def test_figures_name_the_commit_and_whether_it_is_what_ran(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *name, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "docs" / "reliability").mkdir(parents=True)
    (tmp_path / "docs" / "reliability" / "sim.jsonl").write_text("{}")
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert commit_of(tmp_path) == commit
    (tmp_path / "code.py").write_text("2")
    assert commit_of(tmp_path) == f"{commit}+dirty"

"""Kills of stages under streams: one of each kind, and what is counted where a stream is another one."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from bench.stage_kill_trial import BORDERS, HARMS, Place, Plan, Trial, compare, draw, gap_s, opened
from bench.stage_kills import figures


@pytest.mark.slow
@pytest.mark.row(52)
def test_a_stage_is_frozen_and_its_replica_killed_and_the_streams_are_the_undisturbed_ones(
    tiny_words: Path, tmp_path: Path
) -> None:
    with opened(Place(tmp_path, tiny_words, 2)) as place:
        trials = [place.tried(plan) for plan in (Plan("freeze", 1, 20), Plan("kill", 1, 40))]
        # Who was frozen took over from who was killed.
        assert place.head.route()[1] in place.harmed

    assert [each for trial in trials for each in trial.wrong] == []
    found = figures(trials)
    assert (found["kills"], found["streams"], found["tokens_lost"], found["tokens_doubled"]) == (2, 6, 0, 0)
    assert {trial.victim for trial in trials} == {"2-2-6a", "2-2-6b"}
    assert found["sessions_refilled"] + found["sessions_replayed"] >= 2


def test_kinds_come_in_turn_and_every_stage_but_the_head_is_met() -> None:
    plans = [draw(Random(number), 3, number) for number in range(200)]

    assert Counter(plan.kind for plan in plans) == dict.fromkeys(HARMS, 100)
    assert {plan.place for plan in plans} == {1, 2}
    assert {draw(Random(number), 2, number).place for number in range(20)} == {1}
    assert set(BORDERS) == {2, 3}


def a_trial(kind: str = "kill", **more: object) -> Trial:
    fields = {"gaps_s": [0.1, 0.3], "refilled": 2, "replayed": 0, "failovers": 1, "was_harmed_before": False, **more}
    return Trial(plan=Plan(kind, 1, 5), stages=2, victim="b", **fields)  # type: ignore[arg-type]


def test_what_is_lost_doubled_or_another_is_counted() -> None:
    for tokens, lost, doubled, said in (
        ("abc", 0, 0, []),
        ("ab", 1, 0, ["w: 2 tokens of 3, others from token 2 on"]),
        ("abbc", 0, 1, ["w: 4 tokens of 3, others from token 2 on"]),
        ("axc", 0, 0, ["w: 3 tokens of 3, others from token 1 on"]),
    ):
        trial = a_trial()
        compare(trial, "w", [*tokens], [*"abc"])
        assert (trial.lost, trial.doubled, trial.wrong) == (lost, doubled, said)


def test_the_gap_is_the_longest_pause_that_ended_after_the_harm() -> None:
    assert gap_s([0.0, 9.0, 9.1, 11.1, 11.2], 9.05) == pytest.approx(2.0)
    assert gap_s([0.0, 1.0], 5.0) == 0.0


def test_figures_are_of_each_kind() -> None:
    found = figures([a_trial(), a_trial("freeze", gaps_s=[3.0], was_harmed_before=True, wrong=["x"])])

    assert (found["kill_gap_p50_s"], found["kill_gap_max_s"], found["freeze_gap_max_s"]) == (0.1, 0.3, 3.0)
    assert (found["kills"], found["by_freeze"], found["wrong"], found["used_again"]) == (2, 1, 1, 1)

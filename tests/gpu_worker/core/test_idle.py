"""Why is it idle? One case for every reason there is."""

from dataclasses import replace

import pytest

from gpu_worker.core.idle import IdleFacts, why_idle
from gpu_worker.core.owner import CAUSES, Yield

FACTS = IdleFacts(state="online", kinds=("fine_tune",), models=("tiny-llm",), refunds=1_000, disk_room_bytes=10**9)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"state": None}, "not_running"),
        ({"state": None, "missing_packages": ("torch",)}, "not_installed"),
        ({"missing_packages": ("torch", "peft")}, "not_installed"),
        ({"running": 1}, "working"),
        ({"state": "draining"}, "draining"),
        ({"state": "gone"}, "gone"),
        ({"state": "measuring"}, "starting"),
        ({"has_key": False, "refunds": None}, "no_key"),
        ({"refunds": 0}, "no_ether"),
        ({"refunds": None}, "no_chain"),
        ({"kinds": ()}, "no_kind"),
        ({"models": ()}, "no_model"),
        ({"disk_room_bytes": 0}, "disk_full"),
        *(({"yielded": Yield(cause=cause, reason="so it is")}, f"yielded_{cause}") for cause in CAUSES),
        ({"refusals": {"model_too_large": 3}}, "refused_model_too_large"),
        ({"refusals": {"something_new": 3}}, "refused_something_new"),
        ({"quotes": 4}, "too_dear"),
        ({"offers": 4}, "nobody_asked"),
        ({}, "unknown_here"),
    ],
)
def test_each_reason_is_named_first_when_it_is_the_first_to_mend(facts: dict, code: str) -> None:
    reasons = why_idle(replace(FACTS, **facts))
    assert reasons[0].code == code
    assert reasons[0].sentence.endswith(".")


def test_every_reason_is_told_not_the_first_alone() -> None:
    facts = replace(FACTS, has_key=False, kinds=(), yielded=Yield(cause="battery", reason="it runs on its battery"))
    assert [one.code for one in why_idle(facts)] == ["no_key", "no_kind", "yielded_battery", "unknown_here"]


def test_a_machine_that_could_do_more_says_so_and_nothing_of_the_market() -> None:
    reasons = why_idle(replace(FACTS, running=1, jobs_max=2, quotes=3))
    assert [one.code for one in reasons] == ["working"]
    assert "one job of 2" in reasons[0].sentence


def test_a_container_needs_no_model() -> None:
    assert "no_model" not in [one.code for one in why_idle(replace(FACTS, kinds=("container",), models=()))]


def test_what_is_refused_most_is_told_first_with_its_count() -> None:
    reasons = why_idle(replace(FACTS, refusals={"kind_off": 2, "no_capacity": 9}))
    assert [one.code for one in reasons] == ["refused_no_capacity", "refused_kind_off"]
    assert reasons[0].sentence.startswith("9 in the last day")

"""Two planners answer, one acts: which one is drawn from the run's attempts, and both wishes are kept."""

from dataclasses import replace

from agent.core.bandit import advise
from agent.core.log import record
from agent.core.planning import Proposal, Question, first_vendor
from agent.edges.planner_ab import AbPlanner
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_stub import StubPlanner
from tests.agent.core.values import EVENTS, T0, a_job, a_run, a_vendor

VENDORS = (a_vendor(1), a_vendor(2, base_price_per_hour_atomic=1_000_000))


def a_question(attempts: int) -> Question:
    jobs = tuple(a_job(number, vendor_id="gpu_vendor_9", status="completed") for number in range(attempts))
    return Question(run=a_run(jobs=jobs), vendors=VENDORS, standings=(), now=T0)


async def wish(attempts: int) -> Proposal:
    return await AbPlanner(BanditPlanner(), StubPlanner()).propose(a_question(attempts))


async def test_both_answer_and_each_acts_about_half_of_the_time() -> None:
    wishes = [await wish(attempts) for attempts in range(60)]
    for attempts, one in enumerate(wishes):
        question = a_question(attempts)
        both = [advise(question).proposal, first_vendor(question.run, question.vendors)]
        acting, other = both if one.mode == "bandit" else reversed(both)
        assert one == replace(acting, other=other)
    assert 15 <= [one.mode for one in wishes].count("bandit") <= 45


async def test_the_same_question_has_the_same_answer() -> None:
    assert [await wish(number) for number in range(8)] == [await wish(number) for number in range(8)]


async def test_the_line_people_read_says_who_wished_what() -> None:
    other = Proposal(action="wait", reason="too dear", mode="bandit")
    _, [entry] = record(a_run(), [replace(EVENTS[1], other=other)])
    assert entry.content == (
        "mode: stub · start_job at gpu_vendor_1 for 1.00 h · it is first · instead of mode: bandit · wait · too dear"
    )
    assert entry.data["other"]["reason"] == "too dear"

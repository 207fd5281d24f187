"""Two planners answer, one acts: which one is drawn from the run's log, and both wishes are kept."""

from dataclasses import replace

from agent.core.bandit import advise
from agent.core.log import record
from agent.core.model import LogHead
from agent.core.planning import Proposal, Question, first_vendor
from agent.edges.planner_ab import AbPlanner
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_stub import StubPlanner
from tests.agent.core.values import EVENTS, T0, a_run, a_vendor

VENDORS = (a_vendor(1), a_vendor(2, base_price_per_hour_atomic=1_000_000))


def a_question(seq: int) -> Question:
    return Question(run=a_run(log=LogHead(seq=seq)), vendors=VENDORS, standings=(), now=T0)


async def wish(seq: int) -> Proposal:
    return await AbPlanner(BanditPlanner(), StubPlanner()).propose(a_question(seq))


async def test_both_answer_and_each_acts_about_half_of_the_time() -> None:
    wishes = [await wish(seq) for seq in range(60)]
    for seq, one in enumerate(wishes):
        question = a_question(seq)
        both = [advise(question).proposal, first_vendor(question.run, question.vendors)]
        acting, other = both if one.mode == "bandit" else reversed(both)
        assert one == replace(acting, other=other)
    assert 15 <= [one.mode for one in wishes].count("bandit") <= 45


async def test_the_same_question_has_the_same_answer() -> None:
    assert [await wish(seq) for seq in range(8)] == [await wish(seq) for seq in range(8)]


async def test_the_line_people_read_says_who_wished_what() -> None:
    other = Proposal(action="wait", reason="too dear", mode="bandit")
    _, [entry] = record(a_run(), [replace(EVENTS[1], other=other)])
    assert entry.content == (
        "mode: stub · start_job at gpu_vendor_1 for 1.00 h · it is first · instead of mode: bandit · wait · too dear"
    )
    assert entry.data["other"]["reason"] == "too dear"

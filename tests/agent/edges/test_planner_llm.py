"""The planner that asks a language model: it chooses among the bandit's best, or the bandit decides and says why."""

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.bandit import Advice, advise
from agent.core.planning import Proposal, Question
from agent.edges.planner_llm import RAW_CHARS_MAX, LlmPlanner
from agent.wiring import open_planner
from outbound.chat import ChatEndpoint
from outbound.http import HttpClient
from tests.agent.core.values import a_run, a_vendor, at
from tests.fixtures import llm as fake
from tests.fixtures.llm import KEY, MISBEHAVIOURS, FakeLlm, Said, facts_of

# Vendors of one price and next to no doubt: to the bandit each is as good as the others.
EQUAL = tuple(a_vendor(number, reliability_score=Decimal(1)) for number in (1, 2, 3))


def a_question(**changes: Any) -> Question:
    return Question(**{"run": a_run(), "vendors": EQUAL, "standings": (), "now": at(0)} | changes)


QUESTION = a_question()
ADVICE: Advice = advise(QUESTION)


def planner(llm: FakeLlm, timeout_s: float = 20.0) -> LlmPlanner:
    return LlmPlanner(ChatEndpoint(HttpClient(), base_url=llm.base_url, model="tiny", api_key=KEY, timeout_s=timeout_s))


def test_there_is_something_to_choose_in_these_tests() -> None:
    assert len(ADVICE.candidates) == 3


@pytest.mark.parametrize("behave", [fake.obeys, fake.fences], ids=["plain", "fenced"])
async def test_the_models_choice_among_the_best_is_followed(llm: FakeLlm, behave: fake.Behaviour) -> None:
    chosen = []

    def choose_last(body: fake.Asked) -> Said:
        label = facts_of(body)["vendors"][-1]["id"]
        chosen.append(label)
        text = fake.decision(body, vendorId=label, reason="rested \x1b[2J longest")
        return Said(text=f"```json\n{text}\n```" if behave is fake.fences else text)

    llm.behave = choose_last
    wish = await planner(llm).propose(QUESTION)
    assert (wish.action, wish.mode, wish.fallback) == ("start_job", "llm", False)
    assert wish.reason == "the model chose it among 3: rested [2J longest"
    assert wish.max_hours == ADVICE.candidates[0].hours
    assert wish.vendor_id in {candidate.vendor_id for candidate in ADVICE.candidates}
    # What it was asked and what it answered are kept as they were.
    assert wish.prompt == "\n\n".join(message["content"] for message in llm.asked[0]["messages"])
    assert chosen[0] in wish.raw


@pytest.mark.parametrize("changes", [{"vendors": ()}, {"vendors": EQUAL[:1]}], ids=["none", "one"])
async def test_where_there_is_nothing_to_choose_nobody_is_asked(llm: FakeLlm, changes: dict[str, Any]) -> None:
    question = a_question(**changes)
    assert await planner(llm).propose(question) == replace(advise(question).proposal, mode="llm")
    assert llm.asked == []


@pytest.mark.parametrize("action", ["wait", "abort"])
async def test_waiting_and_aborting_are_the_bandits_to_say(llm: FakeLlm, action: str) -> None:
    llm.behave = fake.decides(action=action, vendorId="none", maxHours=0, reason="too dear")
    wish = await planner(llm).propose(QUESTION)
    assert (wish.action, wish.vendor_id) == ("start_job", ADVICE.proposal.vendor_id)
    assert wish.reason == f"the model would {action} (too dear), the bandit would not: {ADVICE.proposal.reason}"
    assert not wish.fallback


@pytest.mark.row(11)
@pytest.mark.parametrize("name", sorted(MISBEHAVIOURS))
async def test_whatever_else_comes_the_bandit_decides_and_the_reason_says_why(llm: FakeLlm, name: str) -> None:
    llm.behave, why = MISBEHAVIOURS[name]
    wish = await planner(llm, timeout_s=0.5 if name == "silence" else 20.0).propose(QUESTION)
    assert (wish.action, wish.vendor_id, wish.max_hours) == (
        "start_job",
        ADVICE.proposal.vendor_id,
        ADVICE.proposal.max_hours,
    )
    assert wish.fallback
    assert wish.reason.startswith("fallback: ")
    assert wish.reason.endswith(f"; {ADVICE.proposal.reason}")
    assert why in wish.reason
    assert KEY not in repr(wish)


async def test_the_settings_choose_it_and_say_whom_to_ask(llm: FakeLlm) -> None:
    place = {"llm_base_url": llm.base_url, "llm_model": "tiny"}
    keyed = AgentSettings(_env_file=None, **place, llm_api_key=SecretStr(KEY))
    assert (await open_planner(keyed, HttpClient()).propose(QUESTION)).mode == "llm"
    assert open_planner(AgentSettings(_env_file=None, **place), HttpClient()).mode == "bandit"
    # A model on one's own machine has no key.
    local = AgentSettings(_env_file=None, **place, planner_mode="llm")
    assert (await open_planner(local, HttpClient()).propose(QUESTION)).mode == "llm"
    assert [headers["authorization"] for headers in llm.headers] == [f"Bearer {KEY}", "Bearer none"]
    assert {body["model"] for body in llm.asked} == {"tiny"}


async def test_a_long_answer_is_kept_in_part(llm: FakeLlm) -> None:
    llm.behave = fake.says("\x00 word" * 5_000)
    wish = await planner(llm).propose(QUESTION)
    assert wish.raw.startswith("word word")
    assert len(wish.raw) <= RAW_CHARS_MAX


class Oracle(httpx.AsyncBaseTransport):
    """An endpoint that answers `text` to everything."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": self.text}}]})


def answered(text: str) -> Proposal:
    chat = ChatEndpoint(HttpClient(Oracle(text)), base_url="http://oracle/v1", model="m", api_key="", timeout_s=20)
    return asyncio.run(LlmPlanner(chat).propose(QUESTION))


_DECISIONS = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["start_job", "wait", "abort", "pay"]),
        "vendorId": st.sampled_from(["v1", "v2", "v3", "v4", "gpu_vendor_1", "none"]),
        "maxHours": st.sampled_from([0, 0.01, 1, 1.01, -1, 1e9]),
        "reason": st.text(max_size=20),
        "price": st.integers(),
        "payTo": st.just("0x" + "66" * 20),
    }
)


@settings(max_examples=40)
@given(_DECISIONS.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_whatever_a_model_answers_a_candidate_of_the_bandit_is_rented_on_its_terms(text: str) -> None:
    wish = answered(text)
    assert wish.action == "start_job"
    assert (wish.vendor_id, wish.max_hours) in {(one.vendor_id, one.hours) for one in ADVICE.candidates}
    if wish.fallback:
        assert wish.vendor_id == ADVICE.proposal.vendor_id

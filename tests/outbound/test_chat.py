"""One question to an OpenAI-compatible endpoint: how it is asked, what is learned, and what can go wrong."""

import asyncio
import json
import logging
from typing import Any

import pytest

from outbound.chat import ChatEndpoint, ChatQuestion, Reply, Unusable
from outbound.http import HttpClient
from tests.fixtures import llm as fake
from tests.fixtures.llm import KEY, MISBEHAVIOURS, Behaviour, FakeLlm, Said

SCHEMA = {
    "type": "object",
    "properties": {"vendorId": {"type": "string"}},
    "required": ["vendorId"],
    "additionalProperties": False,
}
FACTS = json.dumps({"vendors": [{"id": "v1", "pricePerHour": 1, "maxHours": 1}]})
QUESTION = ChatQuestion(system="Be careful.", user=f"{FACTS}\nWhich?", name="decide", schema=SCHEMA)


def endpoint(llm: FakeLlm, **changes: Any) -> ChatEndpoint:
    values: dict[str, Any] = {"base_url": llm.base_url, "model": "tiny", "api_key": KEY, "timeout_s": 20.0}
    return ChatEndpoint(HttpClient(), **values | changes)


def read(text: str) -> str | Unusable:
    """Return the answer's vendorId."""
    try:
        document = json.loads(text)
    except ValueError:
        return Unusable("it is not one JSON object", formed=False)
    label = str(document.get("vendorId")) if isinstance(document, dict) else ""
    return label if label == "v1" else Unusable(f"vendorId: {len(label)} characters", formed=True)


async def ask(llm: FakeLlm, **changes: Any) -> Reply[str]:
    return await endpoint(llm, **changes).ask(QUESTION, read)


LADDER: list[tuple[Behaviour, list[str], list[str]]] = [
    (fake.obeys, ["json_schema"], ["json_schema"]),
    (fake.refuses("json_schema"), ["json_schema", "json_object"], ["json_object"]),
    (fake.refuses("json_schema", status=404), ["json_schema", "json_object"], ["json_object"]),
    (fake.refuses("json_schema", status=422), ["json_schema", "json_object"], ["json_object"]),
    (fake.ignores("json_schema"), ["json_schema", "json_object"], ["json_object"]),
    (fake.refuses("json_schema", "json_object"), ["json_schema", "json_object", "tool"], ["tool"]),
    (fake.ignores("json_schema", "json_object"), ["json_schema", "json_object", "tool"], ["tool"]),
    (fake.mends, ["json_schema", "json_object", "tool", "tool"], ["tool", "tool"]),
]


@pytest.mark.parametrize(("behave", "first", "then"), LADDER)
async def test_the_way_that_works_is_found_by_reading_and_used_from_then_on(
    llm: FakeLlm, behave: Behaviour, first: list[str], then: list[str]
) -> None:
    llm.behave = behave
    assert (await ask(llm)).value == "v1"
    assert llm.forms == first
    # Another object, as another tick has one: the process knows.
    assert (await ask(llm)).value == "v1"
    assert llm.forms == first + then


async def test_what_is_known_of_one_model_is_not_taken_for_another(llm: FakeLlm) -> None:
    llm.behave = fake.refuses("json_schema")
    await ask(llm)
    await ask(llm, model="other")
    assert llm.forms == ["json_schema", "json_object"] * 2


async def test_a_way_that_stops_working_is_left_and_the_next_one_is_learned(llm: FakeLlm) -> None:
    await ask(llm)
    llm.behave = fake.refuses("json_schema")
    assert (await ask(llm)).value == "v1"
    await ask(llm)
    assert llm.forms == ["json_schema", "json_schema", "json_object", "json_object"]


async def test_an_answer_in_form_that_cannot_be_is_mended_once_in_the_same_way(llm: FakeLlm) -> None:
    wrong = iter([fake.decides(vendorId="v2"), fake.obeys])
    llm.behave = lambda body: next(wrong)(body)
    assert (await ask(llm)).value == "v1"
    assert llm.forms == ["json_schema", "json_schema"]
    told = llm.asked[1]["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[3]["content"].startswith("That cannot be used: vendorId: 2 characters.")


async def test_the_last_answer_is_mended_where_the_other_ways_are_not_known(llm: FakeLlm) -> None:
    others = fake.refuses("json_object", "tool")
    llm.behave = lambda body: fake.mends(body) if fake.form_of(body) == "json_schema" else others(body)
    assert (await ask(llm)).value == "v1"
    assert llm.forms == ["json_schema", "json_object", "tool", "json_schema"]
    assert llm.asked[-1]["messages"][-1]["content"].startswith("That cannot be used: it is not one JSON object.")


async def test_what_stays_wrong_after_one_mending_is_given_up_with_its_reason(llm: FakeLlm) -> None:
    llm.behave = fake.says("I would rather not.")
    reply = await ask(llm)
    assert (reply.value, reply.why, reply.raw) == (None, "it is not one JSON object", "I would rather not.")
    assert len(llm.asked) == 4


async def test_each_way_of_asking_is_the_apis(llm: FakeLlm) -> None:
    llm.behave = fake.ignores("json_schema", "json_object")
    await ask(llm)
    by_schema, by_object, by_tool = llm.asked
    assert {body["temperature"] for body in llm.asked} == {0.2}
    assert {body["model"] for body in llm.asked} == {"tiny"}
    assert by_schema["response_format"]["json_schema"] == {"name": "decide", "strict": True, "schema": SCHEMA}
    assert [message["content"] for message in by_schema["messages"]] == ["Be careful.", f"{FACTS}\nWhich?"]
    schema = by_object["messages"][1]["content"].partition("JSON Schema of the answer: ")[2]
    assert json.loads(schema) == SCHEMA
    assert by_tool["tools"][0]["function"] == {"name": "decide", "parameters": SCHEMA}
    assert by_tool["tool_choice"]["function"] == {"name": "decide"}


@pytest.mark.parametrize("name", sorted(MISBEHAVIOURS))
async def test_nothing_that_an_endpoint_does_raises(llm: FakeLlm, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    llm.behave = MISBEHAVIOURS[name][0]
    reply = await ask(llm, timeout_s=0.5 if name == "silence" else 20.0)
    if reply.value is None:
        assert reply.why
    # Neither what the endpoint says of the key, nor what a library logs, brings it out.
    assert KEY not in f"{reply!r}{caplog.text}"


@pytest.mark.parametrize(
    "name", ["silence", "100 kB", "an answer without end", "a dead server", "a web page", "deep nesting", "a move"]
)
async def test_why_there_is_no_answer_is_said(llm: FakeLlm, name: str) -> None:
    llm.behave, why = MISBEHAVIOURS[name]
    reply = await ask(llm, timeout_s=0.5 if name == "silence" else 20.0)
    assert reply.value is None
    assert why in reply.why
    assert len(llm.asked) == 1


async def test_all_the_ways_of_asking_share_the_time_of_one_question(llm: FakeLlm) -> None:
    await ask(llm)  # the library is imported

    def slow(body: fake.Asked) -> Said:
        llm.closed.wait(0.4)
        return Said(text="Hm.")

    llm.asked.clear()
    llm.behave = slow
    reply = await ask(llm, model="slow", timeout_s=1.0)
    assert reply.why == "no answer in 1 s"
    assert len(llm.asked) < 4


async def test_where_no_known_way_works_any_more_all_are_tried_again(llm: FakeLlm) -> None:
    llm.behave = fake.refuses("json_schema", "json_object")
    await ask(llm)
    llm.behave = fake.refuses("tool")
    assert (await ask(llm)).value is None
    assert (await ask(llm)).value == "v1"
    assert llm.forms[-2:] == ["tool", "json_schema"]


async def test_a_way_that_is_ignored_from_some_day_on_is_forgotten(llm: FakeLlm) -> None:
    await ask(llm)
    llm.behave = fake.ignores("json_schema")
    assert (await ask(llm)).value is None
    assert (await ask(llm)).value == "v1"
    assert llm.forms == ["json_schema", "json_schema", "json_schema", "json_schema", "json_object"]


async def test_a_key_that_a_model_repeats_is_not_kept(llm: FakeLlm) -> None:
    llm.behave = fake.says("Bearer the-key-of-the-endpoint")
    reply = await ask(llm, api_key="the-key-of-the-endpoint")
    assert reply.raw == "Bearer ***"


async def test_nobody_at_home_is_said_without_the_whole_address() -> None:
    gone = ChatEndpoint(
        HttpClient(), base_url="http://127.0.0.1:9/secret-path/v1", model="tiny", api_key="", timeout_s=5.0
    )
    reply = await gone.ask(QUESTION, read)
    assert reply.value is None
    assert "http://127.0.0.1:9" in reply.why
    assert "secret-path" not in reply.why


async def test_nothing_of_the_environment_is_sent_or_obeyed(llm: FakeLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-hush")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert (await ask(llm)).value == "v1"
    sent = llm.headers[0]
    assert sent["authorization"] == f"Bearer {KEY}"
    ours = {"accept", "authorization", "content-length", "content-type"}
    assert set(sent) <= ours | {"accept-encoding", "connection", "host", "user-agent"}


def test_any_event_loop_may_ask(llm: FakeLlm) -> None:
    chat = endpoint(llm)
    for _ in range(2):
        assert asyncio.run(chat.ask(QUESTION, read)).value == "v1"


async def test_a_tool_call_is_heard_in_any_way_of_asking(llm: FakeLlm) -> None:
    llm.behave = lambda body: Said(tool=fake.decision(body))
    assert (await ask(llm)).value == "v1"

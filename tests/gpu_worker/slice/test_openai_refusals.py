"""What the OpenAI API refuses, and how its clients are told: always in OpenAI's words."""

import json
from typing import Any

import httpx
import openai
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from tests.fixtures.talker import CHAT, GREETING, HELLO, MODEL, Talker, client_of, engine_of, raw, served, service_of
from wire.generate import PROMPT_BODY_BYTES_MAX

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
REFUSED: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("chat", {"messages": []}, "messages", None),
    ("chat", {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", None),
    ("chat", {"messages": [{"role": "user"}]}, "messages", None),
    ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages", "invalid_argument"),
    ("chat", {"n": 2}, "n", None),
    ("chat", {"temperature": 2.5}, "temperature", None),
    ("chat", {"stop": list("abcde")}, "stop", None),
    ("chat", {"stop": ""}, "stop", None),
    ("chat", {"top_logprobs": 3}, "top_logprobs", None),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    ("chat", {"modalities": ["text", "audio"]}, "modalities", None),
    ("chat", {"logit_bias": {"257": 1}}, "logit_bias", "invalid_argument"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format", None),
    ("chat", {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "invalid_argument"),
    ("chat", {"max_tokens": 4_096}, "messages", "context_length_exceeded"),
    ("chat", {"max_tokens": -1}, "max_tokens", None),
    ("completion", {"max_tokens": 4_096}, "prompt", "context_length_exceeded"),
    ("completion", {"prompt": ""}, "prompt", "invalid_argument"),
    ("completion", {"prompt": [300]}, "prompt", "invalid_argument"),
    ("completion", {"prompt": ["a", "b"]}, "prompt", None),
    ("completion", {"suffix": "x"}, "suffix", None),
    ("completion", {"best_of": 2}, "best_of", None),
    ("completion", {"echo": True, "logprobs": 1}, "logprobs", None),
]


async def test_what_cannot_be_done_is_refused_with_the_fields_name() -> None:
    talker = Talker()
    async with served(service_of(talker)) as url, httpx.AsyncClient(base_url=url) as client:
        for kind, wrong, param, code in REFUSED:
            path, body = {"chat": ("/v1/chat/completions", CHAT), "completion": ("/completions", {"prompt": "x"})}[kind]
            for streams in (False, True):
                reply = await client.post(path, json={**body, **wrong, "stream": streams})
                assert reply.status_code == 400, (wrong, reply.text)
                error = reply.json()["error"]
                assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code), wrong
                assert error["message"]
    assert talker.requests == []


async def test_even_the_servers_own_refusals_have_openais_body() -> None:
    async with served(service_of(Talker())) as url, httpx.AsyncClient(base_url=url) as client:
        path, kind = "/v1/chat/completions", {"content-type": "application/json"}
        replies = {
            "no path": (404, await client.get("/v1/nothing")),
            "no model": (404, await client.post(path, json={**CHAT, "model": "other"})),
            "no such model": (404, await client.get("/v1/models/acme/other")),
            "no method": (405, await client.get(path)),
            "no json": (400, await client.post(path, content=b'{"model": ', headers=kind)),
            "no object": (400, await client.post(path, content=b"[]", headers=kind)),
            "nan": (400, await client.post(path, content=b'{"messages": NaN}', headers=kind)),
            "deep": (400, await client.post(path, content=b"[" * 100_000, headers=kind)),
            "no kind": (415, await client.post(path, content=json.dumps(CHAT).encode())),
            "too large": (413, await client.post(path, content=b"x" * (PROMPT_BODY_BYTES_MAX + 1), headers=kind)),
            "headers": (431, await client.get("/v1/models", headers={"x-large": "x" * 60_000})),
        }
        alive = await client.post(path, json=CHAT)
    for what, (status, reply) in replies.items():
        assert reply.status_code == status, what
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, what
        assert reply.headers["x-request-id"], what
    assert replies["no model"][1].json()["error"]["code"] == "model_not_found"
    assert replies["no method"][1].headers["allow"] == "POST"
    assert alive.status_code == 200


async def test_the_key_is_asked_for_where_there_is_one() -> None:
    async with served(service_of(Talker(), secret="s3cret")) as url:
        for key in ("", "wrong"):
            async with httpx.AsyncClient() as client:
                reply = await client.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"} if key else {})
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.json()["error"]["code"] == "invalid_api_key"
        async with client_of(f"{url}/v1", "s3cret") as client:
            assert (await client.chat.completions.create(model=MODEL, messages=HELLO)).choices
        async with client_of(f"{url}/v1", "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model=MODEL, messages=HELLO)


async def test_without_a_key_the_page_of_another_site_is_refused() -> None:
    async with served(service_of(Talker())) as url:
        foreign = await raw(url, "/v1/chat/completions", CHAT, origin="https://elsewhere.example")
        own = await raw(url, "/v1/chat/completions", CHAT, origin=url)
    assert (foreign.status_code, own.status_code) == (403, 200)


@pytest.mark.parametrize("secret", ["", "s3cret"])
async def test_the_pages_of_an_origin_that_the_owner_names_may_call(secret: str) -> None:
    service = service_of(Talker(), secret=secret, origins=("https://chat.example",))
    path, key = "/v1/chat/completions", {"authorization": f"Bearer {secret}"} if secret else {}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        for origin, is_named in (("https://chat.example", True), ("https://elsewhere.example", False)):
            before = await client.options(path, headers={"origin": origin, **asks})
            reply = await client.post(path, json=CHAT, headers={"origin": origin, **key})
            for each in (before, reply):
                assert each.headers.get("access-control-allow-origin") == (origin if is_named else None)
            assert before.is_success is is_named
            assert reply.status_code == (200 if is_named or secret else 403)
            if is_named:
                assert "authorization" in before.headers["access-control-allow-headers"].lower()
                exposed = set(reply.headers["access-control-expose-headers"].split(", "))
                assert {"x-request-id", "retry-after-ms", "x-ratelimit-remaining-requests"} <= exposed
        if secret:
            keyless = await client.post(path, json=CHAT, headers={"origin": "https://chat.example"})
            assert keyless.status_code == 401
    async with served(service_of(Talker(), secret=secret)) as url:
        shut = await raw(url, path, CHAT, origin="https://chat.example", **key)
    assert "access-control-allow-origin" not in shut.headers


@pytest.mark.row(50)
async def test_a_stage_that_is_not_the_head_names_its_head() -> None:
    head = "http://10.0.0.1:31331"
    service = service_of(Talker(), layers=Layers(2, 4, 4), head_url=lambda: head)
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        reply = await client.post("/v1/chat/completions", json=CHAT)
        own = await client.post("/api/v1/generate", json={"inputs": "x"})
        models = await client.get("/v1/models")
    assert (reply.status_code, own.status_code, models.status_code) == (409, 409, 409)
    assert (reply.json()["error"]["code"], reply.json()["error"]["head"]) == ("not_head", head)
    assert reply.headers["location"] == f"{head}/v1/chat/completions"
    assert reply.headers["x-should-retry"] == "false"
    assert (own.json()["code"], own.headers["location"]) == ("not_head", f"{head}/api/v1/generate")
    assert head in own.json()["detail"]


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [("no_capacity", 429, "rate_limit_exceeded"), ("no_route", 503, "no_route"), ("draining", 503, "draining")],
)
async def test_who_is_refused_for_now_is_told_when_to_come_again(code: str, status: int, told: str) -> None:
    talker = Talker(refuses=InferenceError(code, "not now"))
    async with served(service_of(talker)) as url:
        reply = await raw(url, "/v1/chat/completions", {**CHAT, "stream": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, told)
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
    assert reply.headers["x-should-retry"] == "true"


async def test_a_model_that_is_loading_is_listed_and_not_served_yet() -> None:
    talker = Talker()
    service = service_of(None)
    async with served(service) as url, client_of(f"{url}/v1") as client:
        early = await raw(url, "/v1/chat/completions", CHAT)
        listed = [model.id async for model in client.models.list()]
        service.engine = engine_of(talker)
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (early.status_code, early.json()["error"]["code"]) == (503, "server_not_ready")
    assert listed == [MODEL]
    assert answer.choices[0].message.content == GREETING


@pytest.mark.parametrize("broken", [InferenceError("lost_stage", "layers 2:4 are gone"), ZeroDivisionError("secret")])
async def test_a_stream_that_breaks_off_says_so(broken: Exception) -> None:
    talker = Talker(says=b"abcdef", fails_after=3, fails_with=broken)
    seen = []

    async def read(client: openai.AsyncOpenAI) -> None:
        async for chunk in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            seen.append(chunk.choices[0].delta.content)

    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        with pytest.raises(openai.APIError) as failed:
            await read(client)
        text = (await raw(url, "/v1/chat/completions", {**CHAT, "stream": True})).text
        whole = await raw(url, "/v1/chat/completions", CHAT)
    assert seen == ["", "a", "b", "c"]
    known = isinstance(broken, InferenceError)
    assert failed.value.code == ("lost_stage" if known else "internal")
    assert "secret" not in text + whole.text
    assert "[DONE]" not in text
    assert whole.status_code == (502 if known else 500)

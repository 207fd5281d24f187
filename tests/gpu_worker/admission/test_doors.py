"""Who enters by which door: the order of credentials, on HTTP and gRPC, with the keys of a real registry."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.inference.text.admission import Admission, KeyHolder
from gpu_worker.inference.text.turns import Turns
from gpu_worker.wiring.admission import open_admission
from tests.fixtures.agents import agent_of, refused
from tests.fixtures.key_server import AGENT, ISSUER, OTHER_ED, KeyServer, key_server, signed
from tests.fixtures.talker import CHAT, GREETING, HELLO, MODEL, Talker, client_of, served, service_of

CHATS, GENERATE = "/v1/chat/completions", "/api/v1/generate"
INPUTS = {"inputs": "Hello"}
SECRET = "s3crét"
# Made once: reading the certificates, which nobody here has, takes longer than the rest.
TLS = ssl.create_default_context()
# What a proxy beside the worker says of a stranger; his address is ours then.
FAR = {"x-forwarded-for": "203.0.113.9"}
PRICES = {"price_in": "0.5", "price_out": "1.5"}


class Keys:
    """Implements `PrepaidKeys`: two keys."""

    async def find(self, key: str) -> KeyHolder | None:
        return {"lv_one": KeyHolder("0xabc", "Anna"), "lv_two": KeyHolder("0xdef", "Bert")}.get(key)


def bearer(credential: str) -> dict[str, Any]:
    return {"authorization": f"Bearer {credential}".encode()}


@pytest.fixture
async def registry() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        yield server


@asynccontextmanager
async def admitting(folder: Path, keys: Keys | None = None, **settings: Any) -> AsyncIterator[Admission]:
    """Admission as the worker's wiring makes it."""
    told = {"data": folder, "agent_id": AGENT, "pass_issuer": ISSUER, **settings}
    admission = open_admission(WorkerSettings(**told), keys)
    try:
        yield admission
    finally:
        await admission.close()


async def raw(url: str, path: str, body: Any, **headers: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, verify=TLS) as client:
        return await client.post(path, json=body, headers=headers)


async def seen(url: str, headers: Any, *paths: str) -> list[int]:
    """Return the statuses of `paths`."""
    async with httpx.AsyncClient(base_url=url, headers=headers, verify=TLS) as client:
        return [(await client.get(path)).status_code for path in paths]


def told(reply: httpx.Response) -> tuple[int, str]:
    body = reply.json()
    return reply.status_code, body["error"]["code"] if "error" in body else body.get("code", "")


# What the owner set; what is sent; what /v1 and /api/v1 answer.
ORDER = {
    "nothing set, from here": ({}, {}, (200, ""), (200, "")),
    "nothing set, with a key that nobody asks for": ({}, bearer("none"), (200, ""), (200, "")),
    "nothing set, from elsewhere": ({}, FAR, (401, "invalid_api_key"), (401, "unauthorized")),
    "a secret, shown": ({"api_secret": SECRET}, bearer(SECRET), (200, ""), (200, "")),
    "a secret, shown from elsewhere": ({"api_secret": SECRET}, bearer(SECRET) | FAR, (200, ""), (200, "")),
    "a secret, missing": ({"api_secret": SECRET}, {}, (401, "invalid_api_key"), (401, "unauthorized")),
    "a secret, wrong": ({"api_secret": SECRET}, bearer("s3cret"), (401, "invalid_api_key"), (403, "forbidden")),
    "a secret, basic": (
        {"api_secret": SECRET}, {"authorization": "Basic s3cret"}, (401, "invalid_api_key"), (401, "unauthorized")
    ),
    "registry, missing": ({"pass_keys": ""}, {}, (401, "invalid_api_key"), (401, "unauthorized")),
    "registry, wrong": ({"pass_keys": ""}, bearer("a.b.c"), (401, "invalid_api_key"), (403, "forbidden")),
    "priced, missing": (PRICES, {}, (402, "payment_required"), (402, "payment_required")),
    "priced with a secret, missing": (
        PRICES | {"api_secret": SECRET}, {}, (402, "payment_required"), (402, "payment_required")
    ),
    "priced with a registry, missing": (
        PRICES | {"pass_keys": ""}, {}, (402, "payment_required"), (402, "payment_required")
    ),
    "priced, the secret": (PRICES | {"api_secret": SECRET}, bearer(SECRET), (200, ""), (200, "")),
    "priced, a key": (PRICES, bearer("lv_one"), (200, ""), (200, "")),
    "priced, no key of ours": (PRICES, bearer("lv_three"), (401, "invalid_api_key"), (403, "forbidden")),
    "long": (PRICES, bearer("x" * 5_000), (401, "invalid_api_key"), (403, "forbidden")),
}  # fmt: skip


@pytest.mark.row(75)
@pytest.mark.parametrize(("settings", "headers", "openai_says", "api_says"), ORDER.values(), ids=ORDER)
async def test_the_order_of_credentials(
    registry: KeyServer, tmp_path: Path, settings: Any, headers: Any, openai_says: Any, api_says: Any
) -> None:
    settings = {name: value or registry.url for name, value in settings.items()}
    async with (
        admitting(tmp_path, Keys(), **settings) as admission,
        served(service_of(Talker(), admission=admission)) as url,
    ):
        by_openai = await raw(url, CHATS, CHAT, **headers)
        by_api = await raw(url, GENERATE, INPUTS, **headers)
        health = await seen(url, {}, "/health")
    assert (told(by_openai), told(by_api), health) == (openai_says, api_says, [200])
    for reply in (by_openai, by_api):
        assert (reply.headers.get("www-authenticate") == "Bearer") is (reply.status_code == 401)


async def test_what_costs_is_shown_to_all_and_the_owners_figures_to_him_alone(tmp_path: Path) -> None:
    looks = ("/v1/models", "/metrics", "/api/v1/metrics")
    for settings, sent, expected in (
        ({}, {}, [200, 200, 200]),
        ({}, FAR, [401, 401, 401]),
        (PRICES, FAR, [200, 401, 401]),
        (PRICES, bearer("lv_one"), [200, 200, 200]),  # from here, where no secret is asked for
        (PRICES | {"api_secret": SECRET}, {}, [200, 401, 401]),
        (PRICES | {"api_secret": SECRET}, bearer("lv_one"), [200, 403, 403]),
        (PRICES | {"api_secret": SECRET}, bearer(SECRET) | FAR, [200, 200, 200]),
    ):
        async with admitting(tmp_path, Keys(), **settings) as admission:
            service = service_of(Talker(), admission=admission)
            async with served(service) as url:
                assert await seen(url, sent, *looks) == expected, (settings, sent)


@pytest.mark.row(72)
async def test_a_pass_opens_one_session_also_after_a_restart(registry: KeyServer, tmp_path: Path) -> None:
    token = signed()
    async with admitting(tmp_path, pass_keys=registry.url) as admission:
        async with served(service_of(Talker(), admission=admission)) as url:
            # Looking at the models opens nothing, and what cannot be done leaves the pass.
            assert await seen(url, bearer(token), "/v1/models", "/v1/models") == [200, 200]
            assert told(await raw(url, CHATS, {**CHAT, "max_tokens": 10**6}, **bearer(token)))[0] == 400
            async with client_of(f"{url}/v1", token) as client:
                reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
                assert reply.choices[0].message.content == GREETING
                with pytest.raises(openai.AuthenticationError, match="another session"):
                    await client.chat.completions.create(model=MODEL, messages=HELLO)
            assert told(await raw(url, GENERATE, INPUTS, **bearer(token))) == (403, "forbidden")
        async with agent_of(service_of(Talker(), admission=admission)) as agent:
            code, why, _ = await refused(agent.stream(session_token=token))
            assert (code, why) == ("UNAUTHENTICATED", "the session pass has opened another session")
    async with (
        admitting(tmp_path, pass_keys=registry.url) as admission,
        agent_of(service_of(Talker(), admission=admission)) as agent,
    ):
        assert (await refused(agent.stream(session_token=token)))[0] == "UNAUTHENTICATED"
        assert await agent.said(session_token=signed(jti="j2")) == GREETING
        # Also as metadata, as a bearer.
        said = [
            chunk.content async for chunk in agent.stream(metadata=(("authorization", f"Bearer {signed(jti='j3')}"),))
        ]
        assert "".join(said) == GREETING


@pytest.mark.row(74)
async def test_while_the_registry_gives_no_key_no_token_enters(registry: KeyServer, tmp_path: Path) -> None:
    registry.answer = b""
    async with (
        admitting(tmp_path, pass_keys=registry.url) as admission,
        agent_of(service_of(Talker(), admission=admission)) as agent,
    ):
        for token in (signed(), "more than ten characters", "a.b.c", ""):
            assert (await refused(agent.stream(session_token=token)))[0] == "UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await agent.status()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_pass_is_for_its_model(registry: KeyServer, tmp_path: Path) -> None:
    talker = Talker()
    async with (
        admitting(tmp_path, pass_keys=registry.url) as admission,
        served(service_of(talker, admission=admission, aliases={"small": MODEL, "large": "acme/other"})) as url,
    ):
        other = await raw(url, CHATS, CHAT, **bearer(signed(model="acme/other")))
        aliased = await raw(url, CHATS, {**CHAT, "model": "small"}, **bearer(signed()))
        unnamed = await raw(url, CHATS, {"messages": HELLO}, **bearer(signed(jti="j2", model="small")))
    assert told(other) == (404, "model_not_found")
    assert (aliased.status_code, unnamed.status_code, len(talker.requests)) == (200, 200, 2)


@pytest.mark.row(23)
async def test_the_eleventh_free_request_of_an_hour_is_429(tmp_path: Path) -> None:
    async with (
        admitting(tmp_path, free_requests_per_hour=10, **PRICES) as admission,
        served(service_of(Talker(), admission=admission)) as url,
    ):
        left = []
        for _ in range(9):
            # What cannot be done is not counted.
            assert (await raw(url, CHATS, {**CHAT, "max_tokens": 10**6})).status_code == 400
            reply = await raw(url, CHATS, CHAT)
            left.append((reply.status_code, reply.headers["x-ratelimit-remaining-requests"]))
        tenth = await raw(url, GENERATE, INPUTS)
        eleventh, by_api = await raw(url, CHATS, CHAT), await raw(url, GENERATE, INPUTS)
        paying = await raw(url, CHATS, CHAT, **{"payment-signature": "a cheque"})
    assert left == [(200, str(10 - number)) for number in range(1, 10)]
    assert (tenth.status_code, told(eleventh), told(by_api)) == (
        200,
        (429, "rate_limit_exceeded"),
        (429, "rate_limited"),
    )
    assert 3_500 < int(eleventh.headers["retry-after"]) <= 3_600
    assert (eleventh.headers["x-should-retry"], paying.status_code) == ("false", 402)
    assert int(eleventh.headers["retry-after-ms"]) == 1_000 * int(eleventh.headers["retry-after"])
    named = {name.rsplit("-", 2)[1]: value for name, value in eleventh.headers.items() if "ratelimit" in name}
    assert named == {"limit": "10", "remaining": "0", "reset": f"{eleventh.headers['retry-after']}s"}


async def test_without_a_number_nothing_is_free(tmp_path: Path) -> None:
    async with admitting(tmp_path, **PRICES) as admission:
        service = service_of(Talker(), admission=admission)
        async with served(service) as url:
            assert (await raw(url, CHATS, CHAT)).status_code == 402


async def test_who_has_priority_is_the_owners_word(registry: KeyServer, tmp_path: Path) -> None:
    talker = Talker(pace=(pace := asyncio.Semaphore(0)))
    settings = {"pass_keys": registry.url, "priority_users": "anna, CLIENT-9, 10.0.0.1", **PRICES}
    shown = {
        "first": "lv_two",
        "second": "lv_two",
        "third": signed(),
        "key": "lv_one",
        "pass": signed(client_id="client-9", jti="j2"),
    }
    async with admitting(tmp_path, Keys(), **settings) as admission:
        service = service_of(talker, admission=admission, turns=Turns(1, 8, 60.0))
        async with served(service) as url, asyncio.TaskGroup() as asking:
            for number, (said, credential) in enumerate(shown.items()):
                body = {"messages": [{"role": "user", "content": said}], "max_tokens": 1}
                asking.create_task(raw(url, CHATS, body, **bearer(credential)))
                async with asyncio.timeout(10):
                    while service.turns.running + service.turns.waiting <= number:  # noqa: ASYNC110 - tells nobody
                        await asyncio.sleep(0)
            for _ in shown:
                pace.release()
    order = [bytes(request.prompt).decode().removeprefix("<user>").partition("<")[0] for request in talker.requests]
    assert order == ["first", "key", "pass", "second", "third"]
    assert admission.caller("paid", "10.0.0.1").is_priority


async def test_no_credential_is_told_to_the_log_or_the_client(
    registry: KeyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = [SECRET, "lv_unknown", signed(OTHER_ED), signed(OTHER_ED, "k9"), "noise.noise.noise"]
    async with (
        admitting(tmp_path, Keys(), pass_keys=registry.url, api_secret=SECRET) as admission,
        served(service_of(Talker(), admission=admission)) as url,
    ):
        replies = [await raw(url, CHATS, CHAT, **bearer(each)) for each in shown]
    said = caplog.text + repr(admission) + "".join(reply.text for reply in replies)
    assert [reply.status_code for reply in replies] == [200, 401, 401, 401, 401]
    assert not [each for each in shown if each in said]

"""Outgoing webhooks: what was stored with an event reaches the receiver, signed, at least once, and harms no run."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from agent.config import AgentSettings
from agent.core.errors import StoreUnavailable
from agent.core.model import Notice
from agent.notify import notify
from agent.ports import Agent, Claim, Store
from agent.sweep import sweep
from agent.wiring import open_agent, open_webhooks
from api.door import create_app
from livery.client import Client
from outbound.http import HttpClient
from tests.contracts.store_values import T0, stored
from tests.fixtures.world import Hosts, World, replace_agent

SECRETS = ["whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"n", b"o")]
pytestmark = pytest.mark.slow

URL = "http://receiver/hook"


@dataclass
class Receiver:
    """A program that is told; `answers` are its next statuses, then it accepts."""

    answers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        # The package of the standard raises for a signature that is wrong or old.
        message, _ = [Webhook(secret).verify(body, dict(request.headers)) for secret in SECRETS]
        self.ids.append(request.headers["webhook-id"])
        status = self.answers.pop(0) if self.answers else 204
        if status == 307:
            return RedirectResponse("http://receiver/elsewhere")
        if status < 300:
            self.told.append(message)
        return Response(status_code=status)


@pytest.fixture
def receiver(hosts: Hosts) -> Receiver:
    receiver = Receiver()
    hosts.serve("receiver", Starlette(routes=[Route("/hook", receiver.take, methods=["POST"])]))
    return receiver


class Remembering:
    """A store that remembers what became of notices, and may be away when it is told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.settled: list[tuple[str, int | None]] = []
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def settle_notice(self, notice_id: str, retry_s: int | None) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is away")
        self.settled.append((notice_id, retry_s))
        # Due at once, so that no test waits; what was asked for is remembered.
        await self._store.settle_notice(notice_id, None if retry_s is None else 0)


def settings(tmp_path: Path, **more: Any) -> AgentSettings:
    asked = {"webhook_url": URL, "webhook_secret": SecretStr(",".join(SECRETS)), **more}
    return AgentSettings.model_validate({"database_url": SecretStr(f"sqlite:///{tmp_path}/agent.db"), **asked})


@pytest.fixture
async def agent(tmp_path: Path, hosts: Hosts) -> AsyncIterator[Agent]:
    agent = open_agent(settings(tmp_path), HttpClient(hosts))
    yield replace(agent, store=Remembering(agent.store))
    await agent.store.close()


async def queue(agent: Agent, *numbers: int) -> None:
    run = await stored(agent.store)
    claim = await agent.store.claim(run.run_id, 60)
    assert isinstance(claim, Claim)
    notices = [
        Notice(
            notice_id=f"msg_{number}", run_id=run.run_id, kind="job.failed", payload=f'{{"n":{number}}}', created_at=T0
        )
        for number in numbers
    ]
    await agent.store.save(claim.token, run, notices=notices)


async def test_a_receiver_that_fails_twice_is_told_the_third_time_under_the_same_id(
    agent: Agent, receiver: Receiver
) -> None:
    await queue(agent, 1)
    receiver.answers = [500, 307]
    for _ in range(5):
        await notify(agent)
    assert receiver.ids == ["msg_1"] * 3
    assert receiver.told == [{"n": 1}]
    assert agent.store.settled == [("msg_1", 5), ("msg_1", 300), ("msg_1", None)]


async def test_a_dead_receiver_is_asked_ever_more_rarely_and_then_no_more(
    agent: Agent, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    await queue(agent, 1)
    hosts.down.add("receiver")
    for _ in range(9):
        await notify(agent)
    assert [retry_s for _, retry_s in agent.store.settled] == [5, 300, 1_800, 7_200, 18_000, 36_000, None]
    assert "attempt 7" in caplog.messages[-1]
    assert "given up" in caplog.messages[-1]
    assert not any(secret in caplog.text for secret in SECRETS)


async def test_a_receiver_that_is_gone_is_not_asked_again(agent: Agent, receiver: Receiver) -> None:
    await queue(agent, 1)
    receiver.answers = [410]
    await notify(agent)
    await notify(agent)
    assert receiver.ids == ["msg_1"]


async def test_a_few_are_told_at_a_time_and_what_cannot_be_settled_is_told_again(
    agent: Agent, receiver: Receiver
) -> None:
    await queue(agent, *range(12))
    await notify(agent)
    assert len(receiver.told) == 10
    agent.store.is_away = True
    await notify(agent)
    assert len(receiver.told) == 12
    assert await agent.store.take_notices(10, 0) == []


async def test_a_sweep_tells_what_is_due_though_no_run_is(agent: Agent, receiver: Receiver) -> None:
    await queue(agent, 1)
    assert (await sweep(agent)).swept == ()
    assert receiver.ids == ["msg_1"]


async def test_a_sweep_tells_all_that_is_due_and_says_where_its_time_was_too_short(
    agent: Agent, receiver: Receiver
) -> None:
    await queue(agent, *range(40))
    assert (await sweep(agent, seconds_left=0)).more
    assert len(receiver.told) == 10
    assert not (await sweep(agent)).more
    assert len(receiver.told) == 40


async def test_a_sweep_leaves_a_receiver_alone_that_accepts_nothing(agent: Agent, receiver: Receiver) -> None:
    await queue(agent, *range(40))
    # Here a notice that failed is due again at once.
    receiver.answers = [500] * 100
    assert not (await sweep(agent)).more
    assert len(receiver.ids) == 10


async def test_a_tick_over_http_has_told_before_its_request_is_over(
    world: World, receiver: Receiver, tmp_path: Path
) -> None:
    replace_agent(world, webhooks=open_webhooks(settings(tmp_path), HttpClient(world.hosts)))
    run_id = await world.start()
    app = create_app(lambda: world.agent, hosts=("livery",))
    async with Client("http://livery", transport=httpx.ASGITransport(app)) as client:
        assert (await client.tick(run_id)).message == "Job started"
    assert sorted(message["type"] for message in receiver.told) == ["job.submitted", "payment.completed"]


@pytest.mark.parametrize("secret", ["", "secret", "whsec_c2hvcnQ="])
def test_an_address_without_a_secret_of_the_standards_length_is_refused_at_the_start(
    tmp_path: Path, secret: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(tmp_path, webhook_secret=SecretStr(secret))
    assert "LIVERY_AGENT_WEBHOOK_SECRET" in str(caught.value)
    with pytest.raises(ValidationError):
        AgentSettings.model_validate({"webhook_url": URL})
    with pytest.raises(ValidationError):
        settings(tmp_path, webhook_url="ftp://receiver")


async def test_a_run_tells_of_each_payment_and_job_and_of_its_end_whatever_the_receiver_does(
    world: World, receiver: Receiver, tmp_path: Path
) -> None:
    replace_agent(world, webhooks=open_webhooks(settings(tmp_path), HttpClient(world.hosts)))
    world.script(fail_at_epoch=3)
    world.hosts.down.add("receiver")
    replace_agent(world, store=Remembering(world.store))
    run_id = await world.start()
    assert (await world.tick(run_id)).message == "Job started"
    await notify(world.agent)
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()
    world.hosts.down.clear()
    await notify(world.agent)
    assert sorted(message["type"] for message in receiver.told) == sorted(
        [
            *("payment.completed", "job.submitted", "job.failed", "refund.completed"),
            *("payment.completed", "job.submitted", "job.completed", "run.completed"),
        ]
    )
    assert {message["data"]["runId"] for message in receiver.told} == {run_id}

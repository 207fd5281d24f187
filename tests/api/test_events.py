"""GET /api/agent-events: a run's events in order, from where the client was, to the run's end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent.core.errors import StoreUnavailable
from agent.core.model import Entry, Run
from agent.follow import ENTRIES_PER_READ_MAX, follow
from agent.ports import Agent, Claim
from api.config import ApiSettings
from api.door import create_app
from api.live import SILENT_LOOKS_MAX, written
from livery.client import Client, ProblemError
from livery.events import RunEvent
from tests.api.problems import problem
from tests.contracts.store_values import a_run, an_entry, log_of
from wire import decimal_json

END = {"kind": "run_ended", "status": "completed"}
KINDS = ("event", "agent_reasoning", "payment_event", "tick", "job_log", "job_log", "error", "metric")


@pytest.fixture
def door(agent: Agent) -> httpx.AsyncClient:
    """A door on a host that cannot stream: it answers what there is and closes."""
    app = create_app(lambda: agent, hosts=("livery",), settings=ApiSettings(stream=False))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://livery")


async def a_run_so_far(agent: Agent, kinds: tuple[str, ...] = KINDS[:-1], **changes: Any) -> Run:
    """Return a stored run whose log has entries of these kinds."""
    run = a_run(status="running", log=log_of(len(kinds)), **changes)
    entries = tuple(an_entry(run.run_id, seq, type=kind) for seq, kind in enumerate(kinds, start=1))
    return await agent.store.insert_run(run, entries, None, "")


async def end(agent: Agent, run: Run) -> None:
    """End the run, in one save with the entry that says so."""

    claim = await agent.store.claim(run.run_id, 60)
    assert isinstance(claim, Claim)
    entry = an_entry(run.run_id, run.log.seq + 1, type="metric", data=END)
    ended = replace(run, status="completed", phase="done", log=log_of(entry.seq))
    await agent.store.save(claim.token, ended, [entry])


@dataclass(frozen=True)
class Sent:
    name: str
    id: str
    data: dict[str, Any]


def sent(text: str) -> list[Sent]:
    """Return the events of a stream that came whole."""
    head, *blocks, rest = text.split("\n\n")
    assert (head, rest) == ("retry: 2000", "")
    events = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) == {"event", "id", "data"}
        events.append(Sent(fields["event"], fields["id"], decimal_json.loads(fields["data"])))
    return events


async def events(
    door: httpx.AsyncClient, run_id: str, headers: dict[str, str] | None = None, **query: str
) -> list[Sent]:
    response = await door.get("/api/agent-events", params={"runId": run_id, **query}, headers=headers or {})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    return sent(response.text)


async def test_the_events_of_a_run_are_its_observations_in_order_and_at_the_end_its_state(
    agent: Agent, door: httpx.AsyncClient
) -> None:
    run = await a_run_so_far(agent)
    told = await events(door, run.run_id)
    assert [(event.name, event.id) for event in told] == [
        ("agent_reasoning", "2"),
        ("payment_event", "3"),
        ("job_log", "5"),
        ("job_log", "6"),
        ("error", "7"),
    ]
    await end(agent, run)
    told = await events(door, run.run_id)
    assert [(event.name, event.id) for event in told[-2:]] == [("error", "7"), ("completed", "8")]
    observations = (await door.get("/api/agent-status", params={"runId": run.run_id})).json()["observations"]
    assert [event.data for event in told] == observations[::-1]


async def test_where_an_answer_is_gathered_before_it_is_sent_nothing_is_waited_for(agent: Agent) -> None:
    run = await a_run_so_far(agent)
    app = create_app(lambda: agent, hosts=("livery",))

    async def as_mangum_calls(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "aws.event": {}}, receive, send)

    transport = httpx.ASGITransport(as_mangum_calls)
    async with httpx.AsyncClient(transport=transport, base_url="http://livery") as door:
        assert [event.id for event in await events(door, run.run_id)] == ["2", "3", "5", "6", "7"]


async def test_a_server_that_stops_ends_a_stream_between_two_full_pages(agent: Agent) -> None:
    run = await a_run_so_far(agent, ("job_log",) * (3 * ENTRIES_PER_READ_MAX))

    async def no_pause() -> bool:
        raise AssertionError("there was more to tell")

    pages = await follow(agent, run.run_id, 0, no_pause)
    assert pages is not None
    chunks = [chunk async for chunk in written(pages, lambda: True)]
    assert len(chunks) == 1 + ENTRIES_PER_READ_MAX


async def test_a_client_that_comes_back_goes_on_after_the_last_event_it_has_until_there_is_no_more(
    agent: Agent, door: httpx.AsyncClient
) -> None:
    run = await a_run_so_far(agent)
    assert [event.id for event in await events(door, run.run_id, {"last-event-id": "5"})] == ["6", "7"]
    assert [event.id for event in await events(door, run.run_id, since="6")] == ["7"]
    assert [event.id for event in await events(door, run.run_id, {"last-event-id": "6"}, since="2")] == ["7"]
    assert await events(door, run.run_id, since="7") == []
    await end(agent, run)
    assert [event.id for event in await events(door, run.run_id, since="7")] == ["8"]
    # 204 tells an EventSource to stop asking.
    over = await door.get("/api/agent-events", params={"runId": run.run_id, "since": "8"})
    assert (over.status_code, over.content) == (204, b"")


@pytest.mark.parametrize("last", ["-1", "x", "5 ", "\u0665", "8", "9" * 30, "9" * 999, "1.5", "5\t"])
async def test_an_event_that_was_never_sent_begins_at_the_beginning(
    agent: Agent, door: httpx.AsyncClient, last: str
) -> None:
    run = await a_run_so_far(agent)
    assert len(await events(door, run.run_id, since=last)) == 5


async def test_of_a_run_that_is_not_there_nothing_is_streamed(door: httpx.AsyncClient) -> None:
    for run_id in ("run_unknown", "\0", "x" * 3_000):
        problem(await door.get("/api/agent-events", params={"runId": run_id}), "run_not_found")
    problem(await door.get("/api/agent-events"), "invalid_field")
    too_long = {"runId": "run_unknown", "since": "1" * 1_001}
    problem(await door.get("/api/agent-events", params=too_long), "invalid_field")


async def test_a_long_log_is_read_a_page_at_a_time_and_comes_whole(agent: Agent) -> None:
    count = 2 * ENTRIES_PER_READ_MAX + 1
    run = await a_run_so_far(agent, ("job_log",) * count)

    async def no_pause() -> bool:
        return False

    pages = await follow(agent, run.run_id, 0, no_pause)
    assert pages is not None
    lengths = [len(page) async for page in pages]
    assert lengths == [ENTRIES_PER_READ_MAX, ENTRIES_PER_READ_MAX, 1, 0]


async def test_a_follower_waits_for_what_comes_and_stops_with_the_end_of_the_run(agent: Agent) -> None:
    run = await a_run_so_far(agent)
    looks = 0

    async def pause() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            await end(agent, run)
        return True

    pages = await follow(agent, run.run_id, 6, pause)
    assert pages is not None
    assert [[entry.seq for entry in page] async for page in pages] == [[7], [], [], [], [8], []]
    assert looks == 3


async def test_a_store_that_goes_away_ends_the_stream_without_an_error(agent: Agent) -> None:
    run = await a_run_so_far(agent)

    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(agent.store, name)

        async def read_log(self, *_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the store is away")

    async def pause() -> bool:
        return True

    pages = await follow(replace(agent, store=Away()), run.run_id, 0, pause)
    assert pages is not None
    assert [page async for page in pages] == []


async def test_a_client_that_leaves_ends_its_stream(agent: Agent) -> None:
    run = await a_run_so_far(agent)
    app = create_app(lambda: agent, hosts=("livery",))
    messages: list[dict[str, Any]] = []
    told = asyncio.Event()
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(asked, None)) is not None:
            return message
        await told.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)
        if b"id: 7" in message.get("body", b""):
            told.set()

    scope = {
        **{"type": "http", "method": "GET", "path": "/api/agent-events", "raw_path": b"/api/agent-events"},
        **{"query_string": f"runId={run.run_id}".encode(), "headers": [(b"host", b"livery")], "scheme": "http"},
        **{"http_version": "1.1", "client": None, "server": None, "root_path": "", "asgi": {"spec_version": "2.3"}},
    }
    # It returns: nobody goes on looking for events that nobody hears.
    await asyncio.wait_for(app(scope, receive, send), 30)
    assert messages[0]["status"] == 200
    assert b"id: 7" in messages[-1]["body"]


async def test_the_sdk_asks_again_until_the_run_has_ended_and_tells_each_event_once(agent: Agent) -> None:
    run = await a_run_so_far(agent, ("job_log", "job_log"))
    app = create_app(lambda: agent, hosts=("livery",), settings=ApiSettings(stream=False))
    transport = Quick(httpx.ASGITransport(app))
    told: list[RunEvent] = []
    async with Client("http://livery", transport=transport) as client:
        async for event in client.events(run.run_id):
            told.append(event)
            if event.observation.seq == 2:
                await end(agent, run)
        assert [(event.name, event.observation.seq, event.is_end) for event in told] == [
            ("job_log", 1, False),
            ("job_log", 2, False),
            ("completed", 3, True),
        ]
        assert transport.asked == ["0", "2"]
        assert [event async for event in client.events(run.run_id, since=3)] == []
        with pytest.raises(ProblemError):
            await anext(client.events("run_unknown"))


class Quick(httpx.AsyncBaseTransport):
    """Takes the wait out of the answers, and cuts lines where a log may have them and a stream may not."""

    def __init__(self, inner: httpx.AsyncBaseTransport, piece_bytes: int = 7) -> None:
        self.inner = inner
        self.piece_bytes = piece_bytes
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.params["since"])
        response = await self.inner.handle_async_request(request)
        content = (await response.aread()).replace(b"retry: 2000", b"retry: 0")

        async def bytewise() -> AsyncIterator[bytes]:
            for start in range(0, len(content), self.piece_bytes):
                yield content[start : start + self.piece_bytes]

        return httpx.Response(response.status_code, headers=response.headers, content=bytewise())


async def test_letters_that_other_programs_take_for_the_end_of_a_line_are_kept(agent: Agent) -> None:
    run = await a_run_so_far(agent, ())
    claim = await agent.store.claim(run.run_id, 60)
    assert isinstance(claim, Claim)
    line = "Epoch 1\u2028\u0085\x0b\r\nid: 99\n\ndata: {}"

    entries = [an_entry(run.run_id, 1, type="job_log", content=line), an_entry(run.run_id, 2, type="metric", data=END)]
    await agent.store.save(claim.token, replace(run, status="completed", phase="done", log=log_of(2)), entries)
    app = create_app(lambda: agent, hosts=("livery",))
    async with Client("http://livery", transport=httpx.ASGITransport(app)) as client:
        told = [event async for event in client.events(run.run_id)]
    assert [(event.name, event.observation.content) for event in told] == [
        ("job_log", line),
        ("completed", "Epoch 2/3"),
    ]


async def test_a_stream_ends_by_itself_before_its_host_would_cut_it(agent: Agent) -> None:
    run = await a_run_so_far(agent)
    settings = ApiSettings(vercel=True, vercel_request_s=1, secret=SecretStr("s"))
    transport = httpx.ASGITransport(create_app(lambda: agent, settings=settings))
    headers = {"authorization": "Bearer s"}
    async with httpx.AsyncClient(transport=transport, base_url="http://livery", headers=headers) as door:
        assert [event.id for event in await events(door, run.run_id)][-1] == "7"
        problem(await door.get("/api/agent-events", headers={"authorization": ""}), "unauthorized")


async def test_a_stream_of_which_nothing_is_heard_says_that_it_is_there() -> None:
    async def silence() -> AsyncIterator[tuple[Entry, ...]]:
        for _ in range(2 * SILENT_LOOKS_MAX):
            yield ()

    assert [chunk async for chunk in written(silence())] == [b"retry: 2000\n\n", *[b": still here\n\n"] * 2]

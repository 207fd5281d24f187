"""Web pages of others, and names that are not ours, are kept out of the control plane; programs are let in."""

import httpx
import pytest
from pydantic import ValidationError

from agent.ports import Agent
from api.door import create_app
from inbound.stranger import stranger
from inbound.web import create_door
from tests.api.conftest import JSON
from tests.api.problems import problem
from wire.problems import problem_document

START = b'{"goal": "x", "budgetTotal": 5}'


@pytest.fixture
def plane(agent: Agent) -> httpx.AsyncClient:
    """A client that sends what it is told and no more, to a server at its usual address."""
    transport = httpx.ASGITransport(create_app(lambda: agent), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3000")


async def runs(plane: httpx.AsyncClient) -> int:
    return len((await plane.get("/api/agent-runs")).json()["runs"])


@pytest.mark.parametrize("host", ["localhost:3000", "LOCALHOST", "127.0.0.1:3000", "127.8.9.1", "[::1]:3000", "[::1]"])
async def test_our_own_names_are_answered(plane: httpx.AsyncClient, host: str) -> None:
    assert (await plane.get("/health", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example/localhost",
        "127.0.0.1:3000:3000",
        "192.168.0.7",
        "0.0.0.0:3000",
        "[::]",
        "::1",
        "livery",
        "localhost:port",
        "local host",
        "",
    ],
)
async def test_a_name_that_points_here_and_is_not_ours_is_refused(plane: httpx.AsyncClient, host: str) -> None:
    document = problem(await plane.get("/health", headers={"host": host}), "unknown_host")
    assert repr(host) in document["detail"]
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin", "content-type": JSON}
    problem(await plane.post("/api/agent-start", content=START, headers=headers), "unknown_host")
    assert await runs(plane) == 0


def test_no_host_and_two_hosts_are_refused() -> None:
    for headers in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        assert (stranger("http", headers, ()) or ("",))[0] == "unknown_host"
    assert stranger("http", [(b"host", b"localhost")], ()) is None


def test_a_name_that_was_allowed_is_ours() -> None:
    headers = [(b"host", b"Plane.example"), (b"origin", b"https://plane.example")]
    assert stranger("https", headers, {"plane.example"}) is None
    assert (stranger("http", headers, {"plane.example"}) or ("",))[0] == "foreign_origin"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1:3001"},
        {"origin": "http://127.0.0.1:3000.evil.example"},
        {"origin": "https://127.0.0.1:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_a_page_of_another_site_can_neither_start_tick_nor_read(
    plane: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    problem(
        await plane.post("/api/agent-start", content=START, headers={**headers, "content-type": JSON}), "foreign_origin"
    )
    problem(await plane.post("/api/agent-tick?runId=run_x", headers=headers), "foreign_origin")
    problem(await plane.get("/api/agent-runs", headers=headers), "foreign_origin")
    assert await runs(plane) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {},
    ],
    ids=str,
)
async def test_a_page_of_ours_a_typed_address_and_a_program_are_let_in(
    plane: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await plane.post("/api/agent-start", content=START, headers={**headers, "content-type": JSON})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "json", "text/json"],
)
async def test_a_body_that_is_not_called_json_is_told_how_to_call_it(
    plane: httpx.AsyncClient, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}

    async def pieces():
        yield START

    for content in (START, pieces()):
        document = problem(await plane.post("/api/agent-start", content=content, headers=headers), "not_json_content")
        assert repr(kind or "") in document["detail"]
    response = await plane.post("/api/agent-tick?runId=run_x", content=b"{}", headers=headers)
    assert "Content-Type: application/json" in problem(response, "not_json_content")["hint"]
    assert await runs(plane) == 0


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.livery+json"])
async def test_a_body_that_is_called_json_is_read(plane: httpx.AsyncClient, kind: str) -> None:
    response = await plane.post("/api/agent-start", content=START, headers={"content-type": kind})
    assert response.status_code == 200, response.text


async def test_a_tick_without_a_body_needs_no_content_type(plane: httpx.AsyncClient) -> None:
    problem(await plane.post("/api/agent-tick?runId=run_x"), "run_not_found")


async def test_a_door_of_any_name_answers_to_any_name() -> None:
    door = create_door(
        title="t", version="1", description="d", errors=(), translate=lambda error: problem_document("internal", "")
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://gpus.example") as client:
        response = await client.get("/openapi.json", headers={"origin": "https://elsewhere.example"})
    assert response.status_code == 200


def test_settings_that_cannot_work_are_told_when_the_app_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hush@host/db")
    with pytest.raises(ValidationError, match="not postgres") as refused:
        create_app()
    assert "hush" not in str(refused.value)


async def test_the_app_that_servers_ask_for_by_name_is_the_control_plane() -> None:
    from api.app import app

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/api/agent-status")).json()["code"] == "invalid_field"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_no_page_of_ours_runs_scripts_of_other_hosts(path: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app()), base_url="http://localhost") as client:
        assert (await client.get(path)).status_code == 404
        assert (await client.get("/openapi.json")).status_code == 200

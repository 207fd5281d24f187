"""The gate: the bearer that every route but /health asks for, and a host that has none to ask for."""

import itertools
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from agent.ports import Agent
from api.config import ApiSettings
from api.door import create_app
from api.gate import Keys, refusal
from livery.client import Client, Exposed, ProblemError
from tests.api.problems import problem

SECRET = "the-secret-of-this-plane"
CRON = "the-secret-of-the-crons"
BEARER = {"authorization": f"Bearer {SECRET}"}
START = {"goal": "x", "budgetTotal": 5}
ROUTES = [
    ("POST", "/agent-start"),
    ("POST", "/agent-tick"),
    ("GET", "/agent-status"),
    ("GET", "/agent-runs"),
    ("POST", "/agent-cancel"),
    ("GET", "/agent-sweep"),
    ("POST", "/agent-sweep"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing-here"),
    ("DELETE", "/agent-runs"),
    ("GET", "/health/"),
    ("GET", "/api/health"),
]


def plane(agent: Agent, name: str = "https://plane.example", **settings: object) -> httpx.AsyncClient:
    """Return a client of a control plane with `settings`, called by a name of the world."""
    app = create_app(lambda: agent, settings=ApiSettings.model_validate(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=name)


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_secret_nothing_is_told_not_even_what_there_is(
    agent: Agent, method: str, path: str, prefix: str
) -> None:
    if (prefix, path) == ("", "/api/health"):
        prefix = "/api"  # /health itself is open under both names, and under no third
    async with plane(agent, secret=SecretStr(SECRET)) as door:
        refused = await door.request(method, prefix + path)
        problem(refused, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("wrong", SECRET + "x", SECRET[:-1], SECRET.upper(), CRON, "\N{BLACK HEART SUIT}".encode()):
            value = wrong if isinstance(wrong, bytes) else wrong.encode()
            problem(
                await door.request(method, prefix + path, headers={"authorization": b"Bearer " + value}), "forbidden"
            )
        assert (await door.get("/api/agent-runs", headers=BEARER)).json() == {"runs": []}


@pytest.mark.parametrize("path", ["/health", "/api/health"])
async def test_health_is_open(agent: Agent, path: str) -> None:
    async with plane(agent, secret=SecretStr(SECRET)) as door:
        assert (await door.get(path)).json()["status"] == "ok"


@pytest.mark.parametrize("value", [SECRET, f"Basic {SECRET}", f"Bearer{SECRET}", "Bearer", "Bearer ", ""])
async def test_what_is_not_a_bearer_is_refused(agent: Agent, value: str) -> None:
    async with plane(agent, secret=SecretStr(SECRET)) as door:
        assert (await door.get("/agent-runs", headers={"authorization": value})).status_code in (401, 403)
        sent = httpx.Headers([("authorization", value), ("authorization", f"Bearer {SECRET}")])
        problem(await door.get("/agent-runs", headers=sent), "unauthorized")


async def test_a_body_is_not_read_before_the_bearer_is(agent: Agent) -> None:
    app = create_app(lambda: agent, settings=ApiSettings.model_validate({"secret": SecretStr(SECRET)}))
    scope = {"type": "http", "method": "POST", "path": "/agent-start", "headers": [], "query_string": b""}
    sent = []

    async def receive() -> dict[str, object]:
        raise AssertionError("the body was asked for")

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_with_the_secret_all_is_as_before_under_any_name_and_from_any_client(agent: Agent) -> None:
    transport = httpx.ASGITransport(create_app(lambda: agent, settings=ApiSettings(secret=SecretStr(SECRET))))
    async with Client("https://plane.example", secret=SECRET, transport=transport) as client:
        run = await client.start("x", 5)
        assert [one.id for one in (await client.runs()).runs] == [run.id]
    async with Client("https://plane.example", transport=transport) as client:
        with pytest.raises(ProblemError, match="asks for its secret"):
            await client.runs()
        assert (await client.health()).status == "ok"


@pytest.mark.parametrize("url", ["http://plane.example", "http://127.0.0.1.plane.example", "http://192.168.0.7:3000"])
def test_the_client_sends_no_secret_in_the_open(url: str) -> None:
    with pytest.raises(Exposed, match="over https") as refused:
        Client(url, secret=SECRET)
    assert SECRET not in str(refused.value)
    for near in (url.replace("http:", "https:"), "http://localhost:3000", "http://127.0.0.1", "http://[::1]:3000"):
        assert Client(near, secret=SECRET).url == near
    assert Client(url).url == url


@pytest.mark.parametrize("host", [{"vercel": True}, {"lambda_function": "plane"}], ids=lambda host: next(iter(host)))
@pytest.mark.parametrize(("method", "path"), [*ROUTES[:-1], ("POST", "/vendor-callback")])
async def test_a_host_without_a_secret_answers_nothing_but_health(
    agent: Agent, host: dict[str, object], method: str, path: str
) -> None:
    async with plane(agent, **host, cron_secret=SecretStr(CRON)) as door:
        assert (await door.get("/health")).status_code == 200
        for headers in ({}, BEARER, {"authorization": f"Bearer {CRON}"}, {"authorization": "Bearer "}):
            problem(await door.request(method, path, headers=headers), "no_api_secret")
    async with plane(agent, **host, secret=SecretStr(SECRET)) as door:
        assert (await door.get("/agent-runs", headers=BEARER)).status_code == 200


def test_hosts_say_of_themselves_that_they_are_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ApiSettings().on_host
    for name, value in (("VERCEL", "1"), ("AWS_LAMBDA_FUNCTION_NAME", "plane")):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            assert ApiSettings().on_host


@pytest.mark.parametrize("secret", ["two words", "umläut", "tab\t", "line\n"])
def test_a_secret_that_no_header_carries_is_told_at_once(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("LIVERY_API_SECRET", secret)
    with pytest.raises(ValidationError, match="visible ASCII") as refused:
        create_app()
    assert secret not in str(refused.value)


async def test_the_sweep_takes_the_crons_secret_too_and_nothing_else_does(agent: Agent) -> None:
    cron = {"authorization": f"Bearer {CRON}"}
    async with plane(agent, secret=SecretStr(SECRET), cron_secret=SecretStr(CRON)) as door:
        for method, headers in itertools.product(("GET", "POST"), (cron, BEARER)):
            assert (await door.request(method, "/api/agent-sweep", headers=headers)).json() == {
                "swept": [],
                "more": False,
            }
        problem(await door.get("/agent-runs", headers=cron), "forbidden")
        problem(await door.get("/api/agent-sweep"), "unauthorized")


async def test_without_any_secret_only_a_post_from_this_machine_sweeps(agent: Agent) -> None:
    async with plane(agent, "http://127.0.0.1:3000") as door:
        assert (await door.post("/agent-sweep")).status_code == 200
        # An <img> of any page could send it.
        for path in ("/agent-sweep", "/api/agent-sweep"):
            problem(await door.get(path), "no_api_secret")
        problem(await door.get("/agent-sweep", headers=BEARER), "no_api_secret")
    async with plane(agent) as door:
        problem(await door.post("/agent-sweep"), "unknown_host")
    async with plane(agent, "http://127.0.0.1:3000", cron_secret=SecretStr(CRON)) as door:
        problem(await door.post("/agent-sweep"), "unauthorized")
        assert (await door.get("/agent-sweep", headers={"authorization": f"Bearer {CRON}"})).status_code == 200


FAR = [
    ({"client": ("203.0.113.7", 1)}, {}),
    ({"client": ("2001:db8::7", 1)}, {}),
    ({"server": ("192.168.0.7", 3000)}, {}),
    # It has hung up before anybody looked who it was.
    ({"client": None, "server": ("192.168.0.7", 3000)}, {}),
    ({}, {"x-forwarded-for": "127.0.0.1"}),
    ({}, {"X-Forwarded-Host": "localhost"}),
    ({}, {"forwarded": "for=127.0.0.1"}),
    ({}, {"via": "1.1 proxy"}),
]


def from_afar(agent: Agent, addresses: dict[str, object], **settings: object) -> httpx.AsyncClient:
    """Return a client that calls the control plane localhost, whoever it is and wherever the server is bound."""
    app = create_app(lambda: agent, settings=ApiSettings.model_validate(settings))

    async def as_a_server_calls(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, **addresses}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(as_a_server_calls), base_url="http://localhost")


@pytest.mark.parametrize(("addresses", "headers"), FAR, ids=str)
async def test_without_a_secret_who_is_not_of_this_machine_is_refused_whatever_name_it_gives(
    agent: Agent, addresses: dict[str, object], headers: dict[str, str]
) -> None:
    async with from_afar(agent, addresses) as door:
        for method, path in (*ROUTES[:-1], ("POST", "/vendor-callback"), ("POST", "/api/agent-start")):
            problem(await door.request(method, path, headers=headers), "no_api_secret")
        assert (await door.get("/health", headers=headers)).status_code == 200
    async with from_afar(agent, addresses, secret=SecretStr(SECRET)) as door:
        assert (await door.get("/agent-runs", headers=headers | BEARER)).status_code == 200


@pytest.mark.parametrize(
    "addresses",
    [
        {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 3000)},
        {"client": ("::1", 1), "server": ("::1", 3000)},
        {"client": None, "server": ("/run/plane.sock", None)},
        {"client": None, "server": None},
    ],
    ids=str,
)
async def test_without_a_secret_programs_of_this_machine_are_answered(
    agent: Agent, addresses: dict[str, object]
) -> None:
    async with from_afar(agent, addresses) as door:
        assert (await door.get("/agent-runs")).json() == {"runs": []}


async def test_below_a_path_the_gate_looks_at_what_the_router_looks_at(agent: Agent) -> None:
    async with from_afar(agent, {"root_path": "/x"}) as door:
        problem(await door.get("/x/agent-sweep"), "no_api_secret")
        assert (await door.post("/x/agent-sweep")).status_code == 200
    async with from_afar(agent, {"root_path": "/x"}, secret=SecretStr(SECRET), cron_secret=SecretStr(CRON)) as door:
        assert (await door.get("/x/health")).status_code == 200
        assert (await door.get("/x/api/agent-sweep", headers={"authorization": f"Bearer {CRON}"})).status_code == 200
        problem(await door.get("/x/agent-runs"), "unauthorized")


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        ({"LIVERY_AGENT_CALLBACK_URL": "https://plane.example/x"}, True),
        ({"LIVERY_AGENT_CALLBACK_URL": "http://127.0.0.1:3000"}, False),
        ({"LIVERY_AGENT_CALLBACK_URL": "https://plane.example", "LIVERY_API_SECRET": SECRET}, False),
        ({}, False),
    ],
    ids=str,
)
def test_calls_of_vendors_that_would_be_refused_are_told_when_the_app_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: dict[str, str], warned: bool
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    create_app()
    calls = [line for line in caplog.messages if "vendors cannot call" in line]
    assert len(calls) == warned
    assert all("plane.example" in line and "LIVERY_API_SECRET" in line for line in calls)


def test_a_vendors_callback_proves_itself_by_its_signature() -> None:
    keys = Keys(secret=SecretStr(SECRET))
    for path in ("/vendor-callback", "/api/vendor-callback"):
        assert refusal(keys, "POST", path, (), is_near=False) is None
        assert refusal(keys, "GET", path, (), is_near=False) is not None
        assert refusal(Keys(on_host=True), "POST", path, (), is_near=True) is not None
        assert refusal(Keys(), "POST", path, (), is_near=False) is not None

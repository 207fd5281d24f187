"""What the OpenAPI document promises is what the door does, whatever it is sent, and whether or not it has a secret."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import SecretStr
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from agent.config import AgentSettings
from agent.wiring import open_agent
from api.config import ApiSettings
from api.door import create_app
from tests.api.conftest import KEY
from wire.problems import PROBLEMS

OPERATIONS = [
    ("POST", "/api/agent-start"),
    ("POST", "/api/agent-tick"),
    ("GET", "/api/agent-status"),
    ("GET", "/api/agent-runs"),
    ("POST", "/api/agent-cancel"),
    ("GET", "/api/agent-sweep"),
    ("POST", "/api/agent-sweep"),
    ("GET", "/api/agent-artifact"),
    ("PUT", "/api/agent-files/{run_id}/{job_id}/{name}"),
    ("GET", "/api/agent-files/{run_id}/{job_id}/{name}"),
    ("GET", "/api/agent-files/{run_id}/{job_id}/inputs/{sha256}"),
    ("PUT", "/api/agent-input"),
    ("GET", "/api/agent-events"),
    ("POST", "/api/vendor-callback"),
    ("GET", "/api/health"),
]
SECRET = "the-secret-of-this-plane"
BEARER = {"authorization": f"Bearer {SECRET}"}


def schema_of(folder: Path, secret: str | None) -> BaseSchema:
    agent_settings = AgentSettings.model_validate(
        {
            "database_url": SecretStr(f"sqlite:///{folder}/agent.db"),
            "private_key": SecretStr(KEY),
            "artifact_url": SecretStr(f"{folder}/artifacts"),
        }
    )
    api_settings = ApiSettings(secret=SecretStr(secret) if secret else None)
    app = create_app(lambda: open_agent(agent_settings), hosts=("testserver",), settings=api_settings)

    async def as_a_server_calls(scope: Any, receive: Any, send: Any) -> None:
        # The test client gives a name where servers give the caller's address.
        await app({**scope, "client": ("127.0.0.1", 1)}, receive, send)

    return schemathesis.openapi.from_asgi("/openapi.json", as_a_server_calls, headers=BEARER)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    return schema_of(tmp_path_factory.mktemp("open"), None)


@pytest.fixture(scope="module")
def locked_schema(tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    """The document of a door that asks for a secret."""
    return schema_of(tmp_path_factory.mktemp("locked"), SECRET)


def test_the_document_names_every_route_once(schema: BaseSchema, locked_schema: BaseSchema) -> None:
    for one in (schema, locked_schema):
        named = {(method.upper(), path) for path, methods in one.raw_schema["paths"].items() for method in methods}
        assert named == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_gets_an_undeclared_answer(schema: BaseSchema, method: str, path: str, mode: GenerationMode) -> None:
    if mode in operation_modes(path):
        ask(schema, method, path, mode, {}, examples=20)


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, BEARER], ids=["none", "wrong", "right"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_to_a_locked_door_gets_an_undeclared_answer(
    locked_schema: BaseSchema, method: str, path: str, headers: dict[str, str]
) -> None:
    ask(locked_schema, method, path, GenerationMode.POSITIVE, headers, examples=5)


def ask(
    schema: BaseSchema, method: str, path: str, mode: GenerationMode, headers: dict[str, str], *, examples: int
) -> None:
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Case) -> None:
        response = case.call(headers=headers)
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"], response.text
            assert PROBLEMS[response.json()["code"]].status == response.status_code
        declared = [status_code_conformance, response_schema_conformance]
        case.validate_response(
            response, checks=declared if response.status_code == 503 else [not_a_server_error, *declared]
        )

    holds()


def operation_modes(path: str) -> tuple[GenerationMode, ...]:
    """Return what can be generated: a route without parameters cannot be asked wrongly."""
    return (GenerationMode.POSITIVE,) if path == "/api/health" else tuple(GenerationMode)

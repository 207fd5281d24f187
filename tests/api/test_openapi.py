"""What the OpenAPI document promises is what the door does, whatever it is sent."""

from pathlib import Path

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
from api.door import create_app
from tests.api.conftest import KEY
from wire.problems import PROBLEMS

OPERATIONS = {
    "/api/agent-start": "POST",
    "/api/agent-tick": "POST",
    "/api/agent-status": "GET",
    "/api/agent-runs": "GET",
    "/api/agent-cancel": "POST",
    "/api/health": "GET",
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    agent_settings = AgentSettings.model_validate(
        {"database_url": SecretStr(f"sqlite:///{folder}/agent.db"), "private_key": SecretStr(KEY)}
    )
    return schemathesis.openapi.from_asgi(
        "/openapi.json", create_app(lambda: open_agent(agent_settings), hosts=("testserver",))
    )


def test_the_document_names_every_route_once(schema: BaseSchema) -> None:
    raw = schema.raw_schema
    assert {path: method.upper() for path, methods in raw["paths"].items() for method in methods} == OPERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", OPERATIONS)
def test_no_request_gets_an_undeclared_answer(schema: BaseSchema, path: str, mode: GenerationMode) -> None:
    operation = schema[path][OPERATIONS[path]]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Case) -> None:
        response = case.call()
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"], response.text
            assert PROBLEMS[response.json()["code"]].status == response.status_code
        declared = [status_code_conformance, response_schema_conformance]
        case.validate_response(
            response, checks=declared if response.status_code == 503 else [not_a_server_error, *declared]
        )

    if mode in operation_modes(path):
        holds()


def operation_modes(path: str) -> tuple[GenerationMode, ...]:
    """Return what can be generated: a route without parameters cannot be asked wrongly."""
    return (GenerationMode.POSITIVE,) if path == "/api/health" else tuple(GenerationMode)

"""Vercel: exactly one function is published, and the runtime that Vercel puts around it serves every route."""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.config import ApiSettings
from api.door import create_app
from tests.house.tree import ROOT, tracked_files

pytestmark = pytest.mark.slow

EXCLUDE_CHARS_MAX = 256
NAMES = {"app", "application", "handler"}
SECRET, CRON = "the-secret-of-this-plane", "the-secret-of-the-crons"
FRAMEWORKS = {"fastapi", "flask", "django", "python"}


def written() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "vercel.json").read_text())
    return document


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def top_level(path: Path) -> set[str]:
    """Return what `path` defines at its top, as far as its text tells: nothing is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def published(framework: str | None) -> list[str]:
    """Return the functions that `vercel build` makes of the checkout: one of a framework, else one of each file."""
    if framework in FRAMEWORKS:
        module, _, variable = project()["tool"]["vercel"]["entrypoint"].partition(":")
        assert variable in top_level(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
        return [framework]
    return [
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in sorted((ROOT / "api").rglob("*.py"))
        if top_level(path) & NAMES
    ]


def test_exactly_one_function_is_published() -> None:
    assert published(written()["framework"]) == ["fastapi"]
    # Without that one word there would be a function of each file that has an app or a handler, and no other route.
    assert published(None) == ["api/app", "api/aws"]


def test_no_other_file_would_be_taken_for_the_app() -> None:
    stray = [
        f"{folder}{name}.py"
        for folder in ("", "src/", "app/")
        for name in ("app", "index", "server", "main", "wsgi", "asgi")
        if (ROOT / f"{folder}{name}.py").exists()
    ]
    assert stray == []
    assert (ROOT / "api/__init__.py").read_text() == ""


def test_the_functions_settings_are_those_of_the_entry_point() -> None:
    module, _, _ = project()["tool"]["vercel"]["entrypoint"].partition(":")
    # A key that is no entry point is passed over without a word.
    assert list(written()["functions"]) == [f"{module.replace('.', '/')}.py"]
    (function,) = written()["functions"].values()
    assert len(function["excludeFiles"]) <= EXCLUDE_CHARS_MAX
    assert all((ROOT / folder).is_dir() for folder in excluded())
    assert function["maxDuration"] == ApiSettings.model_fields["vercel_request_s"].default
    assert "builds" not in written()


def excluded() -> list[str]:
    (function,) = written()["functions"].values()
    found = re.fullmatch(r"\{([\w,]+)\}/\*\*", function["excludeFiles"])
    assert found is not None
    return found[1].split(",")


def test_the_cron_calls_a_route_by_get() -> None:
    (cron,) = written()["crons"]
    assert "get" in create_app().openapi()["paths"][cron["path"]]


def test_uv_installs_what_is_asked_for_and_no_second_copy_of_the_house() -> None:
    assert project()["tool"]["uv"]["package"] is False
    asked = {re.split(r"[\[>=<]", one)[0] for one in project()["project"]["dependencies"]}
    # Extras are never installed there.
    assert {"fastapi", "httpx", "pymongo", "pydantic-settings"} <= asked


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, method: str, path: str, secret: str | None = SECRET, **more: Any) -> httpx.Response:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        # As the edge calls it: under the deployment's name.
        return httpx.request(
            method,
            self.url + path,
            headers={**headers, "host": "plane.vercel.app"},
            timeout=60,
            trust_env=False,
            **more,
        )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what is uploaded and not left out."""
    folder = tmp_path_factory.mktemp("bundle")
    for path in tracked_files():
        place = path.relative_to(ROOT)
        if place.parts[0] not in excluded():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / place)
    return folder


@pytest.fixture
def served(bundle: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    log = tmp_path / "log"
    told = {"VERCEL": "1", "DATABASE_URL": f"sqlite:///{tmp_path}/livery.db", "HOME": str(tmp_path), **request.param}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("vercel_runtime.py")), str(bundle), str(ROOT)],
            env=told,
            stdout=stream,
            stderr=stream,
        )
        try:
            deadline_s = time.monotonic() + 60
            while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            yield Served(found[0], process, log)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("served", [{"LIVERY_API_SECRET": SECRET, "CRON_SECRET": CRON}], indirect=True)
def test_the_runtime_serves_every_route_under_both_names_and_ends_cleanly(served: Served) -> None:
    asked = {"goal": "x", "budgetTotal": 5}
    for prefix in ("", "/api"):
        assert served.ask("GET", f"{prefix}/health", None).json()["status"] == "ok"
        run_id = served.ask("POST", f"{prefix}/agent-start", json=asked).json()["_id"]
        assert served.ask("POST", f"{prefix}/agent-tick", json={"runId": run_id}).json()["message"]
        assert served.ask("GET", f"{prefix}/agent-status", params={"runId": run_id}).json()["run"]["_id"] == run_id
        assert served.ask("GET", f"{prefix}/agent-runs").status_code == 200
        assert served.ask("POST", f"{prefix}/agent-cancel", json={"runId": run_id}).status_code == 200
    # The cancelled runs are due: Vercel's cron carries it out.
    swept = served.ask("GET", "/api/agent-sweep", CRON)
    assert swept.headers["cache-control"] == "no-store"
    assert [one["message"] for one in swept.json()["swept"]] == ["Run cancelled", "Run cancelled"]
    assert served.ask("GET", "/api/agent-runs", CRON).json()["code"] == "forbidden"
    assert served.ask("GET", "/api/agent-sweep", None).json()["code"] == "unauthorized"
    served.process.send_signal(signal.SIGTERM)
    # uvicorn ends by the signal that it was sent, once the application has shut down.
    assert served.process.wait(30) == -signal.SIGTERM
    assert "Application shutdown complete" in served.log.read_text()


@pytest.mark.parametrize("served", [{"CRON_SECRET": CRON}], indirect=True)
def test_a_deployment_without_a_secret_answers_nothing_but_health(served: Served) -> None:
    assert served.ask("GET", "/health", None).status_code == 200
    for method, path in (("GET", "/agent-runs"), ("POST", "/api/agent-start"), ("GET", "/openapi.json")):
        assert served.ask(method, path, None).json()["code"] == "no_api_secret"
    assert served.ask("GET", "/api/agent-sweep", CRON).json()["code"] == "no_api_secret"

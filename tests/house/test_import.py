"""What importing the control plane pulls in, and what it must not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

HEAVY = (
    "Crypto",
    "boto3",
    "coincurve",
    "eth_account",
    "eth_utils",
    "jinja2",
    "jwt",
    "limits",
    "mangum",
    "openai",
    "prometheus_client",
    "torch",
    "transformers",
    "web3",
    "x402",
    # FastAPI itself imports opentelemetry's API; the SDK is what costs.
    "opentelemetry.sdk",
)
_PROBE = "import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"


def modules_after(module: str, **environment: str) -> set[str]:
    kept = {name: value for name, value in os.environ.items() if "DATABASE" not in name and "MONGODB" not in name}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(module=module)],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_control_plane_imports_nothing_heavy_and_not_the_store_it_does_not_use(tmp_path: Path) -> None:
    loaded = modules_after("api.app", DATABASE_URL=f"sqlite:///{tmp_path}/livery.db")
    assert sorted(loaded & {*HEAVY, "pymongo", "motor", "uvicorn", "api.aws"}) == []
    assert "fastapi" in loaded


@pytest.mark.parametrize("module", ["wire.x402", "wire.vendor", "wire.control", "wire.eip712", "livery"])
def test_the_floor_needs_pydantic_and_orjson_alone(module: str) -> None:
    loaded = {name.partition(".")[0] for name in modules_after(module)}
    ours = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert loaded & ours <= {"wire", "livery"}
    assert not loaded & {*HEAVY, "asyncio", "fastapi", "httpx", "pymongo", "sqlite3", "structlog", "uvicorn"}

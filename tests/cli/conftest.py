"""A street of real processes (chain, facilitator, vendors), and `livery` as a user runs it."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chain.devchain import DevChain, dev_account
from cli import processes
from cli.app import app
from vendor_mock.config import VendorMockSettings
from wire.money import BASE_SEPOLIA_USDC

SECRET = "the-secret-of-every-vendor"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Livery:
    """`livery` with an environment of its own; `home` is where it keeps things."""

    home: Path
    variables: Mapping[str, str]

    def __call__(self, *arguments: str, typed: str = "", **more: str) -> Said:
        environment = {**self.variables, **more}
        root = logging.getLogger()
        handlers, level = root.handlers, root.level
        try:
            done = CliRunner().invoke(
                app, arguments, input=typed, env={name: value or None for name, value in environment.items()}
            )
        finally:
            # A command that serves sends all logs to its stderr, which is closed now.
            root.handlers = handlers
            root.setLevel(level)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Street:
    chain: DevChain
    vendors_url: str


@contextmanager
def open_street(folder: Path) -> Iterator[Street]:
    with DevChain.start(block_time_s=1) as chain, processes.Processes(folder) as children:
        chain.mint(dev_account(1).address, 1_000_000_000)
        key, network = dev_account(9).key, BASE_SEPOLIA_USDC.network
        paid_by = children.start(processes.facilitator, "facilitator", 0, chain.url, key, network)
        mock = VendorMockSettings.model_validate(
            {"secret": SECRET, "rpc_url": chain.url, "facilitator_url": paid_by, "database": folder / "vendors.db"}
        )
        sold_at = children.start(processes.vendors, "vendors", 0, mock, None)
        children.wait_until_ready(paid_by, sold_at)
        yield Street(chain, sold_at)


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    with open_street(tmp_path_factory.mktemp("street")) as street:
        yield street


@pytest.fixture
def livery(tmp_path: Path) -> Livery:
    """`livery` alone: an empty store, no wallet, nothing to talk to."""
    return Livery(
        tmp_path,
        {
            "HOME": str(tmp_path),
            "COLUMNS": "160",
            "DATABASE_URL": f"sqlite:///{tmp_path}/livery.db",
            "WEB3_PROVIDER_URL": "http://127.0.0.1:9",
            "LIVERY_URL": "http://127.0.0.1:9",
            "PLANNER_MODE": "stub",
        },
    )


@pytest.fixture
def buyer(livery: Livery, street: Street) -> Livery:
    """`livery` with a wallet, and the street's vendors registered."""
    more = {
        "WEB3_PROVIDER_URL": street.chain.url,
        "X402_PRIVATE_KEY": dev_account(1).key,
        "GPU_VENDOR_SECRET": SECRET,
        "LIVERY_AGENT_POLL_INTERVAL_S": "1",
    }
    ready = Livery(livery.home, {**livery.variables, **more})
    seeded = ready("vendors", "seed", "--endpoint", street.vendors_url)
    assert seeded.code == 0, seeded.err
    return ready

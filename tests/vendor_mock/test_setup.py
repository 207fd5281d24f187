"""Settings, the catalogue, and the server as a process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from chain.devchain import dev_account
from vendor_mock.app import create_app
from vendor_mock.catalogue import DEFAULT_PLANS, FIRST_DEV_ACCOUNT, SetupError, VendorPlan, open_catalogue
from vendor_mock.config import VendorMockSettings
from vendor_mock.simulation import fate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def _settings(**fields) -> VendorMockSettings:
    return VendorMockSettings(**{"secret": "s", **fields})


def test_there_is_no_default_secret():
    with pytest.raises(ValidationError, match="SECRET"):
        VendorMockSettings()


@pytest.mark.parametrize(
    ("ours", "alias", "field", "value", "expected"),
    [
        ("SECRET", "GPU_VENDOR_SECRET", "secret", "ours", "ours"),
        ("BASE_PRICE_PER_HOUR", "BASE_PRICE_PER_HOUR", "base_price_per_hour", "1.5", Decimal("1.5")),
        ("FAIL_VENDOR_ID", "FAIL_VENDOR_ID", "fail_vendor_id", "gpu_vendor_2", "gpu_vendor_2"),
        ("FAIL_RATE", "FAIL_RATE", "fail_rate", "0.5", 0.5),
        ("EPOCH_SECONDS", "EPOCH_SECONDS", "epoch_seconds", "2.5", Decimal("2.5")),
        ("PORT", "PORT", "port", "4100", 4100),
    ],
)
def test_a_name_of_ours_wins_over_its_alias(monkeypatch, ours, alias, field, value, expected):
    def read() -> object:
        found = getattr(VendorMockSettings(), field)
        return found.get_secret_value() if field == "secret" else found

    monkeypatch.setenv("GPU_VENDOR_SECRET", "s")
    monkeypatch.setenv(alias, value)
    assert read() == expected
    monkeypatch.setenv(alias, "4" if field != "fail_rate" else "0.25")
    assert read() != expected
    monkeypatch.setenv(f"LIVERY_VENDOR_MOCK_{ours}", value)
    assert read() == expected


def test_the_defaults_are_those_of_the_design():
    settings = _settings()
    assert (settings.port, settings.port_is_chosen, settings.host) == (4001, False, "127.0.0.1")
    assert (settings.fail_rate, settings.base_price_per_hour) == (0, Decimal("1.4"))
    assert (settings.facilitator_url, settings.rpc_url) == ("http://127.0.0.1:4021", "http://localhost:8545")
    assert settings.database_path() == Path.home() / ".local" / "share" / "livery" / "vendor-mock.db"
    assert _settings(data_home=Path("/data")).database_path() == Path("/data/livery/vendor-mock.db")
    assert _settings(database=Path("/here.db")).database_path() == Path("/here.db")
    assert _settings(port=4001).port_is_chosen


@pytest.mark.row(39)
def test_the_base_price_is_that_of_vendors_without_their_own():
    vendors = open_catalogue(_settings(base_price_per_hour=Decimal("3.5")))

    assert [vendor.per_hour_atomic for vendor in vendors.values()] == [3_500_000, 1_800_000, 2_200_000]


def test_by_default_vendors_are_paid_at_test_accounts_of_their_own():
    addresses = [vendor.pay_to for vendor in open_catalogue(_settings()).values()]

    assert addresses == [dev_account(FIRST_DEV_ACCOUNT + index).address for index in range(3)]


def test_keys_of_the_owners_replace_the_test_accounts():
    keys = ",".join(f"gpu_vendor_{number}={dev_account(number - 1).key}" for number in (1, 2, 3))

    assert open_catalogue(_settings(keys=keys))["gpu_vendor_2"].pay_to == dev_account(1).address


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"secret": "gpu_vendor_1=a,gpu_vendor_2=b"}, "no secret for gpu_vendor_3: add `gpu_vendor_3=<secret>`"),
        ({"keys": "gpu_vendor_1=0x12"}, "no readable key for gpu_vendor_1"),
        ({"base_price_per_hour": Decimal("1.1234567")}, "the price of gpu_vendor_1: USDC has 6 decimals"),
    ],
)
def test_vendors_that_cannot_be_set_up_say_why(fields, said):
    with pytest.raises(SetupError, match=said):
        open_catalogue(_settings(**fields))


def test_a_fourth_vendor_needs_a_key():
    plans = (*DEFAULT_PLANS, VendorPlan(vendor_id="four", name="Four"))
    with pytest.raises(SetupError, match="no readable key for four"):
        open_catalogue(_settings(), plans)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "at least one vendor"),
        ('[{"vendorId": "a", "name": "A"}, {"vendorId": "a", "name": "B"}]', "none twice"),
        ('[{"vendorId": "a"}]', "0.name: Field required"),
        ('[{"vendorId": "a", "name": "A", "pricePerHour": 0}]', "0.pricePerHour"),
        ('[{"vendorId": "a", "name": "A", "reliability": 1.01}]', "0.reliability"),
        ('[{"vendorId": "a", "name": "A", "faults": {"failAtEpoch": 4}}]', "failAtEpoch"),
    ],
)
def test_a_vendors_file_that_cannot_be_used_says_why(tmp_path, text, said):
    path = tmp_path / "vendors.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SetupError, match=said):
        open_catalogue(_settings(vendors_file=path))


def test_a_vendors_file_replaces_the_three(tmp_path):
    path = tmp_path / "vendors.json"
    entry = {
        "vendorId": "mine",
        "name": "Mine",
        "pricePerHour": 0.5,
        "reliability": 0.75,
        "gpus": [{"gpuType": "H100", "vramGb": 80, "count": 2}],
        "faults": {"errors": 1, "priceFactor": 1.1, "routes": ["/quote"]},
    }
    path.write_text(json.dumps([entry]))

    (vendor,) = open_catalogue(_settings(vendors_file=path)).values()

    assert (vendor.per_hour_atomic, vendor.gpus[0].count, vendor.faults.price_factor) == (500_000, 2, Decimal("1.1"))
    assert vendor.faults.routes == ("/quote",)
    assert vendor.fail_rate == Decimal("0.25")
    (chosen,) = open_catalogue(_settings(vendors_file=path, fail_rate=0.1)).values()
    assert chosen.fail_rate == Decimal("0.1")
    assert {vendor.fail_rate for vendor in open_catalogue(_settings()).values()} == {0}


@pytest.mark.row(42)
def test_the_failures_of_a_seed_repeat():
    def fates(seed: int | None) -> list[int | None]:
        return [fate("gpu_vendor_1", number, Decimal("0.5"), seed) for number in range(40)]

    assert fates(7) == fates(7)
    assert fates(7) != fates(8)
    assert set(fates(7)) == {None, 3}
    assert {fate("v", number, Decimal(0), None) for number in range(100)} == {None}
    assert {fate("v", number, Decimal(1), None) for number in range(100)} == {3}


def test_the_published_description_is_the_one_the_app_gives():
    app = create_app(_settings())
    published = json.loads((ROOT / "docs" / "vendor-openapi.json").read_text())

    assert published == app.openapi(), "write it again: python -m vendor_mock.describe > docs/vendor-openapi.json"


def _start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return subprocess.Popen(
        [sys.executable, "-c", "from cli.app import main; main()", "vendor-mock", *arguments],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(ROOT), "LIVERY_VENDOR_MOCK_DATABASE": str(tmp_path / "v.db"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.row(39)
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "GPU_VENDOR_SECRET is not set"),
        ({"GPU_VENDOR_SECRET": "s", "FAIL_RATE": "2"}, "less than or equal to 1"),
        ({"GPU_VENDOR_SECRET": "s", "LIVERY_VENDOR_MOCK_VENDORS_FILE": "nowhere.json"}, "cannot be read"),
    ],
)
def test_without_a_secret_or_with_a_wrong_setting_the_server_does_not_start(tmp_path, environment, said):
    process = _start(tmp_path, **environment)
    _, complaint = process.communicate(timeout=30)

    assert process.returncode != 0
    assert said in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_serves_until_a_signal_and_exits_0(tmp_path, number):
    process = _start(tmp_path, GPU_VENDOR_SECRET="s", PORT="0")
    try:
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
        deadline_s = time.monotonic() + 20
        while True:
            try:
                assert httpx.get(f"{url}/health").json()["status"] == "ok"
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline_s
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()

"""Every variable of the x402 renter and its mock vendor: read where it belonged, with its default, in one order."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings

from agent.config import AgentSettings
from api.config import ApiSettings
from vendor_mock.config import VendorMockSettings

Renter = tuple[str, type[BaseSettings], str, str, Any, Any]

# The variable, whose it is, the setting it becomes, a value, that value as it is read, and what it is unset.
# Addresses and ports of the local defaults are Livery's own.
VARIABLES: list[Renter] = [
    ("MONGODB_URI", AgentSettings, "database_url", "mongodb://h/", "mongodb://h/", "sqlite:///~/.livery/livery.db"),
    ("MONGODB_DB_NAME", AgentSettings, "database_name", "renter", "renter", "livery"),
    ("FIREWORKS_API_KEY", AgentSettings, "llm_api_key", "fw", "fw", None),
    (
        "FIREWORKS_MODEL",
        AgentSettings,
        "llm_model",
        "tiny",
        "tiny",
        "accounts/fireworks/models/llama-v3-8b-instruct",
    ),
    ("X402_WALLET_ID", AgentSettings, "wallet_id", "payer", "payer", None),
    ("X402_PRIVATE_KEY", AgentSettings, "private_key", "0x1", "0x1", None),
    ("GPU_VENDOR_SECRET", AgentSettings, "vendor_secrets", "s", "s", ""),
    ("CDP_API_KEY_ID", AgentSettings, "cdp_api_key_id", "id", "id", None),
    ("CDP_KEY", AgentSettings, "cdp_api_key_id", "id", "id", None),
    ("CDP_API_KEY_SECRET", AgentSettings, "cdp_api_key_secret", "s", "s", None),
    ("CDP_SECRET", AgentSettings, "cdp_api_key_secret", "s", "s", None),
    ("CDP_WALLET_SECRET", AgentSettings, "cdp_wallet_secret", "s", "s", None),
    ("PLANNER_MODE", AgentSettings, "planner_mode", "stub", "stub", None),
    ("PORT", ApiSettings, "port", "3100", 3100, 3000),
    ("GPU_VENDOR_SECRET", VendorMockSettings, "secret", "s", "s", "the mock's"),
    ("BASE_PRICE_PER_HOUR", VendorMockSettings, "base_price_per_hour", "2.5", Decimal("2.5"), Decimal("1.4")),
    ("FAIL_VENDOR_ID", VendorMockSettings, "fail_vendor_id", "gpu_vendor_2", "gpu_vendor_2", None),
    ("FAIL_RATE", VendorMockSettings, "fail_rate", "0.5", 0.5, 0.0),
    ("PORT", VendorMockSettings, "port", "4100", 4100, 4001),
]
# Another value than the table's that the setting takes, where "1" is none.
OTHER = {"database_url": "sqlite:///other.db", "planner_mode": "bandit"}
IDS = [f"{owner.__name__}-{name}" for name, owner, *_ in VARIABLES]


def read(owner: type[BaseSettings], field: str, file: Path | None = None) -> Any:
    # Without its secret the mock vendor does not start; that it has none by default is shown below.
    more = {"secret": "the mock's"} if owner is VendorMockSettings and file is None else {}
    found = getattr(owner(_env_file=file, **more), field)
    return found.get_secret_value() if isinstance(found, SecretStr) else found


@pytest.mark.row(150)
@pytest.mark.parametrize(("name", "owner", "field", "value", "read_as", "default"), VARIABLES, ids=IDS)
def test_a_variable_of_the_renter_is_read_and_has_its_default(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    owner: type[BaseSettings],
    field: str,
    value: str,
    read_as: Any,
    default: Any,
) -> None:
    assert read(owner, field) == default
    file = tmp_path / "settings.env"
    file.write_text(f"GPU_VENDOR_SECRET=the mock's\n{name}={value}\n")
    assert read(owner, field, file) == read_as
    # The environment wins over a file, our own name over the alias.
    aliases = owner.model_fields[field].validation_alias
    assert isinstance(aliases, AliasChoices)
    ours = str(aliases.choices[0])
    assert ours.startswith("LIVERY_")
    file.write_text(f"GPU_VENDOR_SECRET=the mock's\n{name}={OTHER.get(field, '1')}\n")
    monkeypatch.setenv(name, value)
    assert read(owner, field, file) == read_as
    monkeypatch.setenv(name, OTHER.get(field, "1"))
    monkeypatch.setenv(ours, value)
    assert read(owner, field, file) == read_as

"""What the agent reads from the environment: names, their order, bounds, and what may never be shown."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import AliasChoices, SecretStr, ValidationError

from agent.config import AgentSettings
from wire.model import first_error

FIELDS = AgentSettings.model_fields


def names_of(field: str) -> list[str]:
    aliases = FIELDS[field].validation_alias
    assert isinstance(aliases, AliasChoices)
    return [str(name) for name in aliases.choices]


def read() -> AgentSettings:
    return AgentSettings(_env_file=None)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_setting_says_in_a_sentence_what_it_is(field: str) -> None:
    description = FIELDS[field].description
    assert description
    assert description.endswith(".")
    assert description[0].isupper() or description[0].isdigit()


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_our_own_name_comes_first_and_is_the_fields(field: str) -> None:
    assert names_of(field)[0] == f"LIVERY_AGENT_{field.upper()}"


@pytest.mark.parametrize(
    ("field", "aliases"),
    [
        ("database_url", ["DATABASE_URL", "MONGODB_URI"]),
        ("database_name", ["MONGODB_DB_NAME"]),
        ("private_key", ["X402_PRIVATE_KEY"]),
        ("rpc_url", ["WEB3_PROVIDER_URL", "WEB3_PROVIDER_URI"]),
        ("vendor_secrets", ["GPU_VENDOR_SECRET"]),
        ("planner_mode", ["PLANNER_MODE"]),
        ("artifact_url", ["ARTIFACT_URL"]),
        ("llm_api_key", ["FIREWORKS_API_KEY"]),
        ("llm_model", ["FIREWORKS_MODEL"]),
        ("cdp_api_key_id", ["CDP_API_KEY_ID", "CDP_KEY"]),
        ("cdp_api_key_secret", ["CDP_API_KEY_SECRET", "CDP_SECRET"]),
        ("cdp_wallet_secret", ["CDP_WALLET_SECRET"]),
        ("wallet_id", ["X402_WALLET_ID"]),
    ],
)
def test_older_names_are_accepted_in_their_order(
    monkeypatch: pytest.MonkeyPatch, field: str, aliases: list[str]
) -> None:
    names = names_of(field)
    assert names[1:] == aliases
    form = {"planner_mode": "stub", "database_url": "sqlite:///value-of-{}"}.get(field, "value-of-{}")
    values = [form.format(name) for name in names]
    for name, value in reversed(list(zip(names, values, strict=True))):
        monkeypatch.setenv(name, value)
        found = getattr(read(), field)
        assert (found.get_secret_value() if isinstance(found, SecretStr) else found) == value


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVERY_AGENT_DATABASE_URL", "")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///other.db")
    assert read().database_url.get_secret_value() == "sqlite:///other.db"


def test_the_environment_wins_over_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.env"
    file.write_text("WEB3_PROVIDER_URL=http://file:1\nLIVERY_AGENT_LEASE_S=7\nUNKNOWN=1\n")
    monkeypatch.setenv("LIVERY_AGENT_LEASE_S", "8")
    settings = AgentSettings(_env_file=file)
    assert (settings.rpc_url, settings.lease_s) == ("http://file:1", 8)


def test_nothing_set_is_the_local_chain_no_planner_and_no_key() -> None:
    settings = read()
    assert settings.database_url.get_secret_value() == "sqlite:///~/.livery/livery.db"
    assert (settings.network, settings.rpc_url) == ("base-sepolia", "http://localhost:8545")
    assert (settings.planner_mode, settings.database_name) == (None, "livery")
    assert (settings.private_key, settings.keystore_password) == (None, None)
    caps = (settings.payment_max, settings.run_max, settings.vendor_day_max, settings.wallet_day_max)
    assert caps == (Decimal(10), Decimal(100), Decimal(100), Decimal(200))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVERY_AGENT_NETWORK", "mainnet"),
        ("PLANNER_MODE", "oracle"),
        ("LIVERY_AGENT_PAYMENT_MAX", "0"),
        ("LIVERY_AGENT_RUN_MAX", "-1"),
        ("LIVERY_AGENT_WALLET_DAY_MAX", "NaN"),
        ("LIVERY_AGENT_VENDOR_DAY_MAX", "0"),
        ("LIVERY_AGENT_LEASE_S", "0"),
        ("LIVERY_AGENT_LEASE_S", "3601"),
        ("LIVERY_AGENT_POLL_INTERVAL_S", "0"),
        ("LIVERY_AGENT_ATTEMPTS_MAX", "0"),
        ("LIVERY_AGENT_ATTEMPTS_MAX", "1001"),
        ("LIVERY_AGENT_LLM_BASE_URL", "ftp://host/v1"),
        ("LIVERY_AGENT_LLM_BASE_URL", "https://me:hush@host/v1"),
        ("LIVERY_AGENT_LLM_TIMEOUT_S", "0"),
        ("LIVERY_AGENT_LLM_TIMEOUT_S", "61"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        read()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DATABASE_URL", "postgres://me:hush-hush@host/db", "mongodb:// or mongodb+srv://, not postgres"),
        ("DATABASE_URL", "sqlite:hush-hush", "begins with sqlite:///, mongodb:// or mongodb+srv://, not sqlite"),
        ("DATABASE_URL", "hush-hush:me@host", "begins with sqlite:///, mongodb:// or mongodb+srv://, not nothing"),
        ("DATABASE_URL", "http://[hush-hush", "begins with sqlite:///, mongodb:// or mongodb+srv://, not http"),
        ("DATABASE_URL", "sqlite:///", "ends after sqlite:///, it names no database"),
        ("ARTIFACT_URL", "s3://me:hush-hush@host/bucket", "a path, file:///path or mongodb://…, not s3://"),
        ("ARTIFACT_URL", "file://hush-hush/path", "a path, file:///path or mongodb://…, not file://"),
        ("LIVERY_AGENT_PAYMENT_MAX", "0.0000001", "USDC has 6 decimals"),
        ("LIVERY_AGENT_RUN_MAX", "1.1234567", "USDC has 6 decimals"),
        ("LIVERY_AGENT_VENDOR_DAY_MAX", "1000000001", "an amount is at most 1000000000 USDC"),
        ("LIVERY_AGENT_WALLET_DAY_MAX", "1e400", "an amount is at most 1000000000 USDC"),
        ("LIVERY_AGENT_NETWORK", "hush-hush", "Input should be 'base-sepolia' or 'base'"),
    ],
)
def test_what_cannot_work_is_told_when_it_is_read_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        read()
    assert refused.value.error_count() == 1
    assert told in first_error(refused.value)
    assert "hush-hush" not in f"{refused.value} {refused.value!r} {first_error(refused.value)}"


@pytest.mark.parametrize("cap", ["0.000001", "1000000000"])
def test_a_cap_may_be_the_least_and_the_largest_amount(monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    monkeypatch.setenv("LIVERY_AGENT_RUN_MAX", cap)
    assert read().run_max == Decimal(cap)


def test_settings_are_frozen_and_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mongodb://me:hush-hush@host")
    secrets = ("X402_PRIVATE_KEY", "LIVERY_AGENT_KEYSTORE_PASSWORD", "GPU_VENDOR_SECRET", "FIREWORKS_API_KEY")
    for name in (*secrets, "CDP_API_KEY_ID", "CDP_API_KEY_SECRET", "CDP_WALLET_SECRET"):
        monkeypatch.setenv(name, "hush-hush")
    settings = read()
    assert "hush-hush" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    with pytest.raises(ValidationError):
        settings.lease_s = 1

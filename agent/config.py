"""What the agent reads from the environment, and nothing else does for it."""

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator

from agent.core.evidence import POLLS_KEPT
from inbound.settings import Settings
from outbound.webhooks import are_keys
from wire.money import ASSETS, to_atomic

DATA_DIR = Path("~/.livery")
STORES = ("sqlite:///", "mongodb://", "mongodb+srv://")


def _env(*names: str) -> dict[str, Any]:
    return {"validation_alias": AliasChoices(*names)}


class AgentSettings(Settings):
    """The buyer: its store, its wallet, its chain, its planner, its caps. The first name of each wins."""

    database_url: SecretStr = Field(
        SecretStr("sqlite:///~/.livery/livery.db"),
        description="Where runs live: sqlite:///path or mongodb://host/?replicaSet=rs0.",
        **_env("LIVERY_AGENT_DATABASE_URL", "DATABASE_URL", "MONGODB_URI"),
    )
    database_name: str = Field(
        "livery",
        description="The MongoDB database, where the URL names none.",
        **_env("LIVERY_AGENT_DATABASE_NAME", "MONGODB_DB_NAME"),
    )
    private_key: SecretStr | None = Field(
        None,
        description="The wallet's raw key, hex; it wins over a CDP wallet and a keystore. Prefer one of those.",
        **_env("LIVERY_AGENT_PRIVATE_KEY", "X402_PRIVATE_KEY"),
    )
    keystore_path: Path = Field(
        DATA_DIR / "wallet.json",
        description="The wallet's encrypted keystore file; used where neither a raw key nor a CDP wallet is set.",
        **_env("LIVERY_AGENT_KEYSTORE_PATH"),
    )
    keystore_password: SecretStr | None = Field(
        None, description="Opens the keystore.", **_env("LIVERY_AGENT_KEYSTORE_PASSWORD")
    )
    keystore_password_path: Path = Field(
        DATA_DIR / "wallet.password",
        description="A file that holds the keystore's password; used where none is set.",
        **_env("LIVERY_AGENT_KEYSTORE_PASSWORD_PATH"),
    )
    cdp_api_key_id: SecretStr | None = Field(
        None,
        description="Coinbase CDP's key id. With its two secrets a CDP server wallet pays, unless a raw key is set.",
        **_env("LIVERY_AGENT_CDP_API_KEY_ID", "CDP_API_KEY_ID", "CDP_KEY"),
    )
    cdp_api_key_secret: SecretStr | None = Field(
        None,
        description="The secret of that key.",
        **_env("LIVERY_AGENT_CDP_API_KEY_SECRET", "CDP_API_KEY_SECRET", "CDP_SECRET"),
    )
    cdp_wallet_secret: SecretStr | None = Field(
        None,
        description="CDP's wallet secret; it authorises signatures and is no key of the chain.",
        **_env("LIVERY_AGENT_CDP_WALLET_SECRET", "CDP_WALLET_SECRET"),
    )
    wallet_id: str | None = Field(
        None,
        max_length=64,
        description="The name or address of the CDP account that pays.",
        **_env("LIVERY_AGENT_WALLET_ID", "X402_WALLET_ID"),
    )
    mainnet_confirmed_path: Path = Field(
        DATA_DIR / "mainnet-confirmed",
        description="Made by `livery wallet show --network base`; without it nothing is paid on mainnet.",
        **_env("LIVERY_AGENT_MAINNET_CONFIRMED_PATH"),
    )
    mainnet_confirmed: bool = Field(
        False,
        description="The same word where no file can be kept, on a host: payments on mainnet are real and final.",
        **_env("LIVERY_AGENT_MAINNET_CONFIRMED"),
    )
    network: Literal["base-sepolia", "base"] = Field(
        "base-sepolia",
        description="Where the wallet pays: its USDC is the one asset allowed.",
        **_env("LIVERY_AGENT_NETWORK"),
    )
    rpc_url: str = Field(
        "http://localhost:8545",
        description="A node of that network.",
        **_env("LIVERY_AGENT_RPC_URL", "WEB3_PROVIDER_URL", "WEB3_PROVIDER_URI"),
    )
    vendor_secrets: SecretStr = Field(
        SecretStr(""),
        description="One bearer secret for every vendor, or vendor=secret,vendor=secret.",
        **_env("LIVERY_AGENT_VENDOR_SECRETS", "GPU_VENDOR_SECRET"),
    )
    planner_mode: Literal["stub", "bandit", "llm", "ab"] | None = Field(
        None,
        description="Who chooses the vendor. stub: the first registered one that has not failed in the run; bandit: "
        "the one where a finished job costs least, learned from outcomes; llm: a model among the bandit's best; "
        "ab: two of them answer, one acts. Unset: llm where a key of one is set, else bandit.",
        **_env("LIVERY_AGENT_PLANNER_MODE", "PLANNER_MODE"),
    )
    llm_api_key: SecretStr | None = Field(
        None,
        description="The key of the language model's endpoint.",
        **_env("LIVERY_AGENT_LLM_API_KEY", "FIREWORKS_API_KEY"),
    )
    llm_base_url: str = Field(
        "https://api.fireworks.ai/inference/v1",
        pattern=r"^https?://[^\s@]+$",
        description="An OpenAI-compatible endpoint: the address before /chat/completions.",
        **_env("LIVERY_AGENT_LLM_BASE_URL"),
    )
    llm_model: str = Field(
        "accounts/fireworks/models/llama-v3-8b-instruct",
        description="The model asked there.",
        **_env("LIVERY_AGENT_LLM_MODEL", "FIREWORKS_MODEL"),
    )
    llm_timeout_s: float = Field(
        10,
        gt=0,
        le=60,
        description="Seconds the model has to answer, a third of the lease at most; then the bandit decides.",
        **_env("LIVERY_AGENT_LLM_TIMEOUT_S"),
    )
    payment_max: Decimal = Field(
        Decimal(10), gt=0, description="USDC that one payment may cost.", **_env("LIVERY_AGENT_PAYMENT_MAX")
    )
    run_max: Decimal = Field(
        Decimal(100), gt=0, description="USDC that one run may pay in all.", **_env("LIVERY_AGENT_RUN_MAX")
    )
    vendor_day_max: Decimal = Field(
        Decimal(100),
        gt=0,
        description="USDC that one vendor may be paid by the wallet in one UTC day.",
        **_env("LIVERY_AGENT_VENDOR_DAY_MAX"),
    )
    wallet_day_max: Decimal = Field(
        Decimal(200),
        gt=0,
        description="USDC that the wallet may pay in one UTC day.",
        **_env("LIVERY_AGENT_WALLET_DAY_MAX"),
    )
    lease_s: int = Field(
        90,
        ge=1,
        le=3_600,
        description="Seconds a tick may hold a run before another may take it.",
        **_env("LIVERY_AGENT_LEASE_S"),
    )
    poll_interval_s: int = Field(
        5, ge=1, le=3_600, description="Seconds between polls of a running job.", **_env("LIVERY_AGENT_POLL_INTERVAL_S")
    )
    attempts_max: int = Field(
        10,
        ge=1,
        le=1_000,
        description="Failed or cancelled jobs after which a run gives up.",
        **_env("LIVERY_AGENT_ATTEMPTS_MAX"),
    )
    lost_polls: int = Field(
        18,
        ge=2,
        le=POLLS_KEPT,
        description=f"Of a job's last {POLLS_KEPT} polls so many have to fail before it is lost.",
        **_env("LIVERY_AGENT_LOST_POLLS"),
    )
    lost_after_s: int = Field(
        600,
        ge=1,
        le=86_400,
        description="Seconds without an answer before a job is lost; its work then goes on elsewhere.",
        **_env("LIVERY_AGENT_LOST_AFTER_S"),
    )

    artifact_url: SecretStr = Field(
        SecretStr(str(DATA_DIR / "artifacts")),
        description="Where the files of ended jobs are kept: a folder, or mongodb://… for GridFS.",
        **_env("LIVERY_AGENT_ARTIFACT_URL", "ARTIFACT_URL"),
    )
    artifact_bytes_max: int = Field(
        1024**3,
        ge=0,
        le=2**40,
        description="Bytes that one file of a job may have; larger ones are not fetched.",
        **_env("LIVERY_AGENT_ARTIFACT_BYTES_MAX"),
    )

    webhook_url: str | None = Field(
        None,
        description="Where what happens to runs is posted, signed (Standard Webhooks). Needs the secret below.",
        **_env("LIVERY_AGENT_WEBHOOK_URL"),
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Signs what is posted: whsec_ and base64 of 24 to 64 bytes; two of them, with a comma, to rotate.",
        **_env("LIVERY_AGENT_WEBHOOK_SECRET"),
    )
    callback_url: str | None = Field(
        None,
        description="This control plane as vendors reach it, https://host: they then call when a job has ended.",
        **_env("LIVERY_AGENT_CALLBACK_URL"),
    )

    @field_validator("webhook_secret")
    @classmethod
    def _signs_webhooks(cls, secret: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("webhook_url") is not None and not are_keys(secret.get_secret_value()):
            raise ValueError("LIVERY_AGENT_WEBHOOK_SECRET is whsec_ and base64 of 24 to 64 bytes, or two, with a comma")
        return secret

    @field_validator("webhook_url", "callback_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("https://", "http://")):
            raise ValueError("an address begins with https:// (http:// on this machine)")
        return None if url is None else url.rstrip("/")

    @field_validator("artifact_url")
    @classmethod
    def _names_a_place(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if "://" in text and not text.startswith(("file:///", *STORES[1:])):
            raise ValueError(f"ARTIFACT_URL is a path, file:///path or {STORES[1]}…, not {text.partition(':')[0]}://")
        return url

    @field_validator("database_url")
    @classmethod
    def _names_a_store(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text in STORES:
            raise ValueError(f"DATABASE_URL ends after {text}, it names no database")
        if not text.startswith(STORES):
            head, _, rest = text.partition(":")
            # Nothing but a scheme is shown: anything else may hold a password.
            scheme = head if rest.startswith("//") or head == "sqlite" else "nothing"
            raise ValueError(f"DATABASE_URL begins with {', '.join(STORES[:-1])} or {STORES[-1]}, not {scheme}")
        return url

    @field_validator("payment_max", "run_max", "vendor_day_max", "wallet_day_max")
    @classmethod
    def _is_an_amount(cls, cap: Decimal, info: ValidationInfo) -> Decimal:
        """Raise MoneyError, a ValueError, where the network's asset has no such amount."""
        if "network" in info.data:
            to_atomic(cap, ASSETS[info.data["network"]])
        return cap

"""What the mock vendors read from the environment, and nothing else does for them."""

from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr

from inbound.settings import Settings

DEFAULT_PORT = 4001


def _names(ours: str, *aliases: str) -> AliasChoices:
    return AliasChoices(f"LIVERY_VENDOR_MOCK_{ours}", *aliases)


class VendorMockSettings(Settings):
    """The mock vendors' settings. There is no default secret: without one they do not start."""

    secret: SecretStr = Field(
        validation_alias=_names("SECRET", "GPU_VENDOR_SECRET"),
        description="Bearer secret of every vendor, or `vendor=secret,vendor=secret`. Required.",
    )
    base_price_per_hour: Decimal = Field(
        Decimal("1.4"),
        gt=0,
        le=10_000,
        validation_alias=_names("BASE_PRICE_PER_HOUR", "BASE_PRICE_PER_HOUR"),
        description="Price per hour in USDC of a vendor without a price of its own.",
    )
    fail_vendor_id: str | None = Field(
        None,
        validation_alias=_names("FAIL_VENDOR_ID", "FAIL_VENDOR_ID"),
        description="The vendor whose jobs always fail, at their third epoch.",
    )
    fail_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        validation_alias=_names("FAIL_RATE", "FAIL_RATE"),
        description="Share of jobs that fail at their third epoch, 0 to 1.",
    )
    seed: int | None = Field(
        None,
        validation_alias=_names("SEED"),
        description="Makes FAIL_RATE's choices repeat: the n-th job of a vendor has the same fate each time.",
    )
    epoch_seconds: Decimal | None = Field(
        None,
        gt=0,
        validation_alias=_names("EPOCH_SECONDS", "EPOCH_SECONDS"),
        description="Seconds per epoch. Unset: each /job-status poll moves a job by one epoch.",
    )
    host: str = Field("127.0.0.1", validation_alias=_names("HOST"), description="Address to listen at.")
    port: int = Field(
        DEFAULT_PORT,
        ge=0,
        le=65_535,
        validation_alias=_names("PORT", "PORT"),
        description="Port to listen at. Unset and taken: a free one; set and taken: an error.",
    )
    rpc_url: str = Field(
        "http://localhost:8545", validation_alias=_names("RPC_URL"), description="JSON-RPC address of the chain."
    )
    facilitator_url: str = Field(
        "http://127.0.0.1:4021", validation_alias=_names("FACILITATOR_URL"), description="The x402 facilitator."
    )
    database: Path | None = Field(
        None,
        validation_alias=_names("DATABASE"),
        description="SQLite file for jobs and payments. Unset: vendor-mock.db in the user's data directory.",
    )
    vendors_file: Path | None = Field(
        None, validation_alias=_names("VENDORS_FILE"), description="JSON list of vendors instead of the default three."
    )
    keys: SecretStr | None = Field(
        None,
        validation_alias=_names("KEYS"),
        description="Private keys paid at and refunded from: `vendor=0xkey,...`. Unset: a local chain's accounts.",
    )
    data_home: Path | None = Field(
        None,
        validation_alias=AliasChoices("XDG_DATA_HOME"),
        description="The user's data directory. Unset: ~/.local/share.",
    )

    @property
    def port_is_chosen(self) -> bool:
        """Whether the owner set the port, so that a taken one is an error."""
        return "port" in self.model_fields_set

    @property
    def fail_rate_is_chosen(self) -> bool:
        """Whether the owner set the share of failing jobs, over every vendor's own reliability."""
        return "fail_rate" in self.model_fields_set

    def database_path(self) -> Path:
        """Return where jobs and payments are kept."""
        home = self.data_home or Path.home() / ".local" / "share"
        return self.database or home / "livery" / "vendor-mock.db"


FacilitatorFault = Literal[
    "settle_then_hang",
    "settle_then_502",
    "refuse_twice",
    "settle_late",
    "never_settle",
    "wrong_hash",
    "made_up_hash",
    "replayed_receipt",
]


class FacilitatorSettings(Settings):
    """The local x402 facilitator's settings."""

    private_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LIVERY_FACILITATOR_PRIVATE_KEY"),
        description="The key whose account pays the gas of settlements. Unset: a test account of a local chain.",
    )
    rpc_url: str = Field(
        "http://localhost:8545",
        validation_alias=AliasChoices("LIVERY_FACILITATOR_RPC_URL"),
        description="JSON-RPC address of the chain.",
    )
    host: str = Field(
        "127.0.0.1", validation_alias=AliasChoices("LIVERY_FACILITATOR_HOST"), description="Address to listen at."
    )
    port: int = Field(
        4021,
        ge=0,
        le=65_535,
        validation_alias=AliasChoices("LIVERY_FACILITATOR_PORT"),
        description="Port to listen at; a taken default is replaced by a free one.",
    )
    fault: FacilitatorFault | None = Field(
        None,
        validation_alias=AliasChoices("LIVERY_FACILITATOR_FAULT"),
        description="What it does wrong, by name (`livery facilitator --help`). Unset: nothing.",
    )

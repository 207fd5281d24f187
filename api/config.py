"""What the HTTP door reads from the environment."""

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """Where the control plane listens."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        env_file=".env",
        hide_input_in_errors=True,
    )

    host: str = Field(
        "127.0.0.1",
        description="The address to bind. Anything but loopback is refused: there are no API keys yet.",
        validation_alias=AliasChoices("LIVERY_API_HOST"),
    )
    port: int = Field(
        3000,
        ge=0,
        le=65_535,
        description="The port to bind; a taken default is replaced by a free one.",
        validation_alias=AliasChoices("LIVERY_API_PORT", "PORT"),
    )
    drain_s: int = Field(
        25,
        ge=0,
        le=300,
        description="Seconds a stopping server gives requests that are being served.",
        validation_alias=AliasChoices("LIVERY_API_DRAIN_S"),
    )

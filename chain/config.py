"""What the chain room reads from the environment, and nothing else does for it."""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ChainSettings(BaseSettings):
    """Where the programs of the local chain are."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        env_file=".env",
        hide_input_in_errors=True,
    )

    anvil_bin: Path | None = Field(
        None,
        validation_alias=AliasChoices("LIVERY_CHAIN_ANVIL_BIN", "ANVIL_BIN"),
        description="The anvil program. Unset: PATH, then node_modules of the project and of the working directory.",
    )

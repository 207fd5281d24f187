"""What the chain room reads from the environment, and nothing else does for it."""

from pathlib import Path

from pydantic import AliasChoices, Field

from inbound.settings import Settings


class ChainSettings(Settings):
    """Where the programs of the local chain are."""

    anvil_bin: Path | None = Field(
        None,
        validation_alias=AliasChoices("LIVERY_CHAIN_ANVIL_BIN", "ANVIL_BIN"),
        description="The anvil program. Unset: PATH, then node_modules of the project and of the working directory.",
    )

"""What the terminal door reads from the environment."""

from pydantic import AliasChoices, Field, SecretStr

from inbound.settings import Settings


class CliSettings(Settings):
    """Which control plane `livery run` speaks with, and which worker `livery worker`."""

    url: str = Field(
        "http://127.0.0.1:3000",
        description="The control plane's address.",
        validation_alias=AliasChoices("LIVERY_CLI_URL", "LIVERY_URL"),
    )
    secret: SecretStr | None = Field(
        None,
        description="The control plane's LIVERY_API_SECRET, where it asks for one.",
        validation_alias=AliasChoices("LIVERY_CLI_SECRET", "LIVERY_API_SECRET"),
    )

    worker_url: str | None = Field(
        None,
        description="The address of the worker that `livery worker status` asks. Unset: the one that runs here.",
        validation_alias=AliasChoices("LIVERY_CLI_WORKER_URL", "AGENT_API_URL"),
    )

    @property
    def mixes_sources(self) -> bool:
        """Whether the address is of the folder's `.env`, which anybody may have written, and the secret is not."""
        alone = CliSettings(_env_file=None)
        return self.secret is not None and self.secret == alone.secret and self.url != alone.url

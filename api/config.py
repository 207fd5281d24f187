"""What the HTTP door reads from the environment."""

from pydantic import AliasChoices, Field, SecretStr, field_validator

from inbound.settings import Settings


class ApiSettings(Settings):
    """Where the control plane listens, whom it answers, and what the host it runs on says of itself."""

    host: str = Field(
        "127.0.0.1",
        description="The address to bind. Anything but loopback is refused where no secret is set.",
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
    secret: SecretStr | None = Field(
        None,
        description="The bearer that every route but /health asks for. On Vercel and Lambda nothing works without it.",
        validation_alias=AliasChoices("LIVERY_API_SECRET"),
    )
    stream: bool = Field(
        True,
        description="Whether the host passes events on as they come; off answers those so far and closes.",
        validation_alias=AliasChoices("LIVERY_API_STREAM"),
    )
    cron_secret: SecretStr | None = Field(
        None,
        description="A second bearer, for /api/agent-sweep alone: Vercel's crons send it.",
        validation_alias=AliasChoices("LIVERY_API_CRON_SECRET", "CRON_SECRET"),
    )
    tick: bool = Field(
        False,
        description="Whether the server drives due runs by itself. Never on Vercel or Lambda: a sweep is called there.",
        validation_alias=AliasChoices("LIVERY_API_TICK"),
    )
    vercel: bool = Field(
        False,
        description="Vercel sets it: the server is reached by strangers.",
        validation_alias=AliasChoices("LIVERY_API_VERCEL", "VERCEL"),
    )
    vercel_request_s: int = Field(
        60,
        ge=1,
        le=800,
        description="Seconds Vercel gives one request: `maxDuration` of vercel.json.",
        validation_alias=AliasChoices("LIVERY_API_VERCEL_REQUEST_S"),
    )
    lambda_function: str | None = Field(
        None,
        description="Lambda sets it: the server is reached by strangers.",
        validation_alias=AliasChoices("LIVERY_API_LAMBDA_FUNCTION", "AWS_LAMBDA_FUNCTION_NAME"),
    )

    @field_validator("secret", "cron_secret")
    @classmethod
    def _fits_a_header(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not all("!" <= letter <= "~" for letter in secret.get_secret_value()):
            raise ValueError("a bearer secret is made of visible ASCII letters, without spaces")
        return secret

    @property
    def on_host(self) -> bool:
        """Whether the server has a public name and sleeps between requests."""
        return self.vercel or self.lambda_function is not None

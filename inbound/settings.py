"""How every room reads its settings."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """
    Read from the environment, then from `.env`, once.

    What is set to nothing is not set. Errors do not repeat what was typed: it may be a secret.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        env_file=".env",
        hide_input_in_errors=True,
    )

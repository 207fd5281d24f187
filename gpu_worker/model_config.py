"""The settings of the model that a worker serves, whatever engine computes it: which, how many at once, to whom."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator

from inbound.settings import Settings

DEFAULT_CAPABILITY_PORT = 9876
DEFAULT_OLLAMA_URL = "http://localhost:11434"
ISSUER = "livery-coordinator"
EngineName = Literal["slice", "gguf", "ollama", "openai"]


def env(name: str, *aliases: str) -> dict[str, Any]:
    """Return what names a setting in the environment: ours, then what other systems call it."""
    return {"validation_alias": AliasChoices(f"LIVERY_WORKER_{name}", *aliases)}


class ModelSettings(Settings):
    """What serves a model. Without a model nothing is loaded."""

    model: str | None = Field(
        None,
        description="The model that is served: a folder, a .gguf file, its name in the models' folder, or the name "
        "that an upstream knows. Unset: DEFAULT_MODEL's where layers, a topology, a next stage or an oracle is named.",
        **env("MODEL"),
    )
    engine: Literal["auto", "slice", "gguf", "ollama", "openai"] = Field(
        "auto",
        description="What computes: layers of a model here, a GGUF file here, an Ollama, or a server that speaks "
        "OpenAI's API; auto: what the model is.",
        **env("ENGINE"),
    )
    supported_models: str = Field(
        "",
        description="The models that are served besides, with commas; each is loaded when it is first asked for.",
        **env("SUPPORTED_MODELS", "SUPPORTED_MODELS"),
    )
    preload_models: str = Field(
        "", description="Those of them that are loaded at the start.", **env("PRELOAD_MODELS", "PRELOAD_MODELS")
    )
    aliases: str = Field(
        "",
        description="Other names of models, as `gpt-4o=llama3.1:8b-instruct-q4_k_m`, with commas.",
        **env("ALIASES"),
    )
    # where an upstream engine is
    upstream_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="The server that speaks OpenAI's API (vLLM, SGLang, llama-server, LM Studio), with /v1 or without.",
        **env("UPSTREAM_URL"),
    )
    upstream_key: SecretStr | None = Field(None, description="The bearer that it asks for.", **env("UPSTREAM_KEY"))
    upstream_silence_s: int = Field(
        120,
        ge=1,
        description="Seconds without a byte after which an upstream's answer is given up.",
        **env("UPSTREAM_SILENCE_S"),
    )
    ollama_url: str = Field(
        DEFAULT_OLLAMA_URL, description="Where Ollama is.", **env("OLLAMA_URL", "OLLAMA_HOST", "OLLAMA_URL")
    )
    # a GGUF file, and what llama.cpp may take
    gguf_quant: str = Field(
        "auto",
        pattern=r"^[A-Za-z0-9_]{2,12}$",
        description="The quantisation of a model that has several; auto: the best that fits.",
        **env("GGUF_QUANT"),
    )
    gguf_package: Literal["auto", "xllamacpp", "llama-cpp-python"] = Field(
        "auto", description="What carries llama.cpp; auto: what is installed, xllamacpp first.", **env("GGUF_PACKAGE")
    )
    gguf_sha256: str | None = Field(
        None, pattern=r"^[0-9a-fA-F]{64}$", description="SHA-256 that the GGUF file must have.", **env("GGUF_SHA256")
    )
    context: int | None = Field(
        None,
        ge=256,
        le=16_777_216,
        description="Tokens of one request, prompt and answer. Unset: the model's own, at most 8192, less where that "
        "does not fit.",
        **env("CONTEXT"),
    )
    gpu_layers: int | None = Field(
        None, ge=0, le=10_000, description="Layers on the GPU. Unset: as many as fit.", **env("GPU_LAYERS")
    )
    kv_dtype: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16", description="What the cache of a GGUF model is kept in.", **env("KV_DTYPE")
    )
    lora: str = Field(
        "",
        description="LoRA adapters for the GGUF model, `path` or `path=scale`, with commas.",
        **env("LORA"),
    )
    # how many at once
    max_concurrent_jobs: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Answers that are made at once. Unset: what fits, at most 2, 4, 8 with 8, 16, 32 GB.",
        **env("MAX_CONCURRENT_JOBS", "MAX_CONCURRENT_JOBS"),
    )
    queue_max: int = Field(
        32, ge=0, le=10_000, description="Requests that wait for their turn; one more is refused.", **env("QUEUE_MAX")
    )
    queue_wait_s: int = Field(60, ge=1, description="Seconds that a request waits at most.", **env("QUEUE_WAIT_S"))
    priority_users: str = Field(
        "",
        description="Clients whose requests wait before others: ids of passes, addresses, names of keys; with commas.",
        **env("PRIORITY_USERS"),
    )
    context_overflow: Literal["error", "drop_oldest", "summarise"] = Field(
        "error",
        description="What happens to a chat that is too long: refused, its oldest messages left out, or summed up.",
        **env("CONTEXT_OVERFLOW"),
    )
    # who may ask
    agent_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="What session passes call this worker. Unset: its vendor id.",
        **env("AGENT_ID", "AGENT_ID"),
    )
    pass_keys: str | None = Field(
        None,
        description="The keys of session passes: the URL of a registry's JWKS, or a file with one or with a PEM. "
        "Unset: no pass admits anybody.",
        **env("PASS_KEYS"),
    )
    pass_issuer: str = Field(ISSUER, min_length=1, description="Who signs them.", **env("PASS_ISSUER"))
    price_in: Decimal | None = Field(
        None, ge=0, le=1_000_000, description="Price of a million tokens of prompt, USDC.", **env("PRICE_IN")
    )
    price_out: Decimal | None = Field(
        None, ge=0, le=1_000_000, description="Price of a million tokens of answer, USDC.", **env("PRICE_OUT")
    )
    credit_min: Decimal = Field(
        Decimal("0.01"),
        ge=0,
        le=10_000,
        description="The least that is transferred back to a payer, USDC; less stays its credit.",
        **env("CREDIT_MIN"),
    )
    free_requests_per_hour: int | None = Field(
        None,
        ge=0,
        description="Requests in an hour that a client without a key or payment has free. Unset: none.",
        **env("FREE_REQUESTS_PER_HOUR"),
    )
    # the door for GPU checks
    capability_port: int = Field(
        DEFAULT_CAPABILITY_PORT,
        ge=0,
        le=65_535,
        description="Port of the GPU check. Unset and taken: a free one; set and taken: an error.",
        **env("CAPABILITY_PORT", "SERVER_PORT"),
    )

    @model_validator(mode="after")
    def _priced_whole(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("PRICE_IN and PRICE_OUT come together")
        return self

    @field_validator("aliases")
    @classmethod
    def _named(cls, value: str) -> str:
        alias_table(value)
        return value

    @field_validator("lora")
    @classmethod
    def _scaled(cls, value: str) -> str:
        adapters(value)
        return value

    @property
    def lora_files(self) -> tuple[tuple[Path, float], ...]:
        """The adapters, each with its scale."""
        return adapters(self.lora)

    @property
    def names_engine(self) -> bool:
        """Whether something is set that only an engine of whole models needs."""
        return self.engine != "auto" or self.upstream_url is not None or bool(words(self.supported_models))

    @property
    def is_priced(self) -> bool:
        """Whether answers cost anything; a price of nothing is none."""
        return bool(self.price_in or self.price_out)

    @property
    def capability_port_is_chosen(self) -> bool:
        """Whether the owner set the port, so that a taken one is an error."""
        return "capability_port" in self.model_fields_set


def words(text: str) -> tuple[str, ...]:
    """Return the parts of a list with commas, none of them empty."""
    return tuple(word for part in text.split(",") if (word := part.strip()))


def adapters(text: str) -> tuple[tuple[Path, float], ...]:
    """Return the files of LoRA adapters, each with its scale. Raises ValueError: a part of it is no `path=scale`."""
    found = []
    for part in words(text):
        path, _, scale = (each.strip() for each in part.partition("="))
        try:
            number = float(scale or 1)
        except ValueError:
            number = math.nan
        if not path or not math.isfinite(number):
            raise ValueError(f"write an adapter as path=scale, not {part!r}")
        found.append((Path(path).expanduser(), number))
    return tuple(found)


def alias_table(text: str) -> dict[str, str]:
    """Return the names that stand for others. Raises ValueError: a part of it is no `name=model`."""
    table = {}
    for part in words(text):
        name, is_named, model = (each.strip() for each in part.partition("="))
        if not (name and is_named and model):
            raise ValueError(f"write an alias as name=model, not {part!r}")
        table[name] = model
    return table

"""The settings of a layer slice: which model and layers are served, what they may take, and who may reach them."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from gpu_worker.core.inference.limits import ROWS_MAX
from gpu_worker.model_config import ModelSettings, env

DEFAULT_GRPC_PORT = 50051
_LAYERS = re.compile(r"\d{0,5}:\d{0,5}")


class SliceSettings(ModelSettings):
    """What serves layers of a model. Without a model nothing is loaded and nothing listens for stages."""

    layers: str | None = Field(
        None,
        description="The layers that are served, as `0:12`, 12 not included. Unset: those that the topology gives "
        "this worker's address, else all.",
        **env("LAYERS"),
    )
    layer_start: int | None = Field(None, ge=0, description="The same as LAYERS.", **env("LAYER_START", "LAYER_START"))
    layer_end: int | None = Field(None, ge=1, description="The same as LAYERS.", **env("LAYER_END", "LAYER_END"))
    next: str | None = Field(
        None,
        description="The gRPC address of the stage with the layers behind these, as `host:port`; replicas with commas.",
        **env("NEXT"),
    )
    topology: Path | None = Field(
        None,
        description="The file (TOML or JSON) that says which worker serves which layers; it is read again when it "
        "changes.",
        **env("TOPOLOGY"),
    )
    model_hash: str | None = Field(
        None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="SHA-256 over config, tokenizer and weights that the model must have; another one ends the worker.",
        **env("MODEL_HASH", "MODEL_HASH"),
    )
    # how it computes
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="What the weights are computed in; auto: what the model's files have.", **env("DTYPE")
    )
    quant: Literal["none", "int8", "int4"] = Field(
        "none", description="What weights are shrunk to as they are loaded.", **env("QUANT")
    )
    back_end: Literal["auto", "lean", "hf"] = Field(
        "auto",
        description="What computes: hf serves every family, lean is faster for some; auto tries lean against hf first.",
        **env("BACK_END"),
    )
    kv_max_mb: int | None = Field(
        None, ge=1, description="Memory in MiB for sessions' caches. Unset: half of what is left.", **env("KV_MAX_MB")
    )
    sessions_max: int = Field(256, ge=1, le=65_536, description="Sessions at once.", **env("SESSIONS_MAX"))
    session_idle_s: int = Field(
        600, ge=1, description="Seconds after which a session without steps is forgotten.", **env("SESSION_IDLE_S")
    )
    chunk_rows: int = Field(
        256, ge=1, le=ROWS_MAX // 2, description="Rows of a prompt that one step computes at most.", **env("CHUNK_ROWS")
    )
    ring_max_mb: int = Field(
        256,
        ge=0,
        description="Memory in MiB for what was sent to the next stage, from which a replacement is filled.",
        **env("RING_MAX_MB"),
    )
    wire_dtype: Literal["same", "bf16", "int8"] = Field(
        "same",
        description="What rows are sent as to a stage that takes it; less than `same` is faster over a slow line.",
        **env("WIRE_DTYPE"),
    )
    # its door for stages
    grpc_host: str = Field("127.0.0.1", description="Address to listen at for stages.", **env("GRPC_HOST", "GRPC_HOST"))
    grpc_port: int = Field(
        DEFAULT_GRPC_PORT,
        ge=0,
        le=65_535,
        description="Port to listen at for stages. Unset and taken: a free one; set and taken: an error.",
        **env("GRPC_PORT", "GRPC_PORT"),
    )
    grpc_endpoint: str | None = Field(
        None,
        description="The gRPC address at which stages reach it, `host:port`.",
        **env("GRPC_ENDPOINT", "GRPC_ENDPOINT"),
    )
    grpc_tls_cert: Path | None = Field(
        None, description="The certificate of the gRPC door, PEM.", **env("GRPC_TLS_CERT", "GRPC_TLS_CERT")
    )
    grpc_tls_key: Path | None = Field(None, description="Its key, PEM.", **env("GRPC_TLS_KEY", "GRPC_TLS_KEY"))
    grpc_tls_ca: Path | None = Field(
        None,
        description="The authority of the stages' certificates, PEM; with it every caller must show one (mTLS).",
        **env("GRPC_TLS_CA", "GRPC_TLS_CA"),
    )
    grpc_insecure: bool = Field(
        False,
        description="Whether other machines may be spoken with without TLS, and by whom has no session pass.",
        **env("GRPC_INSECURE"),
    )
    api_secret: SecretStr | None = Field(
        None,
        description="The bearer that opens every door of inference. Unset: this machine's programs alone are served, "
        "unless PASS_KEYS or a price is set.",
        **env("API_SECRET", "API_SECRET"),
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^https?://[^/,\s*]+( *, *https?://[^/,\s*]+)*$",
        description="The web origins whose pages may call `/v1`, as `https://chat.example`; several with commas. "
        "Unset: none.",
        **env("CORS_ORIGINS"),
    )
    oracle_url: str | None = Field(
        None,
        description="A coordinator's address; with this version a worker that is told one serves alone, and says so.",
        **env("ORACLE_URL", "ORACLE_API_URL"),
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.layer_start is None) != (self.layer_end is None):
            raise ValueError("LAYER_START and LAYER_END come together")
        if (self.grpc_tls_cert is None) != (self.grpc_tls_key is None):
            raise ValueError("GRPC_TLS_CERT and GRPC_TLS_KEY come together")
        if self.grpc_tls_ca is not None and self.grpc_tls_cert is None:
            raise ValueError("GRPC_TLS_CA is the authority of callers: it needs GRPC_TLS_CERT and GRPC_TLS_KEY too")
        if self.next is not None and self.topology is not None:
            raise ValueError("NEXT and TOPOLOGY are two ways to say the same: name one of them")
        return self

    @field_validator("layers")
    @classmethod
    def _slice(cls, value: str | None) -> str | None:
        if value is not None and not _LAYERS.fullmatch(value):
            raise ValueError("write layers as 0:12, 12 not included")
        return value

    @field_validator("topology", "grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @property
    def asks_for_layers(self) -> bool:
        """Whether something is set that only a served model needs."""
        return self.model is not None or self.asks_for_layers_alone

    @property
    def asks_for_layers_alone(self) -> bool:
        """Whether something is set that only a slice of a model needs."""
        return any(value is not None for value in (self.layers_text, self.next, self.topology))

    @property
    def layers_text(self) -> str | None:
        """The layers that the owner chose, as `0:12`; None where he chose none."""
        if self.layers is not None or self.layer_start is None:
            return self.layers
        return f"{self.layer_start}:{self.layer_end}"

    @property
    def grpc_port_is_chosen(self) -> bool:
        """Whether the owner set the port, so that a taken one is an error."""
        return "grpc_port" in self.model_fields_set

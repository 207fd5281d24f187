"""
The bodies of a worker's own inference API under `/api/v1`: generate, metrics, pipeline status.

The names and limits are those of the Plumise agent, whose clients are served; here fields are snake_case where its are.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from wire.openai import Stops

PROMPT_PATH = "/api/v1/generate"
# A prompt of 4 million characters, some of them escaped.
INPUT_CHARS_MAX = 4 * 1024 * 1024
PROMPT_BODY_BYTES_MAX = 8 * 1024 * 1024


class _Plain(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, protected_namespaces=())


class GenerateParameters(_Plain):
    """From `top_k` on they are ours."""

    max_new_tokens: int = Field(128, ge=1, le=4096)
    temperature: float = Field(0.7, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(0.9, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.2, ge=1, le=2, allow_inf_nan=False)
    do_sample: bool = True
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stop: Stops = ()


class GenerateRequest(_Plain):
    inputs: Annotated[str, Field(min_length=1, max_length=INPUT_CHARS_MAX)]
    parameters: GenerateParameters = GenerateParameters()
    stream: bool = False


class GenerateReply(_Plain):
    generated_text: str
    num_tokens: int
    latency_ms: float


class MetricsReply(_Plain):
    """What was done since the start; a request counts when it has ended, its latency from its arrival on."""

    total_tokens_processed: int
    total_requests: int
    total_latency_ms: float
    avg_latency_ms: float
    uptime_seconds: int
    tokens_per_second: float


class Assignment(_Plain):
    start: int
    end: int
    total: int
    is_full: bool


class PipelineNode(_Plain):
    """`pipeline_order` counts slices from the first layer; replicas of one slice share it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    address: str
    grpc_endpoint: str
    http_endpoint: str
    layer_start: int
    layer_end: int
    pipeline_order: int
    ready: bool


class PipelineTopology(_Plain):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    model: str
    total_layers: int
    nodes: tuple[PipelineNode, ...]


class PipelineStatus(_Plain):
    model: str
    address: str
    assignment: Assignment | None
    topology: PipelineTopology | None


def body(document: BaseModel) -> dict[str, Any]:
    return document.model_dump(by_alias=True)

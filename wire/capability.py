"""
The bodies of a worker's door for GPU checks: what its machine has, how long it was up, and a proof of both.

Names are those of the Livepeer BYOC worker that this door stands in for; from `gpus` on they are ours.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from wire.decimal_json import DecimalNumber

# What `X-Metadata` calls the answer, under whichever path it was asked for.
CAPABILITY = "gpu-check"
AGENT_ID_CHARS_MAX = 256
# A statement is a report with some numbers beside it.
STATEMENT_CHARS_MAX = 65_536
NOBODY = "unnamed"

AgentId = Annotated[str, StringConstraints(max_length=AGENT_ID_CHARS_MAX)]
Chance = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, protected_namespaces=())


class GpuCheckRequest(_Plain):
    """Who asks, in whatever words."""

    agent_id: AgentId = NOBODY


class GpuReport(_Plain):
    """One GPU as its driver tells of it, memory in MiB; None is what it does not tell."""

    index: int
    name: str
    vram_total_mb: int
    vram_used_mb: int
    vram_free_mb: int
    temperature_c: int | None
    power_w: DecimalNumber | None
    utilisation_percent: int | None


class GpuCheck(_Plain):
    """
    `vram_usage_mb` is what loaded models take of GPU memory, MiB; where the engine does not tell, what is taken of it.

    `model_name` is the first model that is loaded, `total_models` are all that are here. `timestamp` is Unix time.
    """

    status: Literal["success"] = "success"
    agent_id: str
    model_name: str
    vram_usage_mb: DecimalNumber
    total_models: int
    timestamp: DecimalNumber
    gpu_count: int
    loaded_models: int
    gpus: tuple[GpuReport, ...]


class ModelHere(_Plain):
    """`bytes` are those of its weights, 0 where that is not known; `context` is in tokens."""

    name: str
    loaded: bool
    quant: str
    bytes: int
    vram_bytes: int
    context: int | None
    model_hash: str


class ModelsHere(_Plain):
    """All models that are on the machine, and the names of those that answer at once."""

    models: tuple[ModelHere, ...]
    loaded: tuple[str, ...]
    total_models: int
    loaded_models: int


class ServiceUp(_Plain):
    """`uptime_percentage` is of the window, `uptime_percentage_always` since the worker began."""

    name: str
    up: bool
    uptime_percentage: DecimalNumber
    uptime_percentage_always: DecimalNumber


class ServiceStatus(_Plain):
    services: tuple[ServiceUp, ...]
    timestamp: DecimalNumber


class ServiceUptime(_Plain):
    """`overall_uptime_percentage` is the mean over the services, in the last `window_seconds`."""

    overall_uptime_percentage: DecimalNumber
    services_up: int
    services_down: int
    total_services: int
    eligible_for_payment: bool
    min_uptime_required: DecimalNumber
    window_seconds: int
    uptime_seconds: int


class ChallengeRequest(_Plain):
    """The first half of a challenge, see `gpu_worker.core.attest`: the matrix, which is made before the clock runs."""

    agent_id: AgentId = NOBODY
    seed: Chance
    size: int


class ChallengeReady(_Plain):
    """The matrix of `challenge` is where the worker computes: on `device`, for `keeps_s` seconds."""

    challenge: str
    device: str
    keeps_s: int


class StartRequest(_Plain):
    """The second half. An answer later than `deadline_s` is of no use to who asks."""

    start: Chance
    rounds: int
    deadline_s: int = Field(ge=1, le=120)


class Proof(_Plain):
    """
    `statement` is a `Statement` as JSON, signed as it stands: `signature` is EIP-191's of its text, by the worker.

    `vectors` is base64 of the numbers, four bytes each, the lowest first.
    """

    statement: Annotated[str, StringConstraints(max_length=STATEMENT_CHARS_MAX)]
    signature: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{130}$")]
    vectors: str


class Statement(_Plain):
    """What a worker signs: the challenge as it was answered, the hash of the vectors, and its report beside them."""

    purpose: str
    address: str
    seed: str
    start: str
    size: int
    rounds: int
    vectors_sha256: str
    device: str
    seconds: DecimalNumber
    report: GpuCheck

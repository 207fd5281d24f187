"""
What the worker knows of a job, and of what runs it. Amounts are atomic units, times Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gpu_worker.core.errors import Fault as Fault
from storefront.model import Sold
from wire.jobs import JobKind
from wire.vendor import CheckpointSeen, FilesGrant, ResumeFrom


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Sold):
    """
    A sold job of this machine.

    `job_params` is what the buyer sent, whose `params` passed `wire.jobs.params_of` at the quote. `used_s` are the
    seconds that its program worked, the only ones that cost. `attempts` counts the starts of the program since the
    last new checkpoint. `pushed` is the newest checkpoint that the buyer's store has whole. `marks` are the `used_s` at
    which checkpoints were seen, by step: what was done after the one that is gone on from costs nothing.
    """

    kind: JobKind
    job_params: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    payer: str = ""
    model_hash: str | None = None
    spec_hash: str | None = None
    moves: bool = False
    files: FilesGrant | None = None
    resume: ResumeFrom | None = None
    step: int = 0
    steps: int = 0
    used_s: Decimal = Decimal(0)
    marks: Mapping[str, Decimal] = field(default_factory=dict)
    attempts: int = 0
    pushed: CheckpointSeen | None = None
    fault: Fault | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a job's processes and folder take now. `at_s` is of the worker's monotonic clock."""

    at_s: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """
    A model on this machine: `config` is its config.json, `model_hash` covers config, tokenizer and weights.

    `served` is what the worker's engine calls it where that answers; it has neither folder nor config then, and `bytes`
    is 0 where nobody knows.
    """

    name: str
    folder: str
    bytes: int
    model_hash: str
    config: Mapping[str, Any]
    served: str | None = None

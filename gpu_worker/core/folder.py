"""
A job's folder: what the worker and the job's program say to each other, and nothing else passes between them.

    spec.json        the worker writes it, whole, before the program starts: `Spec`
    lock             the program holds it (flock) as long as it lives
    state.json       the program replaces it, at most once a second and at its end: `State`
    progress.jsonl   the program appends to it, one `ProgressLine` per write, and flushes; nothing in it changes again
    input/           what the job works on, unpacked and checked; beside it the program's own tokens of it
    checkpoints/N/   the files of step N and, last, `manifest.json` (`wire.checkpoint.Manifest`, no parts)
    result/          the artifacts, each a plain name; on failure too
    stderr.log       what the program said last

The end of the program's stdin tells it to stop: it makes a checkpoint, then exits.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gpu_worker.core.errors import Fault
from wire.decimal_json import DecimalNumber
from wire.jobs import JobKind
from wire.model import Body, Entries, Metrics
from wire.vendor import STEPS_MAX, Sha256

SPEC = "spec.json"
LOCK = "lock"
STATE = "state.json"
PROGRESS = "progress.jsonl"
INPUT = "input"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
RESULT = "result"
TOKENS = ("learned.tokens", "held-out.tokens")
STDERR = "stderr.log"
# The two newest checkpoints are kept.
CHECKPOINTS_KEPT = 2
LINE_BYTES_MAX = 64 * 1024
STDERR_BYTES_MAX = 64 * 1024

# The files of a checkpoint of a fine-tune; other kinds have others, the manifest names them.
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
HISTORY_FILE = "history.json"

# How the program exits; any other code is a crash, and the owner's fault.
EXIT_COMPLETED = 0
EXIT_BAD_INPUT = 65  # `State.message` says what, the buyer's fault
EXIT_STOPPED = 75  # as it was asked to, its newest checkpoint made

Message = Annotated[str, StringConstraints(max_length=4_096)]


class InputFile(Body):
    """
    What the job works on: a file in `input/`, one JSON object a line: `{"text"}`, `{"messages"}`, `{"prompt", ...}`.

    `sha256` is of what the buyer gave, before it was unpacked.
    """

    name: Message
    sha256: Sha256
    form: Literal["text", "chat", "prompt"]
    records: int = Field(ge=0)
    bytes: int = Field(ge=0)


class ContainerTerms(Body):
    """
    What a container may have: `runtime` is the path of docker's or podman's client.

    `visible` is the one GPU that it may have where it asks for one, None: all.
    """

    runtime: Message
    memory_bytes: int = Field(ge=1)
    cpus: int = Field(ge=1)
    visible: Message | None = None


class Spec(Body):
    """
    What the program is to do.

    `params` are those of the kind, as a document of `wire.jobs`. `model_folder` is absolute. `resume_step` names the
    folder in `checkpoints/` to go on from, None begins at step 0. `served` is the model of the worker's own that
    answers, None: the program loads one itself.
    """

    format: Literal[1] = 1
    job_id: str
    kind: JobKind
    params: Entries[Any]
    index: int = Field(0, ge=0)
    device: str
    threads: int = Field(ge=1)
    checkpoint_steps: int = Field(ge=1)
    model_folder: str | None = None
    model_hash: Sha256 | None = None
    served: Message | None = None
    spec_hash: Sha256 | None = None
    input: InputFile | None = None
    resume_step: int | None = Field(None, ge=0, le=STEPS_MAX)
    file_bytes_max: int = Field(ge=1)
    container: ContainerTerms | None = None
    # What the program may have of a GPU's memory, None: all.
    vram_bytes_max: int | None = Field(None, ge=1)


class State(Body):
    """
    Where the program is. `worked_s` are the seconds since its model was there, in this start; of one that goes on from
    a checkpoint since its first step, so that nothing is prepared twice at the buyer's expense.

    `created_s` is when the process began, as the system tells it: with `pid` it names the process for good.
    """

    pid: int
    created_s: DecimalNumber
    phase: Literal["loading", "working", "saving", "ended"]
    step: int = Field(0, ge=0, le=STEPS_MAX)
    steps: int = Field(0, ge=0, le=STEPS_MAX)
    tokens: int = Field(0, ge=0)
    worked_s: DecimalNumber = Decimal(0)
    fault: Fault | None = None
    code: str | None = None
    message: Message | None = None
    final_metrics: Metrics | None = None
    artifact: Message | None = None


class ProgressLine(Body):
    """
    One line of progress.jsonl. `log` has a `text`, `metric` has `values`; `checkpoint` says that step's is whole.

    A start that resumes writes again the lines of the steps that it does again: `step` says which they were.
    """

    kind: Literal["log", "metric", "checkpoint"]
    step: int = Field(0, ge=0, le=STEPS_MAX)
    text: Message | None = None
    values: Metrics | None = None

"""What is served of a GGUF model, and with what: the owner's wishes held against its file before llama.cpp sees it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.llama import CacheType, LlamaSpec, Package
from gpu_worker.edges.engines.gguf_file import GgufModel, check_lora, read_model
from gpu_worker.model_port import Tell
from wire.model import first_error

# A request that llama.cpp has, and does not count among those it computes or lets wait, hangs in its chat template.
STUCK_S = 20.0
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSetup:
    """
    A model, and what llama.cpp may take for it.

    `path` is its first file where it has several. `context` is of one slot, in tokens. `lora` are adapters with their
    scales: GGUF files, or folders that peft saved. `memory_bytes` is what it needs of the machine's own memory: it may
    have twice of it, None: all. `visible`: the one GPU that it sees, None: all. What is not `preload` is loaded when it
    is first asked for. `vram_bytes` is told of it.
    """

    name: str
    path: Path
    context: int
    slots: int = 1
    threads: int = 1
    gpu_layers: int = 0
    batch: int = 512
    kv_dtype: CacheType = "f16"
    lora: tuple[tuple[Path, float], ...] = ()
    sha256: str | None = None
    memory_bytes: int | None = None
    visible: str | None = None
    preload: bool = True
    vram_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTimes:
    """
    `health_s`: without an answer to a look after it for so long it is ended and started again. `ready_s`: how long a
    request waits for a model that is being loaded. `silence_s`: as `OpenAiUpstream` has it. `start_s`: None: by size.
    `stuck_s`: so long a request may be with it, and not among those that it counts. `backoff_s`: between two starts,
    and twice as long after each that fails.
    """

    health_s: float = 60.0
    ready_s: float = 30.0
    silence_s: float = 120.0
    stuck_s: float = STUCK_S
    backoff_s: float = 2.0
    start_s: float | None = None


def read_files(setup: GgufSetup, tell: Tell) -> tuple[GgufModel, str]:
    """
    Return what the files are, and their SHA-256; of several, that of theirs.

    Raises:
        OwnersFault: they cannot be served, or are not those that were asked for.
    """
    model = read_model(setup.path)
    for path, _ in setup.lora:
        if not path.is_dir():
            check_lora(path, model)
    digests, done = [], 0
    try:
        for file in model.files:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    done += len(chunk)
                    tell(f"reading {setup.name}", done, model.bytes)
            digests.append(digest.hexdigest())
    except OSError as error:
        raise OwnersFault(f"the file of {setup.name} cannot be read: {error.strerror}") from None
    if setup.sha256 is not None and digests[0] != setup.sha256.lower():
        raise OwnersFault(f"the file of {setup.name} has the SHA-256 {digests[0]}, not {setup.sha256.lower()}")
    return model, digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def spec_of(setup: GgufSetup, package: Package, key: str, *, embeds: bool) -> LlamaSpec:
    """Return what llama.cpp's process is told. Raises OwnersFault: it would end over it."""
    try:
        return LlamaSpec(
            package=package,
            path=str(setup.path),
            name=setup.name,
            key=key,
            context=setup.context,
            slots=setup.slots,
            threads=setup.threads,
            gpu_layers=setup.gpu_layers,
            batch=max(setup.batch, setup.slots),
            kv_dtype=setup.kv_dtype,
            lora=tuple((str(path), scale) for path, scale in setup.lora),
            embeds=embeds,
            memory_bytes_max=None if setup.memory_bytes is None else 2 * setup.memory_bytes + 2**31,
        )
    except ValidationError as error:
        raise OwnersFault(f"{setup.name} cannot be served so: {first_error(error)}") from None

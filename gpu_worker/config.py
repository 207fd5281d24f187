"""What the worker reads from the environment, and nothing else does for it. S1's names are aliases of ours."""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from gpu_worker.core import owner
from gpu_worker.model_config import env, words
from gpu_worker.slice_config import SliceSettings
from wire.jobs import KINDS
from wire.money import ASSETS

DEFAULT_PORT = 31331
# What a job's program is told of this process's environment; no key and no secret is among it.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "SYSTEMROOT", "PYTHONPATH")
_MIB = 1024 * 1024


class WorkerSettings(SliceSettings):
    """The worker's settings. Without any it starts, sells nothing, and says what is missing."""

    name: str = Field(
        "worker",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$",
        description="What this worker is called; in lower case, with `-` for blanks, its vendor id.",
        **env("NAME"),
    )
    kinds: str = Field(
        "",
        description=f"The jobs that are sold, of {', '.join(KINDS)}, with commas. Empty or `none`: none.",
        **env("KINDS"),
    )
    data: Path = Field(Path("~/.livery/worker"), description="The worker's folder: jobs, books, keys.", **env("DATA"))
    models: Path | None = Field(
        None, description="The folder of the models, one folder each. Unset: `models` in the data.", **env("MODELS")
    )
    default_model: str | None = Field(
        None, description="The model of a job that names none.", **env("DEFAULT_MODEL", "MODEL_NAME")
    )
    default_dataset: Path | None = Field(
        None, description="The file that a fine-tune trains on where it names none.", **env("DEFAULT_DATASET")
    )
    hub: bool = Field(
        False,
        description="Whether models may be fetched from Hugging Face's hub: GGUF files that are to be served, and the "
        "config.json that `livery worker forecast` reads.",
        **env("HUB"),
    )
    hf_token: SecretStr | None = Field(
        None, description="The hub's token, for models that ask for one.", **env("HF_TOKEN", "HF_TOKEN")
    )
    allow_private_urls: bool = Field(
        False,
        description="Whether datasets and checkpoints may be fetched from this machine's own network.",
        **env("ALLOW_PRIVATE_URLS"),
    )
    container_images: str = Field(
        "",
        description="The images that jobs of the kind container may run, with commas, as `docker images` has them. "
        "Empty: none; what is in an image can be read by whoever runs it.",
        **env("CONTAINER_IMAGES"),
    )
    # what runs jobs
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="What jobs run on; auto takes cuda, then mps, then cpu.", **env("DEVICE", "DEVICE")
    )
    gpus: str | None = Field(
        None,
        description="The GPUs that jobs may use: UUIDs or numbers, as CUDA reads them. Unset: all.",
        **env("GPUS", "CUDA_VISIBLE_DEVICES"),
    )
    ram_mb: int | None = Field(
        None, ge=1, description="The memory in MiB that is told instead of the machine's.", **env("RAM_MB", "RAM_MB")
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of a job's program. Unset: all cores but one, shared.", **env("THREADS")
    )
    jobs_max: int = Field(1, ge=1, le=64, description="Jobs that run at once.", **env("JOBS_MAX"))
    checkpoint_steps: int = Field(
        50, ge=1, description="Steps between two checkpoints of a job that names none.", **env("CHECKPOINT_STEPS")
    )
    stall_s: int = Field(
        900, ge=1, description="Seconds after which a program without any progress is ended.", **env("STALL_S")
    )
    # what the owner gives away
    price_per_hour: Decimal = Field(
        Decimal("0.5"), gt=0, le=10_000, description="Price of an hour, USDC.", **env("PRICE_PER_HOUR")
    )
    price_min: Decimal = Field(
        Decimal(0), ge=0, le=10_000, description="The least that a job costs, USDC.", **env("PRICE_MIN")
    )
    requesters: str = Field(
        "", description="Addresses that may buy, with commas. Empty: everybody.", **env("REQUESTERS")
    )
    hours: str = Field(
        "", description="When it sells and works, as `22:00-08:00,12:00-13:00`. Empty: always.", **env("HOURS")
    )
    vram_max_mb: int | None = Field(
        None, ge=1, description="GPU memory in MiB that jobs may use.", **env("VRAM_MAX_MB")
    )
    memory_max_mb: int | None = Field(
        None,
        ge=1,
        description="Memory in MiB that one job may use. Unset: half of what is free when it is sold; "
        "it is ended at nine tenths of all.",
        **env("MEMORY_MAX_MB"),
    )
    disk_max_mb: int | None = Field(
        None, ge=1, description="Disk in MiB that one job may use. Unset: 20 GiB.", **env("DISK_MAX_MB")
    )
    disk_reserve_mb: int = Field(
        5_120, ge=0, description="Disk in MiB that stays free; with less nothing is sold.", **env("DISK_RESERVE_MB")
    )
    dataset_bytes_max: int = Field(
        2 * 1024**3, ge=1, description="The largest dataset in bytes, unpacked.", **env("DATASET_BYTES_MAX")
    )
    temperature_max_c: int = Field(
        85, ge=1, le=150, description="A hotter GPU pauses its jobs, degrees Celsius.", **env("TEMPERATURE_MAX_C")
    )
    power_max_w: int | None = Field(
        None, ge=1, description="A GPU that draws more pauses its jobs, watts.", **env("POWER_MAX_W")
    )
    yield_on: str = Field(
        "gpu,hot,power,battery,hours",
        description="What pauses jobs, of gpu (somebody else uses it), hot, power, battery, hours. `none`: nothing.",
        **env("YIELD_ON"),
    )
    # money
    private_key: SecretStr | None = Field(
        None,
        description="The key that is paid and pays refunds, 32 bytes of hex. Unset: the keystore.",
        **env("PRIVATE_KEY", "PLUMISE_PRIVATE_KEY"),
    )
    keystore_path: Path | None = Field(
        None, description="The encrypted key. Unset: `wallet.json` in the data.", **env("KEYSTORE_PATH")
    )
    keystore_password: SecretStr | None = Field(
        None, description="The keystore's password.", **env("KEYSTORE_PASSWORD")
    )
    keystore_password_path: Path | None = Field(
        None,
        description="The file that has it otherwise. Unset: `wallet-password` in the data.",
        **env("KEYSTORE_PASSWORD_PATH"),
    )
    secret: SecretStr | None = Field(
        None, description="The buyers' bearer secret. Unset: made once, in `secret` in the data.", **env("SECRET")
    )
    facilitator_url: str = Field("http://127.0.0.1:4021", description="The x402 facilitator.", **env("FACILITATOR_URL"))
    rpc_url: str = Field(
        "http://localhost:8545", description="JSON-RPC address of the chain.", **env("RPC_URL", "PLUMISE_RPC_URL")
    )
    chain_id: int = Field(
        84532, description="The chain: 84532 Base Sepolia, 8453 Base.", **env("CHAIN_ID", "PLUMISE_CHAIN_ID")
    )
    # the door
    host: str = Field("127.0.0.1", description="Address to listen at.", **env("HOST", "API_HOST"))
    port: int = Field(
        DEFAULT_PORT,
        ge=0,
        le=65_535,
        description="Port to listen at. Unset and taken: a free one; set and taken: an error.",
        **env("PORT", "API_PORT"),
    )
    public_url: str | None = Field(
        None, description="The address at which buyers reach it.", **env("PUBLIC_URL", "NODE_ENDPOINT")
    )
    drain_s: int = Field(
        30, ge=1, description="Seconds from the signal to the end: checkpoints, refunds.", **env("DRAIN_S")
    )

    @field_validator("kinds")
    @classmethod
    def _known(cls, value: str) -> str:
        wrong = [kind for kind in listed(value) if kind not in KINDS]
        if wrong:
            raise ValueError(f"there are no jobs of the kind {wrong[0]!r}: there are {', '.join(KINDS)}")
        return value

    @field_validator("chain_id")
    @classmethod
    def _has_usdc(cls, value: int) -> int:
        known = {asset.chain_id: name for name, asset in ASSETS.items()}
        if value not in known:
            raise ValueError(f"there is no chain {value} here: there is {', '.join(map(str, known))}")
        return value

    @field_validator("hours")
    @classmethod
    def _hours(cls, value: str) -> str:
        owner.parse_hours(value)
        return value

    @field_validator("yield_on")
    @classmethod
    def _causes(cls, value: str) -> str:
        owner.parse_causes(value)
        return value

    @field_validator("data", "models", "default_dataset", "keystore_path", "keystore_password_path")
    @classmethod
    def _expanded(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @property
    def served_model(self) -> str | None:
        """The model that is served first, None: none, or the first that an upstream has."""
        others = words(self.supported_models)
        return self.model or (self.default_model if self.serves_model else None) or (others[0] if others else None)

    @property
    def serves_model(self) -> bool:
        """Whether a model is to be served, or layers of one; who was told of an oracle serves its model alone."""
        is_led = self.oracle_url is not None and self.default_model is not None
        return self.asks_for_layers or self.names_engine or is_led

    @property
    def port_is_chosen(self) -> bool:
        """Whether the owner set the port, so that a taken one is an error."""
        return "port" in self.model_fields_set

    @property
    def visible_gpus(self) -> str | None:
        """Return the GPUs that programs see, None: all; a variable that is set and empty is none to CUDA."""
        return self.gpus if self.gpus is not None else os.environ.get("CUDA_VISIBLE_DEVICES")

    @property
    def counts_by_bus(self) -> bool:
        """Whether CUDA counts GPUs here as the driver does."""
        return os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"

    @property
    def vendor_id(self) -> str:
        return re.sub(r"[^a-z0-9._-]", "-", self.name.lower())

    @property
    def folder(self) -> Path:
        """The data folder, absolute."""
        return self.data.expanduser().absolute()

    @property
    def models_folder(self) -> Path:
        return (self.models or self.folder / "models").absolute()

    @property
    def database(self) -> Path:
        return self.folder / "worker.db"

    @property
    def keystore(self) -> Path:
        return self.keystore_path or self.folder / "wallet.json"

    @property
    def password_file(self) -> Path:
        return self.keystore_password_path or self.folder / "wallet-password"

    @property
    def secret_file(self) -> Path:
        """Where the buyers' secret is kept that was made here."""
        return self.folder / "secret"

    @property
    def disk_max_bytes(self) -> int:
        return (self.disk_max_mb or 20 * 1024) * _MIB

    def threads_of(self, cores: int) -> int:
        """Return the threads of one job: one core stays with the worker, the rest is shared by the jobs."""
        return self.threads or max(1, (cores - 1) // self.jobs_max)

    def is_sold(self, kind: str) -> bool:
        """Return whether the owner has switched the kind of job on."""
        return kind in listed(self.kinds)


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas; `none` is no word."""
    return tuple(word for part in text.split(",") if (word := part.strip()) and word != "none")


def see_only(visible: str) -> None:
    """Let this process see no GPU but `visible` from now on; to be said before torch is there."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible


def program_environment(threads: int, visible: str | None = None) -> dict[str, str]:
    """
    Return the environment of a job's program: what it needs to run, offline, and nothing that is secret.

    `visible` is the one GPU that it sees, None: as this process does.
    """
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
    }

"""
Where a slice stands: the model on this machine, which of its layers, under which address, and whom it lets in.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.integrity import check_hash
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.passes import Admission
from gpu_worker.core.inference.topology import slice_of
from gpu_worker.core.model import LocalModel
from gpu_worker.edges.engines.gguf_file import models_in
from gpu_worker.edges.grpc.tls import Tls, is_loopback, open_to_others
from gpu_worker.edges.grpc.topology_file import FileTopology, read_topology
from gpu_worker.edges.machine.models_folder import local_model
from gpu_worker.edges.passes.passes_jwt import JwtPasses, PassSigner
from gpu_worker.inference.stage.sessions import Passes

# Who signs passes where the topology is a file: whoever has its key.
ISSUER = "livery-topology"
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - what it is compared with

_LOG = logging.getLogger("livery.gpu_worker")


def served(settings: WorkerSettings) -> str:
    """Return the name of the model to serve. Raises OwnersFault: it is said nowhere, or the topology is wrong."""
    name = settings.served_model or (settings.topology and read_topology(settings.topology).model)
    if not name:
        raise OwnersFault("which model? name it with --model: a folder, a .gguf file, or one of `livery worker models`")
    return name


def found_model(settings: WorkerSettings, name: str) -> LocalModel:
    """
    Return the model `name`: a folder, one in the models' folder, or one in the hub's cache. Nothing is fetched.

    Raises:
        OwnersFault: it is not here.
        BadInput: it is, and cannot be used.
    """
    folder = found_folder(settings, name)
    if folder is None:
        raise OwnersFault(
            f"there is no model {name}: it is no folder, and not in {settings.models_folder}; one of an Ollama is "
            "served with --engine ollama"
        )
    return local_model(folder.resolve(), Path(name).name, settings.folder / "hashes.json")


def found_folder(settings: WorkerSettings, name: str) -> Path | None:
    """Return the folder of a model of safetensors, None where there is none."""
    places = [Path(name).expanduser(), settings.models_folder / name]
    with looked_for(name):
        return next((place for place in places if (place / "config.json").is_file()), None) or _in_hub_cache(name)


def gguf_place(settings: WorkerSettings, name: str) -> Path | None:
    """Return the GGUF file `name`, or the folder that has some, None: there is none. Names of the hub's are folders."""
    places = (Path(name).expanduser(), settings.models_folder / name, settings.models_folder / f"{name}.gguf")
    with looked_for(name):
        for place in places:
            if (place.is_file() and place.suffix == ".gguf") or (place.is_dir() and models_in(place)):
                return place
    return None


@contextmanager
def looked_for(name: str) -> Iterator[None]:
    """Turn what the disk says to a path that is looked at into the owner's fault."""
    try:
        yield
    except OSError as error:
        raise OwnersFault(f"{name[:200]} cannot be looked for: {error.strerror}") from None


def shown_name(name: str) -> str:
    """Return what a model is called to those who ask: of a path, the file or the folder."""
    path = Path(name)
    return path.name.removesuffix(".gguf") if path.suffix == ".gguf" or path.is_absolute() else name


def _in_hub_cache(name: str) -> Path | None:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:
        return None  # no repository can be called so
    return Path(found).parent if isinstance(found, str) else None


def check_model(file: FileTopology | None, model: LocalModel) -> None:
    """Raises OwnersFault: the topology is another model's."""
    if file is None:
        return
    check_hash(model, file.known.model_hash)
    if Path(file.known.model).name != model.name:
        raise OwnersFault(f"the topology is of the model {file.known.model}, this worker has {model.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which layers this worker has, of `total`: those that its owner names, else the topology's, else all."""

    settings: WorkerSettings
    topology: FileTopology | None
    total: int
    endpoint: Callable[[], str]

    def __call__(self) -> Layers:
        if (text := self.settings.layers_text) is not None:
            return Layers.parse(text, self.total)
        if self.topology is None:
            return Layers(0, self.total, self.total)
        hop = slice_of(self.topology.known.stages, self.endpoint())
        if hop is None:
            raise OwnersFault(
                f"{self.settings.topology} gives no layers to {self.endpoint()}: add it there, or say with "
                "--grpc-endpoint under which of its addresses this worker is meant"
            )
        return Layers(hop.start, hop.end, self.total)


@dataclass(slots=True)
class Address:
    """The gRPC address at which stages reach this worker; `port` is the door's, once it is open."""

    settings: WorkerSettings
    port: int = 0

    def __call__(self) -> str:
        settings = self.settings
        host = f"[{settings.grpc_host}]" if ":" in settings.grpc_host else settings.grpc_host
        return settings.grpc_endpoint or f"{host}:{self.port or settings.grpc_port}"


def must_be_closed(settings: WorkerSettings, tls: Tls | None, *, has_passes: bool) -> None:
    """Raises OwnersFault: strangers could compute here, or other stages would not know where this one is."""
    if is_loopback(settings.grpc_host):
        return
    if settings.grpc_endpoint is None and settings.grpc_host in _EVERY_ADDRESS:
        raise OwnersFault(
            f"{settings.grpc_host} is every address of this machine: say with --grpc-endpoint at which of them other "
            "stages reach it"
        )
    if tls is not None and tls.ca is None and not has_passes and not settings.grpc_insecure:
        raise OwnersFault(
            f"anybody who reaches {settings.grpc_host} could compute here: set GRPC_TLS_CA, or a `key` in the "
            "topology, or allow it with LIVERY_WORKER_GRPC_INSECURE=true"
        )


def open_passes(file: FileTopology | None, model: LocalModel, address: Address) -> Passes | None:
    """
    Return what checks session passes, by the key that the topology names, None: nobody is asked for one.

    With a private key `file` signs passes from now on. Raises OwnersFault: the key cannot be read, or is none.
    """
    if file is None or file.known.key is None:
        return None
    path = file.path.parent / file.known.key
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise OwnersFault(f"the key of session passes {path} cannot be read: {error.strerror}") from None
    if b"PRIVATE KEY" in pem:
        for sentence in open_to_others(path):
            _LOG.warning("%s", sentence)
        signer = PassSigner(pem, ISSUER)
        about = {"model": model.name, "model_hash": model.model_hash}
        file.sign = lambda session, layers: signer.sign(
            Admission(session=session, head=address(), layers=layers, **about)
        )
    return JwtPasses((pem,), issuer=ISSUER, model_hash=model.model_hash)


def head_url(file: FileTopology | None) -> str | None:
    """Return where the topology has the HTTP door of the stage with the first layers, None where it tells none."""
    if file is None:
        return None
    heads = (file.known.http.get(hop.endpoint) for hop in file.known.stages if hop.start == 0)
    return next((url for url in heads if url), None)

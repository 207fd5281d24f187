"""How a stranger's container is run: no network, nothing of the machine's to write on, bounds on all it may take."""

from collections.abc import Mapping
from dataclasses import dataclass

from wire.jobs import Container

PREFIX = "livery-"
INPUT_AT, OUTPUT_AT = "/input", "/output"
PROCESSES_MAX = 512
TEMPORARY_BYTES_MAX = 256 * 1024 * 1024
# Who a container is where this program is root: nobody.
NOBODY = 65_534


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    memory_bytes: int
    cpus: int
    file_bytes_max: int


def name_of(job_id: str) -> str:
    """Return the container's name, by which it is ended and swept away."""
    return f"{PREFIX}{job_id}"


def run_argv(
    runtime: str,
    job_id: str,
    params: Container,
    bounds: Bounds,
    *,
    user: tuple[int, int],
    visible: str | None,
    input_folder: str | None,
    output_folder: str,
) -> tuple[str, ...]:
    """
    Return the command that runs the container and ends with it.

    The image must be on the machine: nothing is downloaded while a buyer waits.

    Args:
        visible: the one GPU that the job may have, None: all.

    Raises:
        ValueError: a path or a word that the runtime would read as something else.
    """
    said = (input_folder or "", output_folder, *params.command, *params.env, *params.env.values())
    if any("\0" in word for word in said) or any("=" in name or not name for name in params.env):
        raise ValueError("a word with a zero byte, or a variable's name with `=`")
    if any(sign in path for path in said[:2] for sign in ',"\n'):
        raise ValueError("the folder's path has a comma or a quote in it")
    mounts = {output_folder: f"type=bind,src={output_folder},dst={OUTPUT_AT}"}
    if input_folder is not None:
        mounts[input_folder] = f"type=bind,src={input_folder},dst={INPUT_AT},readonly"
    options: Mapping[str, str] = {
        "--name": name_of(job_id),
        "--pull": "never",
        # Its output is read as it comes; the runtime's own log of it has no end and fills the disk.
        "--log-driver": "none",
        "--network": "none",
        "--user": f"{user[0]}:{user[1]}",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--pids-limit": str(PROCESSES_MAX),
        "--memory": f"{bounds.memory_bytes}b",
        "--memory-swap": f"{bounds.memory_bytes}b",
        "--cpus": str(bounds.cpus),
        "--ulimit": f"fsize={bounds.file_bytes_max}",
        "--tmpfs": f"/tmp:rw,nosuid,nodev,noexec,size={TEMPORARY_BYTES_MAX}",  # noqa: S108
        "--workdir": OUTPUT_AT,
    }
    words = [runtime, "run", "--rm", "--read-only", *(word for pair in options.items() for word in pair)]
    words += [word for mount in mounts.values() for word in ("--mount", mount)]
    words += [word for name, value in params.env.items() for word in ("--env", f"{name}={value}")]
    words += _gpu_words(runtime, visible) if params.gpu else []
    return (*words, params.image, *params.command)


def _gpu_words(runtime: str, visible: str | None) -> list[str]:
    # podman knows GPUs by the Container Device Interface alone.
    is_podman = runtime.rsplit("/", 1)[-1].startswith("podman")
    if is_podman:
        return ["--device", f"nvidia.com/gpu={visible or 'all'}"]
    return ["--gpus", "all" if visible is None else f"device={visible}"]

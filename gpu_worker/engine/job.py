"""
The program of one job: `python -m gpu_worker.engine.job FOLDER [DESCRIPTOR]`.

All it is told stands in the folder's spec, all it tells goes into the folder (`core.folder`). The end of its stdin asks
it to stop; where it is not gone STOP_S later it ends at once, with the newest checkpoint as it lies. DESCRIPTOR is the
socket over which it asks a model that its worker serves (`core.asked`).
"""

import errno
import fcntl
import importlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

from gpu_worker.core.errors import BadInput, OwnersFault, WorkerError
from gpu_worker.core.folder import EXIT_BAD_INPUT, EXIT_COMPLETED, EXIT_STOPPED, LOCK, SPEC, Spec
from gpu_worker.engine.diary import Diary, Stopped
from gpu_worker.engine.offline import leave_network
from gpu_worker.engine.result import End, write_end

STOP_S = 10.0
LOCK_S = 20.0
LOCK_EVERY_S = 0.1
NICE = 5
FILES_OPEN_MAX = 4_096
EXIT_FAILED = 1
EXIT_USAGE = 2

Work = Callable[[Spec, Path, Diary], End]
_WORK = {
    "fine_tune": ("gpu_worker.engine.fine_tune", "fine_tune"),
    "evaluate": ("gpu_worker.engine.evaluate", "evaluate"),
    "generate": ("gpu_worker.engine.generate", "generate"),
    "asked": ("gpu_worker.engine.generate_asked", "generate_asked"),
    "container": ("gpu_worker.engine.container", "run_container"),
}


def main(words: list[str]) -> int:
    if len(words) not in (1, 2):
        print("usage: python -m gpu_worker.engine.job FOLDER [DESCRIPTOR]", file=sys.stderr)
        return EXIT_USAGE
    folder = Path(words[0]).absolute()
    spec = Spec.from_json((folder / SPEC).read_bytes())
    _limit(spec.file_bytes_max)
    # A container's runtime is asked over the network's sockets on some systems; it closes the container's own.
    if spec.kind != "container" and not leave_network():
        print("this system closes no network to a program: nothing here uses one, nothing prevents it", file=sys.stderr)
    if not _hold(folder / LOCK):
        print("another program works in this folder", file=sys.stderr)
        return EXIT_STOPPED
    diary = Diary(folder, created_s=_created_s())
    threading.Thread(target=_await_end_of_stdin, args=[diary], daemon=True).start()
    return run(spec, folder, diary, int(words[1]) if len(words) > 1 else None)


def run(spec: Spec, folder: Path, diary: Diary, descriptor: int | None = None) -> int:
    """Do the work and tell its end; return how the program is to exit."""
    try:
        with diary.during(f"loading what a {spec.kind} needs"):
            work = _work_of(spec, descriptor)
        diary.check()
        end = work(spec, folder, diary)
        state = diary.ended(final_metrics=end.final_metrics, artifact=end.artifact)
        write_end(spec, folder, state, end)
        diary.log("completed")
        code = EXIT_COMPLETED
    except Stopped:
        state = diary.ended()
        diary.log("stopped, as asked to")
        code = EXIT_STOPPED
    except Exception as error:
        failed = _failed(error)
        if not isinstance(failed, BadInput):
            traceback.print_exc()
        said = _without_paths(str(failed), spec, folder)
        diary.log(f"failed: {said}")
        state = diary.ended(fault=failed.fault, code=failed.code, message=said)
        write_end(spec, folder, state, history=diary.history)
        code = EXIT_BAD_INPUT if isinstance(failed, BadInput) else EXIT_FAILED
    diary.tell(state)
    return code


def _work_of(spec: Spec, descriptor: int | None) -> Work:
    """Return what does the job; each brings its own libraries, a container none. Raises OwnersFault."""
    module, name = _WORK[spec.kind if spec.served is None else "asked"]
    work = getattr(importlib.import_module(module), name)
    if spec.served is None:
        return work  # type: ignore[no-any-return]
    if descriptor is None:
        raise OwnersFault(f"there is nobody here who asks {spec.served}")
    return partial(work, descriptor=descriptor)


def _failed(error: Exception) -> WorkerError:
    """Return whose fault `error` is: too little memory and too large a file are the job's, all else is the owner's."""
    if isinstance(error, WorkerError):
        return error
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    # torch and safetensors have types of their own for it, and words.
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return BadInput("model_too_large", f"the job needs more memory than there is: {said[:300]}")
    if (isinstance(error, OSError) and error.errno == errno.EFBIG) or f"os error {errno.EFBIG})" in said:
        return BadInput("model_too_large", "the job writes a larger file than this worker allows")
    return WorkerError(said)


def _without_paths(text: str, spec: Spec, folder: Path) -> str:
    """Return `text` as a stranger may read it: libraries name the folders of this machine."""
    known = {str(folder): "the job's folder", str(Path.home()): "~"}
    if spec.model_folder is not None:
        known = {spec.model_folder: Path(spec.model_folder).name, **known}
    for path, name in known.items():
        text = text.replace(path, name) if len(path) > 1 else text
    return text


def _limit(file_bytes_max: int) -> None:
    """Bind the program before it loads anything: no core, no huge file; first to go where memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytes_max = file_bytes_max if hard == resource.RLIM_INFINITY else min(file_bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_OPEN_MAX if hard == resource.RLIM_INFINITY else min(FILES_OPEN_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # A file beyond the limit is an OSError then, not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A terminal's ^C is for the worker, which then tells by stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # another system than Linux: there is no such choice


def _hold(path: Path) -> bool:
    """Take the folder until the end of this program; an earlier one that is still saving is waited for."""
    lock, until = os.open(path, os.O_RDWR | os.O_CREAT, 0o600), time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(LOCK_EVERY_S)


def _created_s() -> Decimal:
    import psutil

    return Decimal(repr(psutil.Process().create_time()))


def _await_end_of_stdin(diary: Diary) -> None:
    while os.read(0, 4_096):
        pass
    diary.stop()
    time.sleep(STOP_S)
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    # What was begun in other threads must not outlive the verdict.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

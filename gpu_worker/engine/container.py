"""A container as a job: the runtime's client is a child of this program, its output the job's log."""

import os
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

from gpu_worker.core.container import NOBODY, Bounds, name_of, run_argv
from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import INPUT, Spec
from gpu_worker.core.report import REPORT
from gpu_worker.engine.diary import TEXT_CHARS_MAX, Diary, Stopped
from gpu_worker.engine.result import End
from wire.file_name import NotAFileName, to_file_name
from wire.jobs import Container

OUTPUT = "output"
LINES_MAX = 10_000
FILES_MAX = 200
LOOK_S = 0.1
ASK_S = 30.0
STOP_S = 5
# What the client itself says by its exit code: its daemon could not start the container. A container may end with it as
# well; one that ran for longer than a start takes has done so.
_NOT_STARTED = 125
START_S = 20.0


def run_container(spec: Spec, folder: Path, diary: Diary) -> End:
    """
    Run the container to its end; what it left in /output are the artifacts.

    Raises:
        Stopped: it was ended; it has no checkpoint.
        BadInput: the image is not here, or it ended with another code than 0.
        OwnersFault: the runtime does not do it.
    """
    params = Container.model_validate(spec.params)
    if spec.container is None:
        raise OwnersFault("the worker named no runtime for containers")
    runtime = spec.container.runtime
    if params.gpu and not spec.device.startswith("cuda"):
        raise BadInput("invalid_field", "params.gpu: this worker gives no GPU to jobs")
    if _asked(runtime, "image", "inspect", params.image) != 0:
        raise BadInput("model_unknown", f"the image {params.image} is not on this machine")
    output, user = _made_output(folder / OUTPUT)
    bounds = Bounds(
        memory_bytes=spec.container.memory_bytes, cpus=spec.container.cpus, file_bytes_max=spec.file_bytes_max
    )
    try:
        argv = run_argv(
            runtime,
            spec.job_id,
            params,
            bounds,
            user=user,
            visible=spec.container.visible,
            input_folder=None if spec.input is None else str(folder / INPUT),
            output_folder=str(output),
        )
    except ValueError as error:
        raise BadInput("invalid_field", f"params: {error}") from None
    # One that an earlier start left would hold the name.
    _asked(runtime, "rm", "--force", name_of(spec.job_id))
    diary.work(0, 1)
    began_s = time.monotonic()
    code, said = _run(argv, diary, runtime, spec.job_id)
    if code == _NOT_STARTED and time.monotonic() - began_s < START_S:
        raise OwnersFault(f"the container could not be started ({code}): {said}")
    if code != 0:
        raise BadInput("invalid_field", f"params.command: the container ended with code {code}: {said}")
    diary.at(1)
    diary.save()
    return _end(output)


def _run(argv: tuple[str, ...], diary: Diary, runtime: str, job_id: str) -> tuple[int, str]:
    """Return the exit code and the last line; all lines, as far as they are not too many, are logged."""
    last = [""]
    try:
        client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603
    except OSError as error:
        raise OwnersFault(f"the runtime cannot be started: {error}") from error
    assert client.stdout is not None
    reader = threading.Thread(target=_read, args=[client.stdout, diary, last], daemon=True)
    reader.start()
    while client.poll() is None:
        if diary.should_stop:
            _asked(runtime, "stop", "--time", str(STOP_S), name_of(job_id))
            _asked(runtime, "rm", "--force", name_of(job_id))
            client.kill()
            client.wait()
            raise Stopped
        diary.at(0)
        time.sleep(LOOK_S)
    reader.join(STOP_S)
    return client.returncode, last[0]


def _read(stdout: IO[bytes], diary: Diary, last: list[str]) -> None:
    """Log what is said, by whole lines; of what has no end of line a part is a line."""
    lines = 0
    while line := stdout.readline(TEXT_CHARS_MAX):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        last[0] = text[:300] or last[0]
        lines += 1
        if lines <= LINES_MAX:
            diary.log(text)
        elif lines == LINES_MAX + 1:
            diary.log(f"more than {LINES_MAX} lines: what follows is not kept")


def _made_output(path: Path) -> tuple[Path, tuple[int, int]]:
    """Return the folder that the container may write, and as whom it does."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    user = (os.getuid(), os.getgid())
    if user[0] == 0:
        user = (NOBODY, NOBODY)
        os.chown(path, *user)
    return path, user


def _asked(runtime: str, *words: str) -> int:
    try:
        return subprocess.run(  # noqa: S603
            [runtime, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ASK_S,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OwnersFault(f"the container runtime does not answer: {error}") from error


def _end(output: Path) -> End:
    files = [*_left(output)]
    if len(files) > FILES_MAX:
        raise BadInput("invalid_field", f"params.command: the container left more than {FILES_MAX} files")

    def write(into: Path) -> None:
        for name, path in files:
            _copy(path, into / name)

    first = min((name for name, _ in files), default=REPORT)
    return End(artifact=first, write=write, final_metrics={"files": float(len(files))}, report={"files": len(files)})


def _left(output: Path) -> list[tuple[str, Path]]:
    """Return the regular files that the container left, under plain names; links are not followed."""
    found = []
    for parent, _, names in os.walk(output):
        for name in sorted(names):
            path = Path(parent) / name
            try:
                plain = to_file_name(path.relative_to(output).as_posix(), cased=True)
            except NotAFileName:
                continue
            if stat.S_ISREG(path.lstat().st_mode) and plain != REPORT:
                found.append((plain, path))
            if len(found) > FILES_MAX:
                return found
    return found


def _copy(path: Path, target: Path) -> None:
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(source, "rb") as opened, target.open("wb") as made:
        shutil.copyfileobj(opened, made)

"""
Checkpoints of a job in its folder: written beside the work by a thread, visible when they are whole.

safetensors and JSON only: to read one runs nothing.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import CHECKPOINTS, CHECKPOINTS_KEPT, MANIFEST, Spec
from gpu_worker.engine.diary import Diary
from wire.checkpoint import CheckpointFile, Manifest, misfit

_NEW = ".new"
# Where a job has no model or no hash: it can be gone on with here, and nowhere else.
_NO_HASH = "0" * 64


class Checkpoints:
    """The checkpoints of one start of a job. `stall_s` is how long the work has waited for them so far."""

    def __init__(self, spec: Spec, folder: Path, diary: Diary, *, steps: int) -> None:
        self._spec, self._folder, self._diary, self._steps = spec, folder / CHECKPOINTS, diary, steps
        self._writer: threading.Thread | None = None
        self._failed: Exception | None = None
        self.stall_s = 0.0
        for left in self._folder.glob(f"*{_NEW}"):  # an earlier start was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, make: Callable[[], Callable[[Path], None]]) -> None:
        """
        Begin to write the checkpoint of `step`; one that is being written is waited for first.

        Args:
            make: copies at once what may change, and returns what writes the copy into a folder, in a thread.

        Raises:
            OSError, OwnersFault: the one before could not be written.
        """
        began = time.perf_counter()
        self._join()
        write = make()
        self._writer = threading.Thread(target=self._write, args=[step, write], name=f"checkpoint {step}")
        self._writer.start()
        self.stall_s += time.perf_counter() - began

    def wait(self) -> None:
        """Return when the last one is whole. Raises as `save` does."""
        began = time.perf_counter()
        self._join()
        self.stall_s += time.perf_counter() - began

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
        self._writer = None
        if self._failed is not None:
            raise self._failed

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        try:
            new, path = self._folder / f"{step}{_NEW}", self._folder / str(step)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            write(new)
            files = tuple(_described(file) for file in sorted(new.iterdir()))
            manifest = Manifest(
                job_id=self._spec.job_id,
                step=step,
                steps=self._steps,
                model_hash=self._spec.model_hash or _NO_HASH,
                spec_hash=self._spec.spec_hash or _NO_HASH,
                created_at=datetime.now(UTC),
                files=files,
            )
            (new / MANIFEST).write_bytes(manifest.to_json())
            _sync(new / MANIFEST)
            shutil.rmtree(path, ignore_errors=True)
            new.replace(path)
            _sync(self._folder)
            self._diary.checkpoint(step)
            self._forget()
        except Exception as error:
            self._failed = error

    def _forget(self) -> None:
        """Keep the newest; older ones may still be read by who pushes them, hence not the newest alone."""
        steps = sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())
        for step in steps[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)


def checkpoint_of(spec: Spec, folder: Path, *, steps: int) -> Path | None:
    """
    Return the folder of the checkpoint to go on from, None where the job begins anew.

    Raises:
        BadInput: it is of other work (`checkpoint_mismatch`).
        OwnersFault: it is not there.
    """
    if spec.resume_step is None:
        return None
    path = folder / CHECKPOINTS / str(spec.resume_step)
    try:
        manifest = Manifest.from_json((path / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise OwnersFault(f"the checkpoint of step {spec.resume_step} is not there") from error
    wrong = misfit(manifest.description(), model_hash=spec.model_hash or _NO_HASH, spec_hash=spec.spec_hash or _NO_HASH)
    if wrong is None and (manifest.step != spec.resume_step or manifest.steps != steps):
        wrong = f"the checkpoint is of step {manifest.step} of {manifest.steps}, this job has {steps}"
    if wrong is None:
        for file in manifest.files:
            if not (path / file.name).is_file() or _described(path / file.name).sha256 != file.sha256:
                wrong = f"the checkpoint's {file.name} is not what its manifest says"
                break
    if wrong is not None:
        raise BadInput("checkpoint_mismatch", wrong)
    return path


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), path)


def load_tensors(path: Path, *, bytes_max: int) -> dict[str, Any]:
    """Return the tensors in the file. Raises BadInput where it is none of theirs, or larger than they can be."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.stat().st_size > bytes_max:
            raise BadInput("checkpoint_mismatch", f"the checkpoint's {path.name} is larger than the model is")
        found: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise BadInput("checkpoint_mismatch", f"the checkpoint's {path.name} cannot be read") from error
    return found


def _described(path: Path) -> CheckpointFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return CheckpointFile(name=path.name, bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

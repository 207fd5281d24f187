"""A file that is being fetched, in parts and perhaps by several tries: what is there of it, and its hash so far."""

import fcntl
import hashlib
import json
import os
from pathlib import Path

from gpu_worker.core.errors import OwnersFault

CHUNK_BYTES = 1024 * 1024


class PartFile:
    """
    Opens what is there of the file `name` in `folder`, and hashes it. Every method does file work.

    `size` is how much is there, `head` its first four bytes.

    Args:
        identity: says which content it is: what was begun of another one is not gone on with. None: that is not told.

    Raises:
        OwnersFault: another program fetches it, or the disk refuses.
    """

    def __init__(self, folder: Path, name: str, identity: str | None) -> None:
        mark = "once" if identity is None else hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._folder, self._name = folder, name
        self.size, self.head = 0, b""
        self._path = folder / f".{name}.{mark}.part"
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise OwnersFault(f"{name} cannot be kept: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OwnersFault(f"{name} is being fetched by another program") from None
        self.restart() if identity is None else self._read()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Raises OwnersFault: the disk refuses."""
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OwnersFault(f"{self._name} cannot be kept: {error.strerror}") from error
        self.head = (self.head + data[:4])[:4]
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Begin again with nothing."""
        self._file.truncate(0)
        self._hash, self.size, self.head = hashlib.sha256(), 0, b""

    def become(self, path: Path, origin: str = "") -> None:
        """
        Have it be the file `path`, which came from `origin`, and what was begun of others of its name gone.

        Raises OwnersFault: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
            about = os.fstat(self._file.fileno())
            self._path.rename(path)
            record = {"bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "sha256": self.sha256, "origin": origin}
            draft = record_of(path).with_suffix(".draft")
            draft.write_text(json.dumps(record))
            draft.rename(record_of(path))
            for other in self._folder.glob(f".{self._name}.*.part"):
                other.unlink(missing_ok=True)
        except OSError as error:
            raise OwnersFault(f"{self._name} cannot be kept: {error.strerror}") from error

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        self._hash = hashlib.sha256()
        self._file.seek(0)
        while data := self._file.read(CHUNK_BYTES):
            self.head = (self.head + data[:4])[:4]
            self._hash.update(data)
            self.size += len(data)


def record_of(path: Path) -> Path:
    """Return where it is kept what a file's hash was when it came."""
    return path.with_name(f".{path.name}.json")


def is_kept(path: Path, sha256: str | None, origin: str = "") -> bool:
    """Return whether the whole file is there as it came, with this hash; None: with whatever hash, from `origin`."""
    try:
        about, known = path.stat(), json.loads(record_of(path).read_text())
    except (OSError, ValueError):
        return False
    stamp = {"bytes": about.st_size, "mtime_ns": about.st_mtime_ns}
    if not isinstance(known, dict) or not stamp.items() <= known.items():
        return False
    return known.get("origin", "") == origin if sha256 is None else known.get("sha256") == sha256

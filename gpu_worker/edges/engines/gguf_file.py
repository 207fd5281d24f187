"""
A GGUF model on disk: its header, read bounded, and what that says. A model may be cut into several files.

Nothing is mapped and nothing is read beyond the header, so that a file that somebody cuts off meanwhile harms nobody.
"""

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.quantization.gguf_weights import check_adapter, weights_of_header
from gpu_worker.core.quantization.header import BadGguf, Header, Incomplete, parse
from gpu_worker.core.quantization.weights import Weights

# A vocabulary of a quarter of a million tokens with its merges has ten.
HEADER_BYTES_MAX = 128 * 1024 * 1024
FIRST_BYTES = 1024 * 1024
GROWS = 8
FILES_MAX = 1_000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """`path` is the file that llama.cpp is given: the first one where there are several. `bytes` are those of all."""

    path: Path
    files: tuple[Path, ...]
    header: Header
    weights: Weights
    bytes: int

    @property
    def name(self) -> str:
        return self.weights.name


def read_header(path: Path) -> Header:
    """
    Return the header of one file.

    Raises:
        BadGguf: it is none, or says what cannot be.
        OwnersFault: it cannot be read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise OwnersFault(f"{path.name} cannot be read: it is no file")
        size = about.st_size
        with path.open("rb") as file:
            data, much = b"", FIRST_BYTES
            while True:
                data += file.read(much - len(data))
                try:
                    return parse(data, size)
                except Incomplete:
                    if len(data) < much:
                        raise BadGguf("the file became shorter while it was read") from None
                    if much >= HEADER_BYTES_MAX:
                        raise BadGguf(f"its header is longer than {HEADER_BYTES_MAX:,} bytes") from None
                    much = min(much * GROWS, HEADER_BYTES_MAX)
    except OSError as error:
        raise OwnersFault(f"{path.name} cannot be read: {error.strerror}") from None
    except BadGguf as error:
        raise BadGguf(f"{path.name}: {error}") from None


def read_model(path: Path) -> GgufModel:
    """
    Return the model that begins in this file, all its parts checked.

    Raises:
        BadGguf: it is none that can be served; the sentence says why.
        OwnersFault: it cannot be read, or a part of it is not there.
    """
    files = _parts(path)
    headers = [read_header(file) for file in files]
    told = headers[0].values.get("split.count", 1)
    if type(told) is int and told > 1 and told != len(files):
        raise BadGguf(f"{path.name}: it is one of {told} files, and its name is not as llama.cpp calls them")
    try:
        weights = weights_of_header(headers, _stem(files[0]))
    except BadGguf as error:
        raise BadGguf(f"{path.name}: {error}") from None
    try:
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise OwnersFault(f"{path.name} cannot be read: {error.strerror}") from None
    return GgufModel(path=files[0], files=files, header=headers[0], weights=weights, bytes=size)


def check_lora(path: Path, model: GgufModel) -> None:
    """Raises BadGguf: the file is no LoRA adapter for this model. Raises OwnersFault: it cannot be read."""
    header = read_header(path)
    try:
        check_adapter(header, model.weights.architecture)
    except BadGguf as error:
        raise BadGguf(f"{path.name}: {error}") from None


def models_in(folder: Path) -> tuple[Path, ...]:
    """Return the first files of the models that lie in a folder, in order. Raises OwnersFault: too many lie there."""
    found = []
    for path in folder.glob("*.gguf"):
        part = _PART.fullmatch(path.name)
        if path.is_file() and (part is None or int(part["number"]) == 1):
            found.append(path)
        if len(found) > FILES_MAX:
            raise OwnersFault(f"more than {FILES_MAX:,} models lie in {folder.name}: name one of them")
    return tuple(sorted(found))


def _parts(path: Path) -> tuple[Path, ...]:
    """Return all files of a model, in order. Raises OwnersFault: one of them is not there."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return (path,)
    count = int(part["count"])
    if not 0 < count <= FILES_MAX:
        raise OwnersFault(f"{path.name} is one of {count} files: {FILES_MAX:,} are the most")
    files = tuple(path.with_name(f"{part['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    missing = next((file.name for file in files if not file.is_file()), None)
    if missing is not None:
        raise OwnersFault(f"the model has {count} files, and {missing} is not there")
    return files


def _stem(path: Path) -> str:
    part = _PART.fullmatch(path.name)
    return part["stem"] if part else path.stem

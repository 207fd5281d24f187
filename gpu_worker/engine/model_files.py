"""The files of a model's folder, looked at before any of them is loaded. Nothing of a model is run, nothing fetched."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_worker.core.errors import BadInput, OwnersFault

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The largest tokenizers have some tens of millions.
FILE_BYTES_MAX = 256 * 1024 * 1024
HEADER_BYTES_MAX = 100 * 1024 * 1024
_READ = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file. `dtype` is the file's word for it (`F32`, `BF16`)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def config_in(folder: Path) -> dict[str, Any]:
    """
    Return a folder's config.json.

    Raises:
        BadInput: the model needs code of its own, or its config is of no model.
        OwnersFault: its config cannot be read, or a file is far too large.
    """
    try:
        large = [
            path.name for path in folder.iterdir() if path.suffix in _READ and path.stat().st_size > FILE_BYTES_MAX
        ]
        if large:
            raise OwnersFault(f"the model's {large[0]} is larger than {FILE_BYTES_MAX} bytes")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OwnersFault(f"the model has no {CONFIG} that can be read") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise BadInput("model_unknown", "the model needs code of its own, which is not run here")
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that the model is in. Raises OwnersFault: it has none, or not all of them."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise OwnersFault(f"the model {folder.name} has no {WEIGHTS}, and nothing else is loaded")
        return (folder / WEIGHTS,)
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OwnersFault(f"the model's {INDEX} cannot be read") from error
    lost = strange or [name for name in names if not (folder / name).is_file()]
    if lost or not names:
        raise OwnersFault(f"the model's {INDEX} names {str(lost[:1])[1:-1] or 'nothing'}, which is no file of it")
    return tuple(folder / name for name in names)


def stored_in(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the names of a safetensors file's tensors and what they are, by its header. Raises OwnersFault."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > HEADER_BYTES_MAX:
                raise ValueError("a header of that size")
            header = json.loads(file.read(size))
        held, end = path.stat().st_size - 8 - size, 0
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end_here = about["data_offsets"]
            end = max(end, end_here)
            yield name, Stored(path, str(about["dtype"]), tuple(map(int, about["shape"])), end_here - begin)
        if end > held:
            raise ValueError("fewer bytes than its header says")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OwnersFault(f"the model cannot be loaded: {path.name} is cut off or broken") from error

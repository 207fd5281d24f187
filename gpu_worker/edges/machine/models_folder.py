"""
The models that lie in a folder: `NAME/` or `OWNER/NAME/`, each with its config.json and safetensors.

Nothing is downloaded here and nothing of a model is run: what needs code of its own is refused by name.
"""

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.model import LocalModel
from wire.jobs import ModelName

CONFIG_BYTES_MAX = 1024 * 1024
_NAME = re.compile(get_args(ModelName)[1].pattern)
# What a checkpoint must fit: the weights, the shape and the tokens, in whatever files a tokenizer keeps them.
_HASHED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "*.jinja",
)


class ModelsFolder:
    """`folder` holds the models and need not be there; `hashes` is a file that remembers what was hashed."""

    def __init__(self, folder: Path, hashes: Path) -> None:
        self._folder = folder
        self._hashes = hashes
        # Buyers who ask at once wait for one reading of what may be hundreds of gigabytes.
        self._one_reads = asyncio.Lock()

    async def find(self, name: str) -> LocalModel | None:
        """
        Return the model called `name`, None where it is not here.

        Raises:
            BadInput: it is here and cannot be used; the sentence says why.
            OwnersFault: its files cannot be read.
        """
        if not _NAME.match(name):
            return None
        async with self._one_reads:
            return await asyncio.to_thread(self._find, name)

    async def names(self) -> tuple[str, ...]:
        """Return what every folder with a config.json is called, in order."""
        return await asyncio.to_thread(self._names)

    def _names(self) -> tuple[str, ...]:
        found = (*self._folder.glob("*/config.json"), *self._folder.glob("*/*/config.json"))
        names = (path.parent.relative_to(self._folder).as_posix() for path in found)
        return tuple(sorted(name for name in names if _NAME.match(name)))

    def _find(self, name: str) -> LocalModel | None:
        folder = self._folder / name
        return local_model(folder, name, self._hashes) if (folder / "config.json").is_file() else None


def local_model(folder: Path, name: str, hashes: Path) -> LocalModel:
    """
    Return what lies in `folder`, every file of it hashed; `hashes` is a file that remembers what was.

    Raises:
        BadInput: it is no model that can be used; the sentence says why.
        OwnersFault: its files cannot be read.
    """
    config = read_config(folder / "config.json", name)
    try:
        files = sorted({path for form in _HASHED for path in folder.glob(form) if path.is_file()})
        if not any(path.suffix == ".safetensors" for path in files):
            raise BadInput("model_unknown", f"the model {name} has no safetensors, and nothing else is loaded")
        found = _hashed(files, hashes)
        size = sum(path.stat().st_size for path in files)
    except OSError as error:
        raise OwnersFault(f"the model {name} cannot be read: {error.strerror}") from None
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name} {found[str(path)]}\n".encode())
    return LocalModel(name=name, folder=str(folder), bytes=size, model_hash=whole.hexdigest(), config=config)


def _hashed(files: list[Path], hashes: Path) -> dict[str, str]:
    """Return the SHA-256 of each file; one whose size and time are those that were remembered is not read again."""
    remembered = _remembered(hashes)
    found, stamps = {}, {}
    for path in files:
        about = path.stat()
        stamp = f"{path} {about.st_size} {about.st_mtime_ns}"
        if stamp not in remembered:
            with path.open("rb") as file:
                remembered[stamp] = hashlib.file_digest(file, "sha256").hexdigest()
            stamps[stamp] = remembered[stamp]
        found[str(path)] = remembered[stamp]
    if stamps:
        _remember(hashes, {**remembered, **stamps})
    return found


def _remembered(hashes: Path) -> dict[str, str]:
    try:
        known = json.loads(hashes.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _remember(hashes: Path, known: dict[str, str]) -> None:
    hashes.parent.mkdir(parents=True, exist_ok=True)
    draft = hashes.with_name(f".{hashes.name}.{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.replace(hashes)


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Return a model's config.json. Raises BadInput where it is none, or asks for code of its own."""
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise BadInput("model_unknown", f"the config.json of {name} is larger than {CONFIG_BYTES_MAX} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadInput("model_unknown", f"the config.json of {name} cannot be read") from None
    if not isinstance(config, dict):
        raise BadInput("model_unknown", f"the config.json of {name} is no object")
    if "auto_map" in config:
        raise BadInput("model_unknown", f"the model {name} needs code of its own (auto_map), which is never run")
    return config

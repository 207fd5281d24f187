"""A model and its tokenizer from a folder of the owner's: no code of its own is run, nothing is downloaded."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.estimate import ModelShape
from gpu_worker.core.folder import Spec
from gpu_worker.core.owner import memory_share
from gpu_worker.engine.diary import Diary

CONFIG = "config.json"
# The largest tokenizers have some tens of millions.
FILE_BYTES_MAX = 256 * 1024 * 1024
HEADER_BYTES_MAX = 100 * 1024 * 1024
_READ = (".json", ".txt", ".model", ".jinja")
# A config of a kind that is not known is reckoned within this.
_TIMES = 2


def load(spec: Spec, diary: Diary, *, is_frozen: bool) -> tuple[Any, Any]:
    """
    Return the model on the job's device, and its tokenizer.

    What is `is_frozen` has half-precision weights where the device computes in it; what is trained has single ones.

    Raises:
        BadInput: the model needs code of its own.
        OwnersFault: the folder has no model that can be loaded.
    """
    if spec.model_folder is None:
        raise OwnersFault("the job has no model")
    folder = Path(spec.model_folder)
    with diary.during(f"loading {folder.name} on {spec.device}"):
        _check(folder)
        found = _loaded(spec, folder, is_frozen=is_frozen)
    diary.check()
    return found


def _loaded(spec: Spec, folder: Path, *, is_frozen: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(spec.threads)
    if spec.vram_bytes_max is not None and device_of(spec).type == "cuda":
        total_bytes = torch.cuda.get_device_properties(device_of(spec)).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_share(spec.vram_bytes_max, total_bytes))
    is_half = is_frozen and device_of(spec).type != "cpu"
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.bfloat16 if is_half else torch.float32,
            output_loading_info=True,
            **safe,
        )
    except Exception as error:  # a library of many authors: it may raise anything for a file that is wrong
        if isinstance(error, MemoryError | RuntimeError) and "memory" in str(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise OwnersFault(f"the model cannot be loaded: {said[:300]}") from error
    if missing := sorted(told["missing_keys"]):
        # They would be drawn by chance.
        raise OwnersFault(f"the model's files lack {len(missing)} of its tensors, {missing[0]} among them")
    return model.to(device_of(spec)), tokenizer


def device_of(spec: Spec) -> torch.device:
    return torch.device(spec.device)


def length_of(model: Any, wanted: int, field: str = "params.sequenceLength") -> int:
    """Return `wanted` where the model reads so many tokens. Raises BadInput."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and wanted > longest:
        raise BadInput("invalid_field", f"{field}: this model reads at most {longest} tokens")
    return wanted


def _check(folder: Path) -> None:
    """
    Refuse what would run code or fill the memory, before any of it is loaded.

    Raises:
        BadInput: the model needs code of its own, or its config is of no model.
        OwnersFault: its files are not what its config says, or far too large.
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
    said, held = ModelShape.from_config(config).parameters, _numbers_in(folder)
    if said > _TIMES * held:
        # It would be allocated first and found missing then.
        raise OwnersFault(
            f"the model's config.json says {said} numbers, its files have {held}: {4 * (said - held)} bytes are missing"
        )


def _numbers_in(folder: Path) -> int:
    """Return how many numbers the folder's safetensors have, by their headers. Raises OwnersFault."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > HEADER_BYTES_MAX:
                    raise ValueError("a header of that size")
                header = json.loads(file.read(size))
            total += sum(math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise OwnersFault(f"the model's {path.name} is cut off or broken") from error
    return total

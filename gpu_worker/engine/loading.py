"""A model and its tokenizer from a folder of the owner's: no code of its own is run, nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.estimate import ModelShape
from gpu_worker.core.folder import Spec
from gpu_worker.core.owner import memory_share
from gpu_worker.engine.diary import Diary
from gpu_worker.engine.model_files import config_in, stored_in

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
    said = ModelShape.from_config(config_in(folder)).parameters
    held = sum(each.numbers for path in folder.glob("*.safetensors") for _, each in stored_in(path))
    if said > _TIMES * held:
        # It would be allocated first and found missing then.
        raise OwnersFault(
            f"the model's config.json says {said} numbers, its files have {held}: {4 * (said - held)} bytes are missing"
        )

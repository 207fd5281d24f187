"""A model and its tokenizer from a folder of the owner's: no code of its own is run, nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.dataset import Record
from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import INPUT, Spec

CONFIG = "config.json"


def load(spec: Spec, *, is_frozen: bool) -> tuple[Any, Any]:
    """
    Return the model on the job's device, and its tokenizer.

    What is `is_frozen` has half-precision weights where the device computes in it; what is trained has single ones.

    Raises:
        BadInput: the model needs code of its own.
        OwnersFault: the folder has no model that can be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(spec.threads)
    if spec.model_folder is None:
        raise OwnersFault("the job has no model")
    folder = Path(spec.model_folder)
    _refuse_code(folder)
    is_half = is_frozen and device_of(spec).type != "cpu"
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.bfloat16 if is_half else torch.float32, **safe
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        raise OwnersFault(f"the model cannot be loaded: {str(error).splitlines()[0][:300]}") from error
    return model.to(device_of(spec)), tokenizer


def device_of(spec: Spec) -> torch.device:
    return torch.device(spec.device)


def length_of(model: Any, wanted: int, field: str = "params.sequenceLength") -> int:
    """Return `wanted` where the model reads so many tokens. Raises BadInput."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and wanted > longest:
        raise BadInput("invalid_field", f"{field}: this model reads at most {longest} tokens")
    return wanted


def input_records(spec: Spec, folder: Path, records_max: int | None = None) -> list[Record]:
    """Return what the job works on, the first `records_max` of it."""
    if spec.input is None:
        raise BadInput("dataset_unavailable", "the job has no dataset")
    found: list[Record] = []
    with (folder / INPUT / spec.input.name).open(encoding="utf-8") as file:
        for line in file:
            if records_max is not None and len(found) >= records_max:
                break
            found.append(json.loads(line))
    return found


def _refuse_code(folder: Path) -> None:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OwnersFault(f"the model has no {CONFIG} that can be read") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise BadInput("model_unknown", "the model needs code of its own, which is not run here")

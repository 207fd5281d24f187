"""A training as it is at a step: what of it a checkpoint holds, and how it is taken up again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import BadInput
from gpu_worker.core.folder import HISTORY_FILE, MODEL_FILE, OPTIMIZER_FILE
from gpu_worker.engine.checkpoint import load_tensors, save_tensors
from gpu_worker.engine.sequences import Sequences
from wire import decimal_json
from wire.jobs import FineTune
from wire.vendor import MetricPoint

HISTORY_BYTES_MAX = 16 * 1024 * 1024
# Bytes of a number of a checkpoint, what a tensor's name and shape take; beyond so many times of it none is loaded.
_NUMBER_BYTES, _NAME_BYTES, _TIMES = 4, 1_024, 4
_PARTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(kw_only=True)
class Training:
    """One start of a job: the model, what it learns from, and how far it is."""

    params: FineTune
    seed: int
    model: Any
    device: torch.device
    sequences: Sequences
    held_out: Sequences
    steps: int
    optimizer: torch.optim.Optimizer
    trained: dict[str, Any]
    step: int = 0
    history: list[MetricPoint] = field(default_factory=list)


def copied(training: Training) -> Callable[[Path], None]:
    """Return what writes the training as it is now: the next step changes all of it."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", copy=True).contiguous()

    model = {name: copy(tensor) for name, tensor in training.trained.items()}
    moments = {
        f"{part}.{name}": copy(training.optimizer.state[tensor][part])
        for name, tensor in training.trained.items()
        for part in _PARTS
        if part in training.optimizer.state[tensor]
    }
    history = decimal_json.dumps([point.document() for point in training.history])

    def write(into: Path) -> None:
        save_tensors(model, into / MODEL_FILE)
        save_tensors(moments, into / OPTIMIZER_FILE)
        (into / HISTORY_FILE).write_bytes(history)

    return write


def restore(training: Training, path: Path) -> None:
    """Take the training up where the checkpoint in `path` left it. Raises BadInput."""
    bytes_max = _TIMES * sum(_NUMBER_BYTES * tensor.numel() + _NAME_BYTES for tensor in training.trained.values())
    saved = load_tensors(path / MODEL_FILE, bytes_max=bytes_max)
    moments = load_tensors(path / OPTIMIZER_FILE, bytes_max=len(_PARTS) * bytes_max)
    shapes = {name: tensor.shape for name, tensor in training.trained.items()}
    if {name: tensor.shape for name, tensor in saved.items()} != shapes:
        raise BadInput("checkpoint_mismatch", "the checkpoint's tensors are not those of the model")
    if not all(bool(tensor.isfinite().all()) for tensor in (*saved.values(), *moments.values())):
        raise BadInput("checkpoint_mismatch", "the checkpoint has numbers in it that are none")
    with torch.no_grad():
        for name, tensor in training.trained.items():
            tensor.copy_(saved[name])
            found = {part: moments[f"{part}.{name}"] for part in _PARTS if f"{part}.{name}" in moments}
            if not found:
                continue
            if [value.shape for value in found.values()] != [torch.Size(()), tensor.shape, tensor.shape]:
                raise BadInput("checkpoint_mismatch", "the checkpoint's moments are not those of the model")
            # The count of steps stays on the CPU, where AdamW wants it.
            training.optimizer.state[tensor] = {
                part: value if part == "step" else value.to(tensor.device) for part, value in found.items()
            }
    try:
        with (path / HISTORY_FILE).open("rb") as file:
            points = decimal_json.loads(file.read(HISTORY_BYTES_MAX))
        training.history = [MetricPoint.model_validate(point) for point in points]
    except (OSError, ValueError, TypeError) as error:
        raise BadInput("checkpoint_mismatch", "the checkpoint's history cannot be read") from error

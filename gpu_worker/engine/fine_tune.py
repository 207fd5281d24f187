"""
Fine-tuning of a causal language model, all of it or adapters alone.

Which sequences a step takes, its learning rate and its dropout are functions of (seed, step): a job that goes on from
a checkpoint, here or elsewhere, does what it would have done.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.dataset import held_out
from gpu_worker.core.errors import BadInput
from gpu_worker.core.folder import HISTORY_FILE, MODEL_FILE, OPTIMIZER_FILE, Spec
from gpu_worker.core.report import HELD_OUT_LOSS, LOSS
from gpu_worker.engine.batches import IGNORED, Sequences, batch_of, batches, sequences_of, sow
from gpu_worker.engine.checkpoint import Checkpoints, checkpoint_of, load_tensors, save_tensors
from gpu_worker.engine.diary import Diary, Stopped, decimal_of
from gpu_worker.engine.loading import device_of, input_records, length_of, load
from gpu_worker.engine.lora import ADAPTER, save_adapters, with_adapters
from gpu_worker.engine.result import End
from wire import decimal_json
from wire.jobs import FineTune
from wire.vendor import MetricPoint

# What is held out costs time at every checkpoint: so many sequences of it at most, the first ones.
HELD_OUT_MAX = 32
# So many points of the loss at most, whatever the number of steps.
POINTS_MAX = 500
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


def fine_tune(spec: Spec, folder: Path, diary: Diary) -> End:
    """
    Train, and return what was made.

    Raises:
        Stopped: the newest checkpoint is of where it stopped.
        BadInput, OwnersFault: it cannot be done.
    """
    params = FineTune.model_validate(spec.params)
    diary.log(f"loading {params.model or 'the model'} on {spec.device}")
    training, tokenizer = _prepared(spec, folder, params)
    diary.check()
    checkpoints = Checkpoints(spec, folder, diary, steps=training.steps)
    diary.work(training.step, training.steps)
    diary.log(
        f"training {sum(tensor.numel() for tensor in training.trained.values())} numbers on {len(training.sequences)} "
        f"sequences, {len(training.held_out)} held out, from step {training.step} to {training.steps}"
    )
    seconds = train(training, diary, checkpoints, spec.checkpoint_steps)
    diary.save()
    losses = [float(point.values[HELD_OUT_LOSS]) for point in training.history if HELD_OUT_LOSS in point.values]
    return End(
        artifact=ADAPTER if params.method == "lora" else MODEL_FILE,
        write=lambda into: _write_model(training, tokenizer, into, params.model or Path(str(spec.model_folder)).name),
        final_metrics={HELD_OUT_LOSS: losses[-1], "eval_loss_start": losses[0], LOSS: _last(training.history, LOSS)},
        report={
            "heldOut": {
                "sequences": len(training.held_out),
                "lossStart": Decimal(repr(losses[0])),
                "lossEnd": Decimal(repr(losses[-1])),
            },
            "steps": training.steps,
            "trainedSeconds": decimal_of(seconds),
            "stalledSeconds": decimal_of(checkpoints.stall_s),
            "torch": str(torch.__version__),
        },
        history=training.history,
    )


def _prepared(spec: Spec, folder: Path, params: FineTune) -> tuple[Training, Any]:
    model, tokenizer = load(spec, is_frozen=params.method == "lora")
    seed = params.seed + spec.index
    if params.method == "lora":
        sow(seed, "adapters", device_of(spec))
        model = with_adapters(model, params.lora)
    length = length_of(model, params.sequence_length)
    vocabulary = model.get_input_embeddings().num_embeddings
    learned, kept_back = (
        sequences_of(records, params.form, tokenizer, length, vocabulary)
        for records in held_out(input_records(spec, folder), params.eval_share)
    )
    # A shared tensor has one name, its first.
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    training = Training(
        params=params,
        seed=seed,
        model=model,
        device=device_of(spec),
        sequences=learned,
        held_out=kept_back.first(HELD_OUT_MAX),
        steps=params.steps_of(len(learned)),
        optimizer=torch.optim.AdamW(trained.values(), weight_decay=float(params.weight_decay)),
        trained=trained,
    )
    found = checkpoint_of(spec, folder, steps=training.steps)
    if found is not None:
        _restore(training, found)
        training.step = spec.resume_step or 0
    return training, tokenizer


def train(training: Training, diary: Diary, checkpoints: Checkpoints, checkpoint_steps: int) -> float:
    """
    Train to the last step; return the seconds that the steps took, checkpoints included and evaluations not.

    Raises:
        Stopped: the newest checkpoint is of where it stopped.
        BadInput: the loss is no number any more.
    """
    every = max(1, math.ceil(training.steps / POINTS_MAX))
    if training.step == 0:
        _evaluate(training, diary)
    seconds, noted_s, tokens = 0.0, 0.0, 0
    while training.step < training.steps:
        began = time.perf_counter()
        loss, count = one_step(training)
        training.step += 1
        tokens += count
        diary.at(training.step, tokens=count)
        # To read a loss is to wait for it: not at every step of many.
        is_noted = training.step % every == 0 or training.step == training.steps
        values = {LOSS: _finite(training, loss)} if is_noted else {}
        seconds += time.perf_counter() - began
        if is_noted:
            rate = rate_of(training, training.step - 1)
            _note(training, diary, {**values, "learning_rate": rate, "tokens_per_second": tokens / (seconds - noted_s)})
            noted_s, tokens = seconds, 0
        if training.step == training.steps:
            break
        is_due, is_asked_to_stop = training.step % checkpoint_steps == 0, diary.should_stop
        if is_due:
            _evaluate(training, diary)
        if is_due or is_asked_to_stop:
            began = time.perf_counter()
            checkpoints.save(training.step, lambda: _copied(training))
            seconds += time.perf_counter() - began
        if is_asked_to_stop:
            checkpoints.wait()
            raise Stopped
    _evaluate(training, diary)
    return seconds


def one_step(training: Training) -> tuple[torch.Tensor, int]:
    """Do one step; return its mean loss and how many tokens it read."""
    params, size = training.params, training.params.batch_size
    numbers = batch_of(
        training.step, seed=training.seed, size=size * params.accumulation, count=len(training.sequences)
    )
    parts = [training.sequences.batch(numbers[at : at + size]) for at in range(0, len(numbers), size)]
    wanted = max(sum(int((targets != IGNORED).sum()) for _, _, targets in parts), 1)
    sow(training.seed, f"step {training.step}", training.device)
    training.model.train()
    for group in training.optimizer.param_groups:
        group["lr"] = rate_of(training, training.step)
    total = torch.zeros((), device=training.device)
    for part in parts:
        loss = loss_of(training.model, part, training.device) / wanted
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(training.trained.values(), float(params.gradient_clip))
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return total, sum(int(mask.sum()) for _, mask, _ in parts)


def loss_of(model: Any, part: tuple[torch.Tensor, torch.Tensor, torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum of the losses of all tokens that are to be predicted."""
    ids, mask, targets = (tensor.to(device) for tensor in part)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def mean_loss(model: Any, sequences: Sequences, size: int, device: torch.device, beat: Callable[[], None]) -> float:
    """Return the mean loss of what is to be predicted in all of `sequences`, counted token by token."""
    model.eval()
    total, wanted = 0.0, 0
    with torch.no_grad():
        for numbers in batches(len(sequences), size):
            part = sequences.batch(numbers)
            total += float(loss_of(model, part, device))
            wanted += int((part[2] != IGNORED).sum())
            beat()
    return total / max(wanted, 1)


def rate_of(training: Training, step: int) -> float:
    """Return the learning rate of a step: up to its height in a line, down to nothing as a cosine."""
    params = training.params
    height = float(params.learning_rate)
    if step < params.warmup_steps:
        return height * (step + 1) / params.warmup_steps
    done = (step - params.warmup_steps) / max(training.steps - params.warmup_steps, 1)
    return height * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _evaluate(training: Training, diary: Diary) -> None:
    def beat() -> None:
        diary.at(training.step)

    loss = mean_loss(training.model, training.held_out, training.params.batch_size, training.device, beat)
    _note(training, diary, {HELD_OUT_LOSS: _finite(training, loss)})


def _finite(training: Training, loss: torch.Tensor | float) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise BadInput(
            "invalid_field", f"params.learningRate: the loss is no number any more at step {training.step}; lower it"
        )
    return value


def _note(training: Training, diary: Diary, values: dict[str, float]) -> None:
    diary.metric(training.step, values)
    known = {name: number for name, value in values.items() if (number := decimal_of(value)) is not None}
    if training.history and training.history[-1].step == training.step:
        known = {**training.history.pop().values, **known}
    training.history.append(MetricPoint(step=training.step, values=known))


def _last(history: list[MetricPoint], name: str) -> float:
    return next((float(point.values[name]) for point in reversed(history) if name in point.values), math.nan)


def _copied(training: Training) -> Callable[[Path], None]:
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


def _restore(training: Training, path: Path) -> None:
    """Take the training up where the checkpoint in `path` left it. Raises BadInput."""
    saved, moments = load_tensors(path / MODEL_FILE), load_tensors(path / OPTIMIZER_FILE)
    shapes = {name: tensor.shape for name, tensor in training.trained.items()}
    if {name: tensor.shape for name, tensor in saved.items()} != shapes:
        raise BadInput("checkpoint_mismatch", "the checkpoint's tensors are not those of the model")
    with torch.no_grad():
        for name, tensor in training.trained.items():
            tensor.copy_(saved[name])
            found = {part: moments[f"{part}.{name}"] for part in _PARTS if f"{part}.{name}" in moments}
            if any(found[part].shape != tensor.shape for part in _PARTS[1:] if part in found):
                raise BadInput("checkpoint_mismatch", "the checkpoint's moments are not those of the model")
            if found:
                # The count of steps stays on the CPU, where AdamW wants it.
                training.optimizer.state[tensor] = {
                    part: value if part == "step" else value.to(tensor.device) for part, value in found.items()
                }
    try:
        points = decimal_json.loads((path / HISTORY_FILE).read_bytes())
        training.history = [MetricPoint.model_validate(point) for point in points]
    except (OSError, ValueError, TypeError) as error:
        raise BadInput("checkpoint_mismatch", "the checkpoint's history cannot be read") from error


def _write_model(training: Training, tokenizer: Any, into: Path, name: str) -> None:
    if training.params.method == "lora":
        save_adapters(training.model, into, name)
    else:
        training.model.save_pretrained(into)
    tokenizer.save_pretrained(into)

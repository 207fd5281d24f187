"""
Fine-tuning of a causal language model, all of it or adapters alone.

Which sequences a step takes, its learning rate and its dropout are functions of (seed, step): a job that goes on from
a checkpoint, here or elsewhere, does what it would have done.
"""

import math
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import INPUT, MODEL_FILE, TOKENS, Spec
from gpu_worker.core.report import HELD_OUT_LOSS, LOSS
from gpu_worker.engine.batches import batch_of, group, groups, sow
from gpu_worker.engine.checkpoint import Checkpoints, checkpoint_of
from gpu_worker.engine.diary import Diary, Stopped, decimal_of
from gpu_worker.engine.loading import device_of, length_of, load
from gpu_worker.engine.lora import ADAPTER, save_adapters, with_adapters
from gpu_worker.engine.records import input_records, split
from gpu_worker.engine.result import End
from gpu_worker.engine.sequences import IGNORED, Sequences, sequences_of
from gpu_worker.engine.training import Training, copied, restore
from wire.jobs import FineTune
from wire.vendor import MetricPoint

# What is held out costs time at every checkpoint: so many sequences of it at most, the first ones.
HELD_OUT_MAX = 32
# So many points of the loss at most, whatever the number of steps.
POINTS_MAX = 500


def fine_tune(spec: Spec, folder: Path, diary: Diary) -> End:
    """
    Train, and return what was made.

    Raises:
        Stopped: the newest checkpoint is of where it stopped.
        BadInput, OwnersFault: it cannot be done.
    """
    params = FineTune.model_validate(spec.params)
    training, tokenizer = _prepared(spec, folder, params, diary)
    diary.history = training.history
    checkpoints = Checkpoints(spec, folder, diary, steps=training.steps)
    diary.work(training.step, training.steps)
    diary.log(
        f"training {sum(tensor.numel() for tensor in training.trained.values())} numbers on {len(training.sequences)} "
        f"sequences, {len(training.held_out)} held out, from step {training.step} to {training.steps}"
    )
    seconds, evaluated_s = train(training, diary, checkpoints, spec.checkpoint_steps)
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
            "evaluatedSeconds": decimal_of(evaluated_s),
            "stalledSeconds": decimal_of(checkpoints.stall_s),
            "torch": str(torch.__version__),
        },
        history=training.history,
    )


def _prepared(spec: Spec, folder: Path, params: FineTune, diary: Diary) -> tuple[Training, Any]:
    model, tokenizer = load(spec, diary, is_frozen=params.method == "lora")
    seed = params.seed + spec.index
    if params.method == "lora":
        sow(seed, "adapters", device_of(spec))
        model = with_adapters(model, params.lora)
    learned, kept_back = _sequences(spec, folder, params, diary, model, tokenizer)
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
        restore(training, found)
        training.step = spec.resume_step or 0
    return training, tokenizer


def _sequences(
    spec: Spec, folder: Path, params: FineTune, diary: Diary, model: Any, tokenizer: Any
) -> tuple[Sequences, Sequences]:
    """Return what is learned from and what is held out. Raises BadInput."""
    length = length_of(model, params.sequence_length)
    vocabulary = model.get_input_embeddings().num_embeddings
    if spec.resume_step is None:
        # To do it again is not the buyer's affair.
        diary.begin()
    records = input_records(spec, folder)
    diary.log(f"preparing {len(records)} records")
    sides = split(records, params.eval_share, lambda done: diary.beat(f"looked at {done} of {len(records)} records"))
    made = []
    for name, numbers in zip(TOKENS, sides, strict=True):
        told = f"of {len(numbers)} records {'to learn from' if name == TOKENS[0] else 'held out'}"
        found = records.each(lambda done, told=told: diary.beat(f"prepared {done} {told}"), numbers)  # type: ignore[misc]
        made.append(sequences_of(found, params.form, tokenizer, length, vocabulary, folder / INPUT / name))
    return made[0], made[1]


def train(training: Training, diary: Diary, checkpoints: Checkpoints, checkpoint_steps: int) -> tuple[float, float]:
    """
    Train to the last step; return the seconds that the steps took, checkpoints included, and those of the evaluations.

    Raises:
        Stopped: the newest checkpoint is of where it stopped.
        BadInput: the loss is no number any more.
        OwnersFault: it was none from the beginning.
    """
    every = max(1, math.ceil(training.steps / POINTS_MAX))
    seconds, noted_s, tokens, evaluated_s = 0.0, 0.0, 0, 0.0
    if training.step == 0:
        evaluated_s += _evaluate(training, diary)
    while training.step < training.steps:
        began = time.perf_counter()
        loss, count = one_step(training, lambda: diary.at(training.step))
        training.step += 1
        tokens += count
        diary.at(training.step, tokens=count)
        # To read a loss is to wait for it: not at every step of many.
        is_noted = training.step % every == 0 or training.step == training.steps
        values = {LOSS: _finite(training, loss)} if is_noted else {}
        if is_noted:
            rate, lasted_s = rate_of(training, training.step - 1), seconds + time.perf_counter() - began - noted_s
            _note(training, diary, {**values, "learning_rate": rate, "tokens_per_second": tokens / lasted_s})
            noted_s, tokens = noted_s + lasted_s, 0
        seconds += time.perf_counter() - began
        if training.step == training.steps:
            break
        is_due, is_asked_to_stop = training.step % checkpoint_steps == 0, diary.should_stop
        if is_due:
            evaluated_s += _evaluate(training, diary)
        elif is_asked_to_stop:
            # What is no number is no checkpoint.
            _finite(training, loss)
        if is_due or is_asked_to_stop:
            began = time.perf_counter()
            checkpoints.save(training.step, lambda: copied(training))
            seconds += time.perf_counter() - began
        if is_asked_to_stop:
            checkpoints.wait()
            raise Stopped
    evaluated_s += _evaluate(training, diary)
    return seconds, evaluated_s


def one_step(training: Training, beat: Callable[[], None]) -> tuple[torch.Tensor, int]:
    """Do one step, with a `beat` after each part of it; return its mean loss and how many tokens it read."""
    params, size = training.params, training.params.batch_size
    numbers = batch_of(
        training.step, seed=training.seed, size=size * params.accumulation, count=len(training.sequences)
    )
    parts = [training.sequences.batch(numbers[at : at + size]) for at in range(0, len(numbers), size)]
    wanted = max(sum(int((targets != IGNORED).sum()) for _, _, targets in parts), 1)
    sow(training.seed, f"step {training.step}", training.device)
    training.model.train()
    for each in training.optimizer.param_groups:
        each["lr"] = rate_of(training, training.step)
    total = torch.zeros((), device=training.device)
    for part in parts:
        loss = loss_of(training.model, part, training.device) / wanted
        loss.backward()
        total += loss.detach()
        # A step of many parts may last longer than a program may be silent.
        beat()
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
        for number in range(groups(len(sequences), size)):
            part = sequences.batch(group(number, len(sequences), size))
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


def _evaluate(training: Training, diary: Diary) -> float:
    """Note the loss on what is held out; return how many seconds that took."""
    began = time.perf_counter()

    def beat() -> None:
        diary.at(training.step)

    loss = mean_loss(training.model, training.held_out, training.params.batch_size, training.device, beat)
    held_out = _finite(training, loss)
    _note(training, diary, {HELD_OUT_LOSS: held_out})
    diary.log(f"step {training.step} of {training.steps}: loss on what is held out {held_out:.4f}")
    return time.perf_counter() - began


def _finite(training: Training, loss: torch.Tensor | float) -> float:
    value = float(loss)
    if math.isfinite(value):
        return value
    if training.step == 0:
        raise OwnersFault("the model's loss is no number before the first step")
    raise BadInput(
        "invalid_field", f"params.learningRate: the loss is no number any more at step {training.step}; lower it"
    )


def _note(training: Training, diary: Diary, values: dict[str, float]) -> None:
    diary.metric(training.step, values)
    known = {name: number for name, value in values.items() if (number := decimal_of(value)) is not None}
    if training.history and training.history[-1].step == training.step:
        known = {**training.history.pop().values, **known}
    training.history.append(MetricPoint(step=training.step, values=known))


def _last(history: list[MetricPoint], name: str) -> float:
    return next((float(point.values[name]) for point in reversed(history) if name in point.values), math.nan)


def _write_model(training: Training, tokenizer: Any, into: Path, name: str) -> None:
    if training.params.method == "lora":
        save_adapters(training.model, into, name)
    else:
        training.model.save_pretrained(into)
    tokenizer.save_pretrained(into)

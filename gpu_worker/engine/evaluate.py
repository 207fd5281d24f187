"""How good a model is on a dataset: its perplexity on texts, or how often it completes a prompt exactly."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import INPUT, TOKENS, Spec
from gpu_worker.core.report import HELD_OUT_LOSS
from gpu_worker.engine.batches import group, groups
from gpu_worker.engine.checkpoint import Checkpoints, checkpoint_of
from gpu_worker.engine.diary import Diary, Stopped
from gpu_worker.engine.fine_tune import loss_of
from gpu_worker.engine.generate import complete
from gpu_worker.engine.loading import device_of, length_of, load
from gpu_worker.engine.records import input_records
from gpu_worker.engine.result import End
from gpu_worker.engine.sequences import IGNORED, sequences_of
from wire import decimal_json
from wire.jobs import Evaluate
from wire.vendor import MetricPoint

SUMS_FILE = "sums.json"
ANSWER = "evaluation.json"

# Adds what one batch comes to: (loss, tokens) or (exact, asked).
_Sums = tuple[float, int]


def evaluate(spec: Spec, folder: Path, diary: Diary) -> End:
    """
    Return the perplexity, or the share of exact matches, of the dataset's first records.

    Raises:
        Stopped: what is counted so far is in the newest checkpoint.
        BadInput, OwnersFault: it cannot be done.
    """
    params = Evaluate.model_validate(spec.params)
    model, tokenizer = load(spec, diary, is_frozen=True)
    model.eval()
    prepare = _perplexity if params.metric == "perplexity" else _exact_match
    if spec.resume_step is None:
        diary.begin()
    count, one_batch = prepare(spec, folder, params, diary, model, tokenizer)
    steps = groups(count, params.batch_size)
    found = checkpoint_of(spec, folder, steps=steps)
    step, total, asked = 0, 0.0, 0
    if found is not None:
        step, total, asked = spec.resume_step or 0, *_sums_in(found)
    checkpoints = Checkpoints(spec, folder, diary, steps=steps)
    diary.work(step, steps)
    for number in range(step, steps):
        more, counted = one_batch(group(number, count, params.batch_size))
        if not math.isfinite(more):
            raise OwnersFault(f"the model's loss is no number at batch {number + 1}")
        total, asked = total + more, asked + counted
        diary.at(number + 1)
        is_due, is_asked_to_stop = (number + 1) % spec.checkpoint_steps == 0, diary.should_stop
        if (is_due or is_asked_to_stop) and number + 1 < steps:
            diary.metric(number + 1, _metrics(params, total, asked))
            checkpoints.save(number + 1, lambda sums=(total, asked): _writer(sums))  # type: ignore[misc]
            if is_asked_to_stop:
                checkpoints.wait()
                raise Stopped
    checkpoints.wait()
    metrics = _metrics(params, total, asked)
    diary.metric(steps, metrics)
    diary.save()
    answer = {name: Decimal(repr(value)) for name, value in metrics.items()} | {"counted": asked}
    return End(
        artifact=ANSWER,
        write=lambda into: _write(into / ANSWER, answer),
        final_metrics=metrics,
        report={"answer": answer},
        history=[MetricPoint(step=steps, values={name: Decimal(repr(value)) for name, value in metrics.items()})],
    )


def _perplexity(
    spec: Spec, folder: Path, params: Evaluate, diary: Diary, model: Any, tokenizer: Any
) -> tuple[int, Callable[[range], _Sums]]:
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    records = input_records(spec, folder, params.records_max)
    length = length_of(model, params.sequence_length)
    each = records.each(lambda done: diary.beat(f"prepared {done} of {len(records)} records"))
    sequences = sequences_of(each, params.form, tokenizer, length, vocabulary, folder / INPUT / TOKENS[1])

    def one_batch(numbers: range) -> _Sums:
        part = sequences.batch(numbers)
        with torch.no_grad():
            loss = float(loss_of(model, part, device_of(spec)))
        return loss, int((part[2] != IGNORED).sum())

    return len(sequences), one_batch


def _exact_match(
    spec: Spec, folder: Path, params: Evaluate, diary: Diary, model: Any, tokenizer: Any
) -> tuple[int, Callable[[range], _Sums]]:
    records = input_records(spec, folder, params.records_max)
    told = records.each(lambda done: diary.beat(f"looked at {done} of {len(records)} records"))
    line = next((number for number, record in enumerate(told, 1) if "completion" not in record), None)
    if line is not None:
        raise BadInput("dataset_unavailable", f'record {line} has no "completion"')

    def one_batch(numbers: range) -> _Sums:
        asked = records.of(numbers)
        said = complete(model, tokenizer, asked, max_new_tokens=params.max_new_tokens)
        exact = sum(text.strip() == record["completion"].strip() for text, record in zip(said, asked, strict=True))
        return float(exact), len(asked)

    return len(records), one_batch


def _metrics(params: Evaluate, total: float, asked: int) -> dict[str, float]:
    if params.metric == "exact_match":
        return {"exact_match": total / max(asked, 1)}
    loss = total / max(asked, 1)
    # Beyond this a float has no word for it.
    return {HELD_OUT_LOSS: loss, "perplexity": math.exp(min(loss, 700.0))}


def _writer(sums: _Sums) -> Callable[[Path], None]:
    return lambda into: _write(into / SUMS_FILE, {"total": repr(sums[0]), "counted": sums[1]})


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(decimal_json.dumps(document) + b"\n")


def _sums_in(path: Path) -> _Sums:
    try:
        sums = json.loads((path / SUMS_FILE).read_bytes())
        total, counted = float(sums["total"]), int(sums["counted"])
        if not math.isfinite(total) or counted < 0:
            raise ValueError("no sums")
        return total, counted
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput("checkpoint_mismatch", "the checkpoint's sums cannot be read") from error

"""A completion for every record of a dataset, in its order, a batch at a time."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.dataset import Record
from gpu_worker.core.errors import BadInput
from gpu_worker.core.folder import Spec
from gpu_worker.engine.batches import group, groups, sow
from gpu_worker.engine.chats import asked_ids
from gpu_worker.engine.checkpoint import Checkpoints
from gpu_worker.engine.completions import Completions
from gpu_worker.engine.diary import Diary, Stopped
from gpu_worker.engine.loading import device_of, load
from gpu_worker.engine.records import input_records
from gpu_worker.engine.result import End
from wire.jobs import Generate


def generate(spec: Spec, folder: Path, diary: Diary) -> End:
    """
    Return a line for each record: `{"id"?, "completion"}`.

    Raises:
        Stopped: what is written so far is in the newest checkpoint.
        BadInput, OwnersFault: it cannot be done.
    """
    params = Generate.model_validate(spec.params)
    model, tokenizer = load(spec, diary, is_frozen=True)
    model.eval()
    records = input_records(spec, folder)
    steps = groups(len(records), params.batch_size)
    made = Completions(spec, folder, steps)
    checkpoints = Checkpoints(spec, folder, diary, steps=steps)
    diary.work(made.step, steps)
    for number in range(made.step, steps):
        sow(params.seed + spec.index, f"batch {number}", device_of(spec))
        asked = records.of(group(number, len(records), params.batch_size))
        said = complete(
            model,
            tokenizer,
            asked,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
        )
        made.add(asked, said)
        diary.at(made.step, tokens=sum(len(tokenizer(text)["input_ids"]) for text in said))
        is_due, is_asked_to_stop = made.step % spec.checkpoint_steps == 0, diary.should_stop
        if (is_due or is_asked_to_stop) and made.step < steps:
            checkpoints.save(made.step, made.writer)
            if is_asked_to_stop:
                checkpoints.wait()
                raise Stopped
    checkpoints.wait()
    diary.save()
    return made.end(len(records))


def complete(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_new_tokens: int,
    temperature: Decimal = Decimal(0),
    top_p: Decimal = Decimal(1),
) -> list[str]:
    """
    Return what the model says after each prompt; temperature 0 is greedy.

    Raises:
        BadInput: a prompt and its answer are longer than what the model reads.
    """
    asked = [asked_ids(record, tokenizer) for record in records]
    width = max(len(ids) for ids in asked)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and width + max_new_tokens > longest:
        raise BadInput(
            "invalid_field",
            f"params.maxNewTokens: a prompt of {width} tokens and {max_new_tokens} more are over {longest}",
        )
    end = tokenizer.eos_token_id
    fill = next((token for token in (tokenizer.pad_token_id, end) if token is not None), 0)
    # On the left: what is said goes on from the last column of each row.
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in asked], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=model.device)
    chance = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0
    }  # fmt: skip
    from transformers import GenerationConfig

    # What the model's own folder says of beams, penalties and the like is nothing that the buyer asked for.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, use_cache=True, pad_token_id=fill, eos_token_id=end, **chance
    )
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=mask)
    return [tokenizer.decode(_until(row, end), skip_special_tokens=True) for row in made[:, width:].tolist()]


def _until(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end)] if end in row else row

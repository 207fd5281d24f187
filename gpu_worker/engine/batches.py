"""
Records as tokens, and which of them a step takes: a function of the seed and the step, so that a job that goes on
elsewhere sees what it would have seen.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu_worker.core.dataset import InputForm, Record
from gpu_worker.core.errors import BadInput, OwnersFault

# What says that a token is not to be predicted; torch's own number for it.
IGNORED = -100
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Sequences:
    """Tokens one after the other and where each sequence begins and ends; `is_target`: which are to be predicted."""

    tokens: torch.Tensor
    is_target: torch.Tensor
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.spans)

    def first(self, count: int) -> "Sequences":
        return Sequences(self.tokens, self.is_target, self.spans[:count])

    def batch(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return tokens, attention mask and targets of these sequences, filled up on the right to one length."""
        spans = [self.spans[number] for number in numbers]
        shape = (len(spans), max(end - start for start, end in spans))
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORED, dtype=torch.long)
        for row, (start, end) in enumerate(spans):
            found = self.tokens[start:end].long()
            ids[row, : end - start] = found
            mask[row, : end - start] = 1
            targets[row, : end - start] = found.masked_fill(~self.is_target[start:end], IGNORED)
        # Nothing comes before the first token that could predict it.
        targets[:, 0] = IGNORED
        return ids, mask, targets


def batch_of(step: int, *, seed: int, size: int, count: int) -> list[int]:
    """Return which `size` of `count` sequences step `step` takes: every epoch has each once, in an order of its own."""
    found = []
    for place in range(step * size, (step + 1) * size):
        epoch, offset = divmod(place, count)
        found.append(_order(seed, epoch, count)[offset])
    return found


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(seed: int, epoch: int, count: int) -> list[int]:
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        maker = torch.Generator().manual_seed(seed_of(seed, f"epoch {epoch}"))
        _orders[key] = torch.randperm(count, generator=maker).tolist()
    return _orders[key]


def seed_of(seed: int, what: str) -> int:
    """Return the seed of one thing, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8]) >> 1


def sow(seed: int, what: str, device: torch.device) -> None:
    """
    Let chance begin anew, from the seed of one thing.

    Not `torch.manual_seed`: without a GPU it keeps a traceback for the day that one appears, milliseconds a call.
    """
    number = seed_of(seed, what)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


def sequences_of(records: Sequence[Record], form: InputForm, tokenizer: Any, length: int, vocabulary: int) -> Sequences:
    """
    Return the records as sequences of at most `length` tokens.

    Texts are joined, the end-of-text token between them, and cut every `length` tokens. A chat is one sequence, cut at
    its end; what the assistant says is to be predicted.

    Raises:
        BadInput: there is nothing to predict in them.
        OwnersFault: the tokenizer is not the model's.
    """
    made = _joined(records, tokenizer, length) if form == "text" else _chats(records, tokenizer, length)
    if len(made.tokens) and int(made.tokens.max()) >= vocabulary:
        raise OwnersFault("the model's tokenizer has more tokens than the model")
    if not bool(made.is_target.any()) or len(made.tokens) < 2:
        raise BadInput("dataset_unavailable", "the dataset has nothing in it that could be predicted")
    return made


def _joined(records: Sequence[Record], tokenizer: Any, length: int) -> Sequences:
    ids, end = array("i"), tokenizer.eos_token_id
    for at in range(0, len(records), _AT_ONCE):
        texts = [record["text"] for record in records[at : at + _AT_ONCE]]
        for found in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            ids.extend(found)
            if end is not None:
                ids.append(end)
    tokens = _tensor(ids)
    # A last sequence of one token has nothing to predict.
    spans = tuple((start, min(start + length, len(ids))) for start in range(0, max(len(ids) - 1, 0), length))
    return Sequences(tokens, torch.ones(len(ids), dtype=torch.bool), spans)


def _chats(records: Sequence[Record], tokenizer: Any, length: int) -> Sequences:
    if not tokenizer.chat_template:
        raise BadInput("invalid_field", "params.form: this model has no chat template")
    ids, wanted, spans = array("i"), bytearray(), []
    for record in records:
        found, marks = _chat(record["messages"], tokenizer)
        if any(marks[1:length]):
            spans.append((len(ids), len(ids) + min(len(found), length)))
            ids.extend(found[:length])
            wanted.extend(marks[:length])
    return Sequences(_tensor(ids), torch.tensor(list(wanted), dtype=torch.bool), tuple(spans))


def _chat(messages: list[Record], tokenizer: Any) -> tuple[list[int], bytearray]:
    """Return a chat's tokens, and which of them the assistant says: those that its message adds to what came before."""
    found = chat_ids(tokenizer, messages)
    marks = bytearray(len(found))
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = chat_ids(tokenizer, messages[:number], is_asked=True)
            behind = chat_ids(tokenizer, messages[: number + 1])
            # A template may rewrite what came before; then the whole chat is learned.
            if found[: len(before)] != before or found[: len(behind)] != behind:
                return found, bytearray(b"\1" * len(found))
            marks[len(before) : len(behind)] = b"\1" * (len(behind) - len(before))
    return found, marks


def chat_ids(tokenizer: Any, messages: list[Record], *, is_asked: bool = False) -> list[int]:
    """Return a chat's tokens by the model's template, `is_asked` with the beginning of an answer. Raises BadInput."""
    if not messages:
        return []
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_asked)
    except Exception as error:  # a template is a program: it may raise anything
        raise BadInput("dataset_unavailable", f"the model's chat template refuses a chat: {str(error)[:200]}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _tensor(ids: array) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.tensor(ids, dtype=torch.int32) if ids else torch.zeros(0, dtype=torch.int32)


def batches(count: int, size: int) -> Iterator[list[int]]:
    """Yield the numbers below `count` in order, `size` at a time."""
    return (list(range(at, min(at + size, count))) for at in range(0, count, size))

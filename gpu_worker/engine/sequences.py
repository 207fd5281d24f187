"""
Records as sequences of tokens, in a file: the memory that a dataset takes does not grow with its text.

Held are sixteen bytes a record and four a sequence, for their order; of a chat eight more. On the disk are four bytes
a token, beside the dataset: within the disk that a job has, and at most SEQUENCES_MAX sequences.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gpu_worker.core.dataset import InputForm, Record, too_large, unusable
from gpu_worker.core.errors import OwnersFault
from gpu_worker.engine.chats import marked_chat

# What says that a token is not to be predicted; torch's own number for it.
IGNORED = -100
SEQUENCES_MAX = 50_000_000
# So much is tokenized at once: what the tokenizer makes is a hundred times as large as its text.
_AT_ONCE = 256
_CHARS_AT_ONCE = 256 * 1024
_TOKENS_KEPT = 1024 * 1024
_TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sequences:
    """
    `count` sequences in a file of tokens, number n from `bounds[n]` to `bounds[n + 1]`.

    A token that is not to be predicted is written as its complement, which is below zero.
    """

    file: BinaryIO
    count: int
    bounds: Sequence[int]

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> "Sequences":
        return Sequences(self.file, min(count, self.count), self.bounds)

    def batch(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return tokens, attention mask and targets of these sequences, filled up on the right to one length."""
        rows = [self._row(number) for number in numbers]
        lengths = torch.tensor([len(row) // _TOKEN_BYTES for row in rows])
        width = int(lengths.max())
        filled = bytearray().join(row.ljust(width * _TOKEN_BYTES, b"\0") for row in rows)
        found = torch.frombuffer(filled, dtype=torch.int32).view(len(rows), width).long()
        is_there, is_target = torch.arange(width) < lengths[:, None], found >= 0
        ids = torch.where(is_target, found, ~found)
        targets = ids.masked_fill(~(is_there & is_target), IGNORED)
        # Nothing comes before the first token that could predict it.
        targets[:, 0] = IGNORED
        return ids, is_there.long(), targets

    def _row(self, number: int) -> bytes:
        start, end = self.bounds[number], self.bounds[number + 1]
        # Not mapped: what is looked at would stay in memory. The last one of a text ends with the file.
        return os.pread(self.file.fileno(), (end - start) * _TOKEN_BYTES, start * _TOKEN_BYTES)


class _Tokens:
    """A file of tokens that is being written."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        self._path, self._file, self._kept = path, path.open("wb"), array("i")
        self._vocabulary = vocabulary
        self.count = 0
        self.has_target = False

    def add(self, ids: Sequence[int], marks: Sequence[int] | None = None) -> None:
        """Add tokens; `marks` says which are to be predicted, None: all. Raises OwnersFault."""
        if len(ids) and max(ids) >= self._vocabulary:
            raise OwnersFault("the model's tokenizer has more tokens than the model")
        self._kept.extend(
            ids if marks is None else (one if mark else ~one for one, mark in zip(ids, marks, strict=True))
        )
        self.count += len(ids)
        self.has_target = self.has_target or (bool(len(ids)) if marks is None else any(marks))
        if len(self._kept) >= _TOKENS_KEPT:
            self._write()

    def ended(self) -> BinaryIO:
        self._write()
        self._file.close()
        return self._path.open("rb", buffering=0)

    def _write(self) -> None:
        self._kept.tofile(self._file)
        self._kept = array("i")


def sequences_of(
    records: Iterable[Record], form: InputForm, tokenizer: Any, length: int, vocabulary: int, path: Path
) -> Sequences:
    """
    Return the records as sequences of at most `length` tokens, which are written to `path`.

    Texts are joined, the end-of-text token between them, and cut every `length` tokens. A chat is one sequence, cut at
    its end; what the assistant says is to be predicted.

    Raises:
        BadInput: there is nothing to predict in them, or too much.
        OwnersFault: the tokenizer is not the model's.
    """
    made = _Tokens(path, vocabulary)
    bounds = (_joined if form == "text" else _chats)(records, tokenizer, length, made)
    if not made.has_target or made.count < 2:
        raise unusable("the dataset has nothing in it that could be predicted")
    if len(bounds) - 1 > SEQUENCES_MAX:
        raise too_large(f"the dataset makes {len(bounds) - 1} sequences, {SEQUENCES_MAX} are taken")
    return Sequences(made.ended(), len(bounds) - 1, bounds)


def _joined(records: Iterable[Record], tokenizer: Any, length: int, made: _Tokens) -> Sequence[int]:
    end = tokenizer.eos_token_id
    for texts, ends in _together(records):
        for found, is_end in zip(tokenizer(texts, add_special_tokens=False)["input_ids"], ends, strict=True):
            made.add([*found, end] if is_end and end is not None else found)
    # A last sequence of one token has nothing to predict.
    count = -(-max(made.count - 1, 0) // length)
    return range(0, (count + 1) * length, length)


def _together(records: Iterable[Record]) -> Iterator[tuple[list[str], list[bool]]]:
    """Yield texts to tokenize at once, and which of them end a record: what is very long comes in pieces."""
    texts: list[str] = []
    ends: list[bool] = []
    chars = 0
    for record in records:
        text = record["text"]
        for at in range(0, len(text), _CHARS_AT_ONCE):
            texts.append(text[at : at + _CHARS_AT_ONCE])
            ends.append(at + _CHARS_AT_ONCE >= len(text))
            chars += len(texts[-1])
            if len(texts) == _AT_ONCE or chars >= _CHARS_AT_ONCE:
                yield texts, ends
                texts, ends, chars = [], [], 0
    if texts:
        yield texts, ends


def _chats(records: Iterable[Record], tokenizer: Any, length: int, made: _Tokens) -> Sequence[int]:
    bounds = array("q", [0])
    for record in records:
        found, marks = marked_chat(record["messages"], tokenizer, length)
        if any(marks[1:]):
            made.add(found, marks)
            bounds.append(made.count)
    return bounds

"""The records of a job, read from its file as they are needed: in memory is where each begins, eight bytes of it."""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from gpu_worker.core.dataset import Record, fingerprint, unusable
from gpu_worker.core.folder import INPUT, Spec

# Tells that so many records were looked at; raises Stopped where the program was asked to stop.
Beat = Callable[[int], None]


class Records:
    """The first `records_max` records in a file of JSON lines, all of them where that is None."""

    def __init__(self, path: Path, records_max: int | None = None) -> None:
        self._file = path.open("rb")
        self._starts, at = array("q"), 0
        for line in self._file:
            if len(self._starts) == records_max:
                break
            self._starts.append(at)
            at += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> Record:
        self._file.seek(self._starts[number])
        found: Record = json.loads(self._file.readline())
        return found

    def of(self, numbers: Sequence[int]) -> list[Record]:
        return [self.read(number) for number in numbers]

    def each(self, beat: Beat, numbers: Sequence[int] | None = None) -> Iterator[Record]:
        """Yield these records, None: all; `beat` is told how many were before each."""
        for done, number in enumerate(range(len(self)) if numbers is None else numbers):
            beat(done)
            yield self.read(number)


def input_records(spec: Spec, folder: Path, records_max: int | None = None) -> Records:
    """Return what the job works on, the first `records_max` of it. Raises BadInput: there is nothing."""
    if spec.input is None:
        raise unusable("the job has no dataset")
    found = Records(folder / INPUT / spec.input.name, records_max)
    if not len(found):
        raise unusable("the dataset has no records")
    return found


def split(records: Records, share: Decimal, beat: Beat) -> tuple[array, array]:  # type: ignore[type-arg]
    """
    Return the numbers of the records to train on and of those held out, each in the order they came.

    Held out are `share` of the different records, at least one: those whose SHA-256 (of compact JSON, keys sorted) is
    lowest. So the order of a dataset changes nothing, and a record that stands twice is never on both sides.

    Raises:
        BadInput: there are not two different records.
    """
    import torch

    prints = array("q", (fingerprint(record) for record in records.each(beat)))
    different = torch.unique(torch.frombuffer(prints, dtype=torch.int64))
    if len(different) < 2:
        raise unusable("there must be two different records: one to train on, one to hold out")
    last = int(different[max(1, int(len(different) * share)) - 1])
    return (
        array("q", (number for number, found in enumerate(prints) if found > last)),
        array("q", (number for number, found in enumerate(prints) if found <= last)),
    )

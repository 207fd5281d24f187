"""The boundary rows that a stage has sent on, kept so that a new next stage can be filled without the tokens."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gpu_worker.core.inference.batch import Refill
from gpu_worker.core.inference.step import Run, Tensor

# A message of rows that fill a cache is no larger than one of a prompt.
FILL_ROWS = 512
# Room is made for so many rows at once: a row is then copied once, however long its session becomes.
BLOCK_ROWS = 32


@dataclass(slots=True)
class _Kept:
    # The dtype, width and bytes of its rows.
    form: tuple[str, int, int]
    length: int = 0
    blocks: list[bytearray] = field(default_factory=list)


class Ring:
    """
    The rows of each session from position 0 on, in the dtype that they were sent in, at most `bytes_max` over all.

    Rows are of use only without a hole, so a session is forgotten as a whole: first the one whose rows were added or
    asked for longest ago. What is forgotten can begin again only at position 0.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self._all: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def length(self, session: str) -> int:
        """Return how many positions of the session are kept, 0 where it is not."""
        kept = self._all.get(session)
        return kept.length if kept is not None else 0

    def dtype(self, session: str) -> str:
        """Return the dtype of the rows that are kept of the session, empty where none are."""
        kept = self._all.get(session)
        return kept.form[0] if kept is not None else ""

    def keep(self, runs: Iterable[Run], hidden: Tensor) -> None:
        """Add the rows of `runs`, which lie one behind the other in `hidden`; what was behind a run's start is cut."""
        count, width = hidden.shape
        if not count:
            return
        size = len(hidden.data) // count
        form, data, at = (hidden.dtype, width, size), memoryview(hidden.data), 0
        for run in runs:
            end = at + run.count * size
            self._keep(run, data[at:end], form)
            at = end
        while self.bytes_used > self.bytes_max:
            self.drop(next(iter(self._all)))

    def _keep(self, run: Run, rows: memoryview, form: tuple[str, int, int]) -> None:
        kept, size = self._all.get(run.session), form[2]
        if kept is not None and kept.form != form:
            # Its next stage takes another kind of row now: half of each would fill nobody's cache.
            self.drop(run.session)
            kept = None
        if kept is None:
            if run.position:
                return
            kept = self._all[run.session] = _Kept(form)
        elif run.position > kept.length:
            self.drop(run.session)
            return
        else:
            self._all.move_to_end(run.session)
        blocks, room = kept.blocks, BLOCK_ROWS * size
        before = len(blocks)
        if run.position < kept.length:
            del blocks[-(-run.position // BLOCK_ROWS) :]
        start, left = run.position * size, 0
        while left < len(rows):
            number, offset = divmod(start, room)
            if number == len(blocks):
                blocks.append(bytearray(room))
            part = rows[left : left + room - offset]
            blocks[number][offset : offset + len(part)] = part
            start, left = start + len(part), left + len(part)
        self.bytes_used += (len(blocks) - before) * room
        kept.length = run.end

    def rows(self, session: str, start: int, end: int) -> Tensor | None:
        """Return the rows of positions [start, end), None where one of them is not kept."""
        kept = self._all.get(session)
        if kept is None or not 0 <= start < end <= kept.length:
            return None
        self._all.move_to_end(session)
        dtype, width, size = kept.form
        first, last = start // BLOCK_ROWS, -(-end // BLOCK_ROWS)
        blocks = [memoryview(block) for block in kept.blocks[first:last]]
        blocks[-1] = blocks[-1][: (end - (last - 1) * BLOCK_ROWS) * size]
        blocks[0] = blocks[0][(start - first * BLOCK_ROWS) * size :]
        return Tensor(dtype, (end - start, width), b"".join(blocks))

    def drop(self, session: str) -> None:
        """Forget the session. Idempotent."""
        kept = self._all.pop(session, None)
        if kept is not None:
            self.bytes_used -= len(kept.blocks) * BLOCK_ROWS * kept.form[2]

    def fills(self, refill: Refill, rows_max: int = FILL_ROWS) -> Iterator[tuple[Run, Tensor]]:
        """Yield the runs that fill a next stage, of at most `rows_max` rows each, as long as the rows are kept."""
        for start in range(0, refill.length, rows_max):
            count = min(rows_max, refill.length - start)
            rows = self.rows(refill.session, start, start + count)
            if rows is None:
                return
            yield Run(session=refill.session, epoch=refill.epoch, position=start, count=count, fills=True), rows

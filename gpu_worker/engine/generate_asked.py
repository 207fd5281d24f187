"""
A completion for every record of a dataset, made by the model that the worker itself serves: its program asks for them.

Nothing is loaded here, torch neither. Several records are asked at once; what is said to one is a function of the job's
seed and the record alone, as far as the model's engine keeps to it.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_worker.core.asked import LINE_BYTES_MAX, PROMPT_CHARS_MAX, Answered, Asked, Turn
from gpu_worker.core.dataset import Record, unusable
from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import Spec
from gpu_worker.engine.batches import group, groups, seed_of
from gpu_worker.engine.checkpoint import Checkpoints
from gpu_worker.engine.completions import Completions
from gpu_worker.engine.diary import Diary, Stopped
from gpu_worker.engine.records import Records, input_records
from gpu_worker.engine.result import End
from wire.jobs import Generate

# A batch may be asked beside the one that still waits for its slowest record.
BATCHES_ASKED = 2
LOOK_S = 0.1
# The worker goes and tells its programs to stop: it is seen by both ways, in any order.
GONE_S = 5.0
_SEEDS = 2**31


def generate_asked(spec: Spec, folder: Path, diary: Diary, *, descriptor: int) -> End:
    """
    Return a line for each record: `{"id"?, "completion"}`.

    Args:
        descriptor: the socket at whose other end the worker answers, as `core.asked` says.

    Raises:
        Stopped, OwnersFault: the batches that are whole are in the newest checkpoint.
        BadInput: a record cannot be answered.
    """
    params = Generate.model_validate(spec.params)
    records = input_records(spec, folder)
    made = Completions(spec, folder, groups(len(records), params.batch_size))
    checkpoints = Checkpoints(spec, folder, diary, steps=made.steps)
    worker = _Worker(descriptor, diary)
    diary.work(made.step, made.steps)
    kept = made.step
    try:
        for asked, said in _batches(spec, params, records, worker, diary, made.step):
            made.add(asked, said)
            diary.at(made.step)
            if made.step % spec.checkpoint_steps == 0 and made.step < made.steps:
                checkpoints.save(made.step, made.writer)
                kept = made.step
    except (Stopped, OwnersFault):
        if made.step > kept:
            checkpoints.save(made.step, made.writer)
        checkpoints.wait()
        raise
    checkpoints.wait()
    diary.save()
    return made.end(len(records))


def _batches(
    spec: Spec, params: Generate, records: Records, worker: "_Worker", diary: Diary, step: int
) -> Iterator[tuple[list[Record], list[str]]]:
    """Yield every batch from `step` on, in order, with what was said to its records."""
    count, size = len(records), params.batch_size
    at_once = min(size, worker.at_once())
    said: dict[int, str] = {}
    tokens: dict[int, int] = {}  # made so far for each record that was asked and not answered
    ahead = step * size
    for number in range(step, groups(count, size)):
        batch = group(number, count, size)
        while not all(each in said for each in batch):
            diary.check()
            while len(tokens) < at_once and ahead < min(count, (number + BATCHES_ASKED) * size):
                worker.ask(_asked(ahead, records.read(ahead), spec, params))
                tokens[ahead] = 0
                ahead += 1
            heard = worker.heard(LOOK_S)
            if heard is None or heard.number not in tokens:
                continue
            if heard.fault is not None:
                raise _refusal(heard)
            # One that is tried again begins anew.
            more = max(0, heard.tokens - tokens[heard.number])
            tokens[heard.number] += more
            diary.at(number, tokens=more)
            if heard.text is not None:
                said[heard.number] = heard.text
                del tokens[heard.number]
        yield records.of(batch), [said.pop(each) for each in batch]


def _asked(number: int, record: Record, spec: Spec, params: Generate) -> Asked:
    """Return a record as it is asked. Raises BadInput: it is too long for any model."""
    prompt, turns = record.get("prompt", ""), tuple(Turn(**each) for each in record.get("messages", ()))
    if len(prompt) + sum(len(turn.content) for turn in turns) > PROMPT_CHARS_MAX:
        raise unusable(f"record {number + 1} has more than {PROMPT_CHARS_MAX} characters")
    return Asked(
        number=number,
        prompt=prompt,
        messages=turns,
        tokens_max=params.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=seed_of(params.seed + spec.index, f"record {number}") % _SEEDS,
    )


def _refusal(heard: Answered) -> BadInput | OwnersFault:
    said = heard.detail or "it is not answered"
    if heard.fault == "buyer":
        return BadInput("invalid_field", f"record {heard.number + 1}: {said}")
    return OwnersFault(said)


class _Worker:
    """The worker at the other end of `descriptor`; a thread hears what it says."""

    def __init__(self, descriptor: int, diary: Diary) -> None:
        self._descriptor, self._diary = descriptor, diary
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def at_once(self) -> int:
        """Return how many records may be asked and not answered. Raises Stopped, OwnersFault."""
        while (heard := self.heard(LOOK_S)) is None:
            self._diary.check()
        return heard.at_once or 1

    def ask(self, asked: Asked) -> None:
        line = asked.to_json() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            pass  # it has gone: that is heard

    def heard(self, timeout_s: float) -> Answered | None:
        """Return what it said next, None: nothing within `timeout_s`. Raises Stopped, OwnersFault: it has gone."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line:
            return Answered.from_json(line)
        until = time.monotonic() + GONE_S
        while time.monotonic() < until:
            self._diary.check()
            time.sleep(LOOK_S)
        raise OwnersFault("the model that this worker serves answers no more")

    def _listen(self) -> None:
        """Put every line into the queue, and an empty one when there will be no more."""
        rest = b""
        try:
            while len(rest) <= LINE_BYTES_MAX and (more := os.read(self._descriptor, 65_536)):
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    self._lines.put(line)
        except OSError:
            pass  # it broke off
        self._lines.put(b"")

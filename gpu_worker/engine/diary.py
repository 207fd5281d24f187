"""What a job's program tells its worker, by `core.folder`: where it is, what it measured, why it ended."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from gpu_worker.core.errors import Fault
from gpu_worker.core.folder import PROGRESS, STATE, Message, ProgressLine, State
from wire.vendor import MetricPoint

STATE_EVERY_S = 1.0
TEXT_CHARS_MAX = 4_096
# While nothing can be measured yet, so often something is said, and so many times of one thing at most: what hangs
# falls silent and is ended for it.
BEAT_S = 3.0
BEATS_MAX = 200
_PLACES = Decimal("0.000001")


class Stopped(Exception):
    """The program was asked to stop; what it had done is kept."""


class Diary:
    """
    The program's voice. Lines may be written by any thread, the state by the main one alone.

    `should_stop` becomes true once and for all; who works looks at it between two steps.
    """

    def __init__(self, folder: Path, *, created_s: Decimal, beat_s: float = BEAT_S) -> None:
        self._folder, self._beat_s = folder, beat_s
        self._lines = os.open(folder / PROGRESS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._state = State(pid=os.getpid(), created_s=created_s, phase="loading")
        self._working_since: float | None = None
        self._written_at = self._said_at = 0.0
        self._stop = threading.Event()
        # What was measured, of earlier starts too, where the work keeps it; None: the lines are all there is.
        self.history: Sequence[MetricPoint] | None = None
        self._write()

    @property
    def should_stop(self) -> bool:
        return self._stop.is_set()

    @property
    def state(self) -> State:
        return self._state

    def stop(self) -> None:
        self._stop.set()

    def check(self) -> None:
        """Raise Stopped where the program was asked to stop."""
        if self.should_stop:
            raise Stopped

    def log(self, text: str) -> None:
        self._line(ProgressLine(kind="log", step=self._state.step, text=text[:TEXT_CHARS_MAX]))

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Log `what`, and every `beat_s` that it still lasts: libraries and weights load without a word."""
        self.log(what)
        began, is_over = time.monotonic(), threading.Event()

        def speak() -> None:
            for _ in range(BEATS_MAX):
                if is_over.wait(self._beat_s):
                    return
                self.log(f"{what}: {time.monotonic() - began:.0f} s so far")

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            is_over.set()
            speaker.join()

    def beat(self, what: str) -> None:
        """Log `what` where nothing was logged for `beat_s`. Raises Stopped where the program was asked to stop."""
        self.check()
        if time.monotonic() - self._written_at >= STATE_EVERY_S:
            self._write()
        if time.monotonic() - self._said_at >= self._beat_s:
            self.log(what)

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Write what was measured at `step`; what is no number is left out."""
        known = {name: number for name, value in values.items() if (number := decimal_of(value)) is not None}
        self._line(ProgressLine(kind="metric", step=step, values=known))

    def checkpoint(self, step: int) -> None:
        self._line(ProgressLine(kind="checkpoint", step=step))

    def begin(self) -> None:
        """Tell that what is the job's own begins: from here on its seconds cost."""
        if self._working_since is None:
            self._working_since = time.monotonic()

    def work(self, step: int, steps: int) -> None:
        """Tell that loading is over and the first step begins."""
        self.begin()
        self._tell(phase="working", step=step, steps=steps)

    def at(self, step: int, *, tokens: int = 0) -> None:
        """Tell that `step` steps are done, `tokens` more since the last call; written at most once a second."""
        self._state = self._state.model_copy(update={"step": step, "tokens": self._state.tokens + tokens})
        if time.monotonic() - self._written_at >= STATE_EVERY_S:
            self._write()

    def save(self) -> None:
        """Tell that the work is done and the result is being written."""
        self._tell(phase="saving")

    def ended(
        self,
        *,
        fault: Fault | None = None,
        code: str | None = None,
        message: Message | None = None,
        final_metrics: Mapping[str, float] | None = None,
        artifact: str | None = None,
    ) -> State:
        """Return the last state of all, which `tell` writes when the result is there; no `code` is well done."""
        found = {name: decimal_of(value) for name, value in (final_metrics or {}).items()}
        changes: dict[str, object] = {
            "phase": "ended",
            "worked_s": self._worked_s(),
            "fault": fault,
            "code": code,
            "message": message if message is None else message[:TEXT_CHARS_MAX],
            "final_metrics": {name: value for name, value in found.items() if value is not None} or None,
            "artifact": artifact,
        }
        return self._state.model_copy(update=changes)

    def tell(self, state: State) -> None:
        self._state = state
        self._write()

    def _tell(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        self._write()

    def _write(self) -> None:
        """Replace the state, whole or not at all."""
        self._written_at = time.monotonic()
        if self._state.phase != "ended":
            self._state = self._state.model_copy(update={"worked_s": self._worked_s()})
        new = self._folder / f"{STATE}.new"
        new.write_bytes(self._state.to_json())
        new.replace(self._folder / STATE)

    def _worked_s(self) -> Decimal:
        since = self._working_since
        return Decimal(0) if since is None else Decimal(repr(time.monotonic() - since)).quantize(_PLACES)

    def _line(self, line: ProgressLine) -> None:
        self._said_at = time.monotonic()
        # One write a line: what reads meanwhile sees all of it or nothing.
        os.write(self._lines, line.to_json() + b"\n")


def decimal_of(value: float) -> Decimal | None:
    """Return `value` with seven digits or so, None for NaN and infinities."""
    number = Decimal(f"{value:.7g}")
    return number if number.is_finite() else None

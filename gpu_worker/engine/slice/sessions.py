"""
The sessions that are open in an engine: their room in its cache, how they are sampled, and when one is forgotten.

Which epoch counts and who is idle `inference.stage.sessions` has decided before a step comes here. The rules stand here
as the last line, so that no caller can break a cache or keep one for ever.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from threading import Lock

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import Open
from gpu_worker.engine.slice.constraint import Grammars, check_schema
from gpu_worker.engine.slice.stage import Stage
from gpu_worker.engine.slice.voice import Voice

# How often idle sessions are looked for, as a share of the time after which one is idle.
_LOOKS = 10


@dataclass(slots=True)
class Session:
    epoch: int
    positions: int
    used_s: float
    voice: Voice | None = None


class Sessions:
    """
    Args:
        grammars: makes the compiler of JSON schemas when the first one comes. None: schemas are refused.
        idle_s: a session without a step for so long is closed.
    """

    def __init__(
        self, stage: Stage, grammars: Callable[[], Grammars] | None, *, sessions_max: int, idle_s: float
    ) -> None:
        self._stage, self._max, self._idle_s = stage, sessions_max, idle_s
        self._all: dict[str, Session] = {}
        self._make_grammars = grammars
        self._made_grammars: Grammars | None = None
        self._making = Lock()
        self._looked_s: float | None = None

    def find(self, session: str) -> Session | None:
        return self._all.get(session)

    def voice(self, session: str) -> Voice:
        """Return how an open session of the last stage is sampled, once it has been told."""
        voice = self._all[session].voice
        assert voice is not None
        return voice

    def open(self, new: Open, now_s: float) -> None:
        """
        Open a session, or begin an open one again: its cache stays, and so does its sampling where none is told anew.

        One that asks for more positions than it has begins with an empty cache.

        Raises:
            InferenceError: it is refused, and what was open of it before stays as it is.
        """
        known, info = self._all.get(new.session), self._stage.info
        if known is not None and new.epoch < known.epoch:
            raise InferenceError("stale_epoch", f"the session is at epoch {known.epoch}")
        if new.positions < 1:
            raise InferenceError("invalid_argument", f"a session has at least one position, not {new.positions}")
        if max(new.positions, len(new.history)) > info.context:
            raise InferenceError("context_length_exceeded", f"a session has at most {info.context} positions here")
        voice = None if known is None else known.voice
        if info.layers.is_last and new.sampling is not None:
            voice = Voice(
                new.sampling, new.history, new.prompt_len, vocab_size=info.vocab_size, grammars=self._grammars
            )
        if known is None or new.positions > known.positions:
            self._reserve(new, now_s, is_new=known is None)
            self._all[new.session] = Session(new.epoch, new.positions, now_s, voice)
        else:
            known.epoch, known.used_s, known.voice = new.epoch, now_s, voice

    def _reserve(self, new: Open, now_s: float, *, is_new: bool) -> None:
        if is_new and len(self._all) >= self._max and not self._evict(now_s, spared=()):
            raise InferenceError("no_capacity", f"all {self._max} sessions are taken")
        try:
            self._stage.open(new.session, new.positions)
        except InferenceError as error:
            if error.code != "no_capacity" or not self._evict(now_s, spared={new.session}):
                raise
            self._stage.open(new.session, new.positions)

    def close(self, session: str) -> None:
        """Idempotent."""
        self._stage.close(session)
        self._all.pop(session, None)

    def close_all(self) -> None:
        for session in [*self._all]:
            self.close(session)

    def tidy(self, now_s: float, spared: Container[str]) -> None:
        """Close those that are idle, where it is time to look for them."""
        if self._looked_s is None or now_s - self._looked_s >= self._idle_s / _LOOKS:
            self._looked_s = now_s
            self._evict(now_s, spared)

    def _evict(self, now_s: float, spared: Container[str]) -> int:
        """Close the sessions that had no step for too long. Returns how many."""
        idle = [name for name, each in self._all.items() if now_s - each.used_s > self._idle_s and name not in spared]
        for name in idle:
            self.close(name)
        return len(idle)

    def prepare(self, schema: str) -> None:
        """Compile a JSON schema for a session that will be opened; any thread may call it. Raises InferenceError."""
        if self._stage.info.layers.is_last:
            self._grammars().prepare(schema)
        else:
            check_schema(schema)

    def _grammars(self) -> Grammars:
        with self._making:
            if self._made_grammars is None:
                if self._make_grammars is None:
                    no = "this stage has no tokenizer, so no output can match a schema"
                    raise InferenceError("invalid_argument", no)
                self._made_grammars = self._make_grammars()
            return self._made_grammars

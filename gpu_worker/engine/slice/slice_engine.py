"""
The engine of a slice: what a step asks for is checked, computed in one forward pass, and sampled on the last stage.

It is called by one thread. What is wrong with one session is a refusal of that session; the others go on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import CacheUse, Done, Open, Refusal, Run, SliceInfo, Step, Tensor
from gpu_worker.core.inference.tensor import DTYPES
from gpu_worker.engine.slice.admission import admit
from gpu_worker.engine.slice.constraint import Grammars
from gpu_worker.engine.slice.loading import OnProgress
from gpu_worker.engine.slice.sampler import Choice, choose
from gpu_worker.engine.slice.sessions import Sessions
from gpu_worker.engine.slice.stage import Stage
from gpu_worker.engine.slice.tensors import FLOATS, WORDS, as_ids, as_torch, as_wire, check_rows, picked


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """
    How a slice is loaded and served. `threads` None: torch's own choice; `free_bytes` None: what the device has.

    `dtype` is auto, fp32, fp16 or bf16; `wire_dtype` is what rows are sent as to a stage that takes it, `same`: the
    slice's own.
    """

    cache_bytes_max: int
    sessions_max: int = 256
    idle_s: float = 600.0
    device: str = "cpu"
    dtype: str = "auto"
    quant: str = "none"
    back_end: str = "auto"
    wire_dtype: str = "same"
    model: str = ""
    model_hash: str = ""
    threads: int | None = None
    free_bytes: int | None = None


def open_engine(
    folder: Path, layers: Layers | str, options: EngineOptions, progress: OnProgress | None = None
) -> "SliceEngine":
    """
    Return the loaded slice of the model in `folder`; `progress` is told from this thread.

    Raises:
        BadInput: the model needs code of its own.
        OwnersFault: the slice cannot be served so; the sentence says why.
    """
    if options.wire_dtype != "same" and options.wire_dtype not in DTYPES.keys() - {"int64"}:
        raise OwnersFault(f"{options.wire_dtype!r} is no dtype of the wire for rows")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    stage = admit(
        folder,
        layers,
        cache_bytes_max=options.cache_bytes_max,
        sessions_max=options.sessions_max,
        dtype=options.dtype,
        quant=options.quant,
        device=options.device,
        back_end=options.back_end,
        model=options.model,
        model_hash=options.model_hash,
        free_bytes=options.free_bytes,
        on_progress=progress,
    )
    return SliceEngine(
        stage,
        grammars=lambda: _grammars(folder, stage.info.vocab_size),
        sessions_max=options.sessions_max,
        idle_s=options.idle_s,
        wire_dtype=options.wire_dtype,
    )


def _grammars(folder: Path, vocab_size: int) -> Grammars:
    from gpu_worker.engine.slice.text import tokenizer_in

    try:
        tokenizer, eos = tokenizer_in(folder)
    except WorkerError as error:
        raise InferenceError("invalid_argument", f"no output can match a schema: {error}") from error
    return Grammars(tokenizer, vocab_size, eos)


class SliceEngine:
    """
    A loaded slice with its sessions.

    Args:
        grammars: compiler of JSON schemas, made when the first one comes. None: schemas are refused.
        idle_s: a session without a step for so long is closed.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        grammars: Callable[[], Grammars] | None = None,
        sessions_max: int = 256,
        idle_s: float = 600.0,
        wire_dtype: str = "same",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._clock = stage, clock
        word = WORDS.get(stage.info.dtype, stage.info.dtype)
        self._info = replace(stage.info, dtype=word)
        self._dtype = FLOATS[word]
        self._wire = word if wire_dtype == "same" else wire_dtype
        self._sessions = Sessions(stage, grammars, sessions_max=sessions_max, idle_s=idle_s)

    @property
    def info(self) -> SliceInfo:
        """What it is; `dtype` is the wire's word."""
        return self._info

    @property
    def cache(self) -> CacheUse:
        return self._stage.cache

    def step(self, step: Step) -> Done:
        """
        Return what became of a step. Refusals are values in it; what it raises is a bug, and the engine is broken.
        """
        now_s = self._clock()
        for session in step.closes:
            self._sessions.close(session)
        self._sessions.tidy(now_s, spared={run.session for run in step.runs})
        refusals: list[Refusal] = []
        for new in step.opens:
            try:
                self._sessions.open(new, now_s)
            except InferenceError as error:
                refusals.append(_refusal(new, error))
        if not step.runs:
            return Done(refusals=tuple(refusals))
        try:
            self._check_rows(step)
        except InferenceError as error:
            return Done(refusals=(*refusals, *(_refusal(run, error) for run in step.runs)))
        good = self._good(step, refusals, now_s)
        if not good:
            return Done(refusals=tuple(refusals))
        began_s = time.perf_counter()
        try:
            with torch.inference_mode():
                return self._computed(step, good, refusals, began_s)
        except InferenceError as error:
            no = error  # the stage's own word: no session has changed
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            # Half of the layers may have taken the rows: what is left of these sessions is worth nothing.
            for run in good:
                self._sessions.close(run.session)
            no = InferenceError("no_capacity", "the device has no memory left for this step")
        spent = time.perf_counter() - began_s
        return Done(refusals=(*refusals, *(_refusal(run, no) for run in good)), compute_s=spent)

    def prepare(self, schema: str) -> None:
        """
        Compile a JSON schema for a session that will be opened; any thread may call it, and takes its time.

        A stage that is not the last one only tries whether it can be. Raises InferenceError.
        """
        self._sessions.prepare(schema)

    def close(self) -> None:
        """Give back the memory of all sessions."""
        self._sessions.close_all()

    def _check_rows(self, step: Step) -> None:
        """Raises InferenceError invalid_tensor: the rows are not those of the runs. Nothing is allocated for them."""
        info, rows = self._info, step.rows
        if any(run.count < 1 or run.position < 0 for run in step.runs):
            raise InferenceError("invalid_tensor", "a run has at least one row, and its position is not negative")
        total = sum(run.count for run in step.runs)
        if info.layers.is_first and (isinstance(rows, Tensor) or len(rows) != total):
            raise InferenceError("invalid_tensor", f"the first stage takes token ids, one for each of {total} rows")
        if not info.layers.is_first:
            if not isinstance(rows, Tensor) or tuple(rows.shape) != (total, info.hidden_size):
                raise InferenceError("invalid_tensor", f"hidden states of {[total, info.hidden_size]} were to come")
            check_rows(rows)

    def _good(self, step: Step, refusals: list[Refusal], now_s: float) -> list[Run]:
        """Return the runs that can be computed, their caches cut to where they begin; the others are refused."""
        good: list[Run] = []
        seen: set[str] = set()
        at = 0
        for run in step.runs:
            tokens = () if isinstance(step.rows, Tensor) else step.rows[at : at + run.count]
            at += run.count
            try:
                if run.session in seen:
                    raise InferenceError("invalid_argument", "a session has two runs in one step")
                if tokens and not 0 <= min(tokens) <= max(tokens) < self._info.vocab_size:
                    last = self._info.vocab_size - 1
                    raise InferenceError("invalid_argument", f"a token of this model is a number from 0 to {last}")
                seen.add(run.session)
                self._begin(run, now_s)
            except InferenceError as error:
                refusals.append(_refusal(run, error))
            else:
                good.append(run)
        return good

    def _begin(self, run: Run, now_s: float) -> None:
        """Cut the cache to where `run` begins. Raises InferenceError: it cannot be computed."""
        session, length = self._sessions.find(run.session), self._stage.length(run.session)
        if session is None or length is None:
            raise InferenceError("unknown_session", "the session is not open here")
        if run.epoch < session.epoch:
            raise InferenceError("stale_epoch", f"the session is at epoch {session.epoch}")
        if run.position > length:
            raise InferenceError("position_gap", f"it begins at {run.position}, the cache ends at {length}")
        if run.end > session.positions:
            raise InferenceError("no_capacity", f"the session has reserved {session.positions} positions, not more")
        if run.samples and self._info.layers.is_last and session.voice is None:
            raise InferenceError("invalid_argument", "how its tokens are to be chosen has not been told")
        if run.position < length:
            self._stage.rollback(run.session, run.position)
        session.epoch, session.used_s = run.epoch, now_s

    def _computed(self, step: Step, runs: list[Run], refusals: list[Refusal], began_s: float) -> Done:
        rows = step.rows
        x = as_torch(rows, self._dtype) if isinstance(rows, Tensor) else as_ids(rows)
        made = self._stage.forward(picked(x, step.runs, runs), runs)
        hidden: Tensor | None = None
        tokens: tuple[Sampled, ...] = ()
        if self._info.layers.is_last:
            tokens = self._sampled(made, [run for run in runs if run.samples], refusals)
        else:
            hidden = as_wire(made, self._wire if self._wire in step.takes else self._info.dtype)
        spent = time.perf_counter() - began_s
        return Done(runs=tuple(runs), hidden=hidden, tokens=tokens, refusals=tuple(refusals), compute_s=spent)

    def _sampled(self, logits: torch.Tensor, runs: list[Run], refusals: list[Refusal]) -> tuple[Sampled, ...]:
        rows, draws = [], []
        for row, run in enumerate(runs):
            voice = self._sessions.voice(run.session)
            try:
                draws.append(voice.draw(run.end))
                rows.append(row)
            except InferenceError as error:
                refusals.append(_refusal(run, error))
        if not rows:
            return ()
        found = choose(logits if len(rows) == len(runs) else logits[rows], draws)
        tokens = []
        for row, choice in zip(rows, found, strict=True):
            try:
                tokens.append(self._said(runs[row], choice))
            except InferenceError as error:
                refusals.append(_refusal(runs[row], error))
        return tuple(tokens)

    def _said(self, run: Run, choice: Choice) -> Sampled:
        if choice.token is None:
            raise InferenceError("internal", choice.problem)
        voice = self._sessions.voice(run.session)
        voice.take(choice.token)
        return Sampled(
            session=run.session,
            epoch=run.epoch,
            position=run.end,
            token=choice.token,
            is_eos=choice.token in voice.ends,
            logprob=choice.logprob,
            top=choice.top,
        )


def _refusal(what: Open | Run, error: InferenceError) -> Refusal:
    return Refusal(session=what.session, epoch=what.epoch, code=error.code, detail=str(error))


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """torch says so on a GPU by a class of its own, on a CPU by words alone."""
    is_said = "not enough memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or is_said

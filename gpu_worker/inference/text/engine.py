"""
What serves a whole model in text: layer slices here, llama.cpp here, an Ollama, or any server that speaks OpenAI's API.

An OpenAI request is the language of all of them: every door of the worker makes one, every engine takes one.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gpu_worker.model_port import Tell
from wire.openai import ChatRequest, CompletionRequest
from wire.openai_answers import Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """
    What a request wants, by whichever door it came.

    `request` was held against our limits already; its `model` is whatever the client called it, `model` is the name
    that the engine knows. `tokens_usual`: where the request names no limit, as many as the context has room for and not
    more than these; None: only the room. `session` is the answer's id, unique.
    """

    request: ChatRequest | CompletionRequest
    model: str
    session: str
    tokens_usual: int | None = None

    @property
    def is_chat(self) -> bool:
        return isinstance(self.request, ChatRequest)


class CallPart(NamedTuple):
    """
    A part of the call `number` of a tool: its first part has `id` and `name`, later ones are empty there.

    `arguments` is a part of a JSON object as text.
    """

    number: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Piece(NamedTuple):
    """
    What is new of an answer. `text` is never a part of a character; `told` are the tokens whose text begins in it.

    `reasoning` is what the model thinks aloud, which is no part of the answer. `tokens` were drawn for it, 0 where
    nothing was (an echoed prompt).
    """

    text: str = ""
    told: tuple[Told, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    tokens: int = 0


class Answer(Protocol):
    """
    An answer in the making. It must be closed.

    `prompt_tokens`, `cached_tokens` (of the prompt's, those that were not computed anew) and `tokens` are final at its
    end; before it they are what is known. `finish_reason` is stop, length, tool_calls or content_filter, None before
    the end. `model_hash` is the SHA-256 of what answers, empty where it is not known.
    """

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def model_hash(self) -> str: ...

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answer as it comes, once. Raises InferenceError: it breaks off."""

    async def close(self) -> None:
        """Stop where it goes on still, and give its slot back. Idempotent, also after the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """`vectors` are in the order of the inputs, all of one width; `tokens` were read for them."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """
    A model that can be asked for. `context` is the longest request in tokens, prompt and answer, None where that is not
    known; `model_hash` as in `Answer`. `is_loaded`: it answers at once. `quant`, `bytes` and `vram_bytes` tell of its
    weights where that is known.
    """

    name: str
    context: int | None = None
    model_hash: str = ""
    embeds: bool = False
    is_loaded: bool = True
    quant: str = ""
    bytes: int = 0
    vram_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """
    What an engine does now: sessions that are computed, sessions that wait in it, its cache in positions.

    `is_there`: what computes answers; False: it is gone, or is started again just now.
    """

    running: int = 0
    waiting: int = 0
    cache_used: int = 0
    cache_max: int = 0
    is_there: bool = True


@dataclass(slots=True, kw_only=True)
class EngineCounts:
    """What an engine has counted since it started, beyond what the doors see."""

    steps: int = 0
    rows: int = 0
    restarts: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class TextEngine(Protocol):
    """One engine; it serves one model or several."""

    @property
    def kind(self) -> str:
        """slice, gguf, ollama or openai."""

    def cards(self) -> Sequence[ModelCard]:
        """Return the models that it serves, the first one is the default. Asks nobody: it is answered at once."""

    async def begin(self, ask: Ask) -> Answer:
        """
        Return the answer that is being made.

        Raises:
            InferenceError: it is refused before anything is computed: context_length_exceeded, no_capacity, not_ready,
                draining, invalid_argument, model_not_found, upstream_error, upstream_timeout.
        """

    async def count(self, ask: Ask) -> int | None:
        """Return how many tokens the prompt is, None where only the engine's answer will tell. Raises as `begin`."""

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        """Return a vector for each input. Raises InferenceError; invalid_argument: this model makes none."""

    def load(self) -> EngineLoad: ...

    @property
    def counts(self) -> EngineCounts: ...


class WholeEngine(TextEngine, Protocol):
    """An engine of whole models, with a life of its own."""

    @property
    def names(self) -> Mapping[str, str]:
        """Other names of its models that it found itself, each with the name of the model's card."""

    async def open(self, tell: Tell) -> None:
        """Return once it answers: what is to be loaded at the start is. Raises OwnersFault: it cannot be."""

    async def keep(self) -> None:
        """Keep it alive for ever: what breaks is started again. Raises Bug: it cannot be kept alive."""

    async def close(self) -> None:
        """End it and all that it started. Idempotent."""

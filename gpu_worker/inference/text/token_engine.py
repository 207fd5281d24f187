"""A whole model in text, over whatever generates its tokens: a pipeline of slices."""

import secrets
from collections.abc import Callable, Sequence

from gpu_worker.core.inference.asking import openai_sampling
from gpu_worker.core.inference.calls import FORCED, CallFinder, Format, format_of
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling, flaw
from gpu_worker.inference.ports import Generator, Text, TokenRequest, TokenStream
from gpu_worker.inference.text.engine import Ask, Embedded, EngineCounts, EngineLoad, ModelCard
from gpu_worker.inference.text.generation import Calls, Generation, Nothing
from gpu_worker.inference.text.prompts import chat_prompt, decoded, text_prompt
from wire.openai import ChatRequest, CompletionRequest


class TokenEngine:
    """Implements `TextEngine` for one model. Calls of tools are named by `new_id`, seeds drawn by `new_seed`."""

    kind = "slice"

    def __init__(
        self,
        model: str,
        generator: Generator,
        text: Text,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        new_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        self.generator, self.text = generator, text
        self._model, self._new_id, self._new_seed = model, new_id, new_seed

    def cards(self) -> Sequence[ModelCard]:
        info = self.generator.info
        return (ModelCard(name=self._model, context=info.context, model_hash=info.model_hash),)

    async def begin(self, ask: Ask) -> Generation:
        generator, text, request = self.generator, self.text, ask.request
        prompt = await self._prompt(request)
        tokens_max = _tokens_max(request.tokens_max, ask.tokens_usual, len(prompt), generator.info.context)
        sampling = openai_sampling(request, text.eos, self._new_seed())
        _check(prompt, sampling, generator.info.vocab_size)
        calls: Calls | None = None
        shows: tuple[str, ...] = ()
        if isinstance(request, ChatRequest) and (form := _format(request, text)) is not None:
            calls, shows = self._calls(request, form), form.marks
        asked = TokenRequest(session=ask.session, prompt=prompt, tokens_max=tokens_max, sampling=sampling)
        stream: TokenStream = await generator.start(asked) if tokens_max else Nothing()
        return Generation(
            text,
            asked,
            stream,
            model_hash=generator.info.model_hash,
            stops=request.stop or (),
            shows=shows,
            calls=calls,
            echo=_echo(text, request),
        )

    async def count(self, ask: Ask) -> int:
        return len(await self._prompt(ask.request))

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        raise InferenceError("invalid_argument", f"{model} makes no embeddings here", "model")

    def load(self) -> EngineLoad:
        stats = self.generator.status().stats
        return EngineLoad(running=stats.running, waiting=stats.waiting)

    @property
    def counts(self) -> EngineCounts:
        stats = self.generator.status().stats
        return EngineCounts(steps=stats.steps, rows=stats.rows)

    async def _prompt(self, request: ChatRequest | CompletionRequest) -> tuple[int, ...]:
        context = self.generator.info.context
        if isinstance(request, ChatRequest):
            return await chat_prompt(self.text, request, context)
        return await text_prompt(self.text, request, context)

    def _calls(self, request: ChatRequest, form: Format) -> Calls:
        def new_id() -> str:
            drawn = self._new_id()
            # Some templates take no longer ones back.
            return f"call_{drawn}" if form.id_chars is None else drawn[: form.id_chars]

        return Calls(
            CallFinder(form, [tool.function.name for tool in request.offered_tools], request.calls_max), new_id
        )


def _format(asked: ChatRequest, text: Text) -> Format | None:
    """Return how calls of tools stand in the answer, None where none are looked for."""
    return FORCED if asked.demands_call else format_of(text.template) if asked.offered_tools else None


def _echo(text: Text, asked: ChatRequest | CompletionRequest) -> str:
    if isinstance(asked, ChatRequest) or not asked.echo:
        return ""
    prompt = asked.only_prompt
    return prompt if isinstance(prompt, str) else decoded(text, prompt)


def _tokens_max(wanted: int | None, usual: int | None, prompt: int, context: int) -> int:
    """Return how many tokens may follow. Raises InferenceError: there is no prompt, or no room for so many."""
    room = context - prompt
    if wanted is None:
        wanted = max(1, room if usual is None else min(room, usual))
    if not prompt:
        raise InferenceError("invalid_argument", "the prompt has no tokens", "prompt")
    if wanted > room:
        raise too_long(context, prompt, wanted)
    return wanted


def too_long(context: int, prompt: int, wanted: int) -> InferenceError:
    """Return the refusal of a request for more tokens than the context has; OpenAI's clients know its words."""
    return InferenceError(
        "context_length_exceeded",
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + wanted} tokens ({prompt} in the prompt, {wanted} in the completion). "
        "Please reduce the length of the prompt or of the completion.",
    )


def _check(prompt: tuple[int, ...], sampling: Sampling, vocab_size: int) -> None:
    for param, tokens in (("prompt", prompt), ("logit_bias", tuple(sampling.logit_bias))):
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            detail = f"a token of this model is a number from 0 to {vocab_size - 1}"
            raise InferenceError("invalid_argument", detail, param)
    if (why := flaw(sampling, vocab_size)) is not None:
        raise InferenceError("invalid_argument", why)

"""
Whole models behind any server that speaks OpenAI's API: vLLM, SGLang, llama-server, LM Studio, llama.cpp in a child.

A server is asked for streams alone: what streams can be given up, and its silence is heard. Nothing that it says of an
error reaches a client; its sizes, counts and names are checked before they are kept.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.upstream_answer import UpstreamAnswer
from gpu_worker.edges.engines.upstream_calls import forced
from gpu_worker.edges.engines.upstream_client import UpstreamClient
from gpu_worker.inference.text.engine import Answer, Ask, Embedded, EngineCounts, EngineLoad, ModelCard
from gpu_worker.inference.text.token_engine import too_long
from gpu_worker.inference.upstream.cards import Listed, chosen, embedded
from gpu_worker.inference.upstream.counting import prompt_count, prompt_text
from gpu_worker.inference.upstream.flavours import FLAVOURS, PLAIN
from gpu_worker.inference.upstream.reading import Reading
from gpu_worker.inference.upstream.request import encoded, stream_body
from gpu_worker.model_port import Tell
from outbound.http import HttpClient
from wire.openai import ChatRequest, CompletionRequest

EMBEDDINGS_BYTES_MAX = 256 * 1024 * 1024
RETRY_S = 0.5
# What a template adds to a prompt at most, in tokens; a prompt that may not fit with it is counted first.
TEMPLATE_TOKENS = 1_024


class OpenAiUpstream:
    """
    Implements `WholeEngine`.

    Args:
        base_url: up to /v1, or the server's root.
        key: the bearer that it asks for, None: none.
        models: those that are served, the default one first; none: all that the server lists.
        silence_s: without a byte for so long an answer is given up.
        flavour: a key of FLAVOURS, "": none of them; None: what the server's list of models says.
        cards: what is told of the models, instead of what the server lists.
        extra: fields of every request that the client sent none for.
        wait_s: how long the server may take until it is there.
        watch_s: how often it is looked for.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        http: HttpClient,
        *,
        models: Sequence[str] = (),
        silence_s: float = 120.0,
        kind: str = "openai",
        flavour: str | None = None,
        cards: Sequence[ModelCard] | None = None,
        extra: Mapping[str, Any] | None = None,
        wait_s: float = 60.0,
        watch_s: float = 10.0,
    ) -> None:
        self.kind = kind
        self._client = UpstreamClient(base_url, key, http, silence_s)
        self._names, self._extra = tuple(models), dict(extra or {})
        self._flavour_is_told, self._flavour = flavour is not None, FLAVOURS.get(flavour or "", PLAIN)
        self._cards_are_told = cards is not None
        self._cards = tuple(ModelCard(name=name, is_loaded=False) for name in models) if cards is None else tuple(cards)
        # By our name of a model, the server's.
        self._sent: Mapping[str, str] = {}
        self._vocabularies: Mapping[str, int | None] = {}
        self._wait_s, self._watch_s = wait_s, watch_s
        self._running = 0
        self._counts = EngineCounts()
        self.post = self._client.post

    async def open(self, tell: Tell) -> None:
        """Return once the server is there and has the models. Raises OwnersFault: it is not, or it has not."""
        where = self._client.where
        tell(f"asking {where} for its models", 0, 1)
        found = await self._awaited()
        self._take(found)
        if not self._cards_are_told:
            known = {name for each in found for name in (each.sent, each.card.name)}
            if lacking := [name for name in self._names if name not in known]:
                has = ", ".join(each.card.name for each in found[:10]) or "none"
                raise OwnersFault(f"{where} has no model {lacking[0]}, but {has}")
        if not self._cards:
            raise OwnersFault(f"{where} serves no model")
        tell(f"asking {where} for its models", 1, 1)

    async def keep(self) -> None:
        """Look for the server for ever: while it is gone, no model of it is loaded."""
        is_there = True
        while True:
            await asyncio.sleep(self._watch_s)
            try:
                self._take(await self._client.models())
            except (InferenceError, OwnersFault):
                is_there = False
                self._cards = tuple(replace(card, is_loaded=False) for card in self._cards)
                continue
            self._counts.restarts += not is_there
            is_there = True

    async def close(self) -> None:
        """Hold nothing any more: answers are closed by who has them."""

    @property
    def names(self) -> Mapping[str, str]:
        """What models may be called besides: a path is the name of its file, too."""
        return {sent: name for name, sent in self._sent.items() if sent != name}

    def cards(self) -> Sequence[ModelCard]:
        return self._cards

    def load(self) -> EngineLoad:
        """Return how many answers it makes for this worker; what else the server does is not known."""
        return EngineLoad(running=self._running, is_there=any(card.is_loaded for card in self._cards))

    @property
    def counts(self) -> EngineCounts:
        return self._counts

    async def begin(self, ask: Ask) -> Answer:
        request, card = ask.request, self._card(ask.model)
        is_chat = isinstance(request, ChatRequest)
        _check_tokens(request, self._vocabularies.get(ask.model))
        if isinstance(request, ChatRequest) and request.demands_call and self._flavour.passes_over_demands:
            return await forced(self, ask)
        echo = await self._echo(ask)
        tokens_max, content = await self._content(ask, card)
        answer = UpstreamAnswer(
            Reading(
                session=ask.session,
                tokens_max=tokens_max,
                context=card.context,
                tops_max=request.logprobs_count if isinstance(request, ChatRequest) else request.logprobs,
            ),
            silence_s=self._client.silence_s,
            echo=echo,
            is_told=tokens_max != 0,
            on_close=self._closed,
        )
        self._running += 1
        try:
            await self._client.begin(
                "/v1/chat/completions" if is_chat else "/v1/completions", content, answer, card.context
            )
        except BaseException:
            await answer.close()
            raise
        return answer

    async def count(self, ask: Ask) -> int | None:
        self._card(ask.model)
        request = ask.request
        if not isinstance(request, ChatRequest) and not isinstance(request.only_prompt, str):
            return len(request.only_prompt)
        how = self._flavour.counting
        return None if how is None else await prompt_count(self.post, how, request, self._name(ask.model))

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        card = self._card(model)
        if not card.embeds:
            raise InferenceError("invalid_argument", f"{model} makes no embeddings here", "model")
        asked = {"model": self._name(model), "input": list(inputs), "encoding_format": "float"}
        said = await self.post("/v1/embeddings", asked, bytes_max=EMBEDDINGS_BYTES_MAX, context=card.context)
        return embedded(said, len(inputs))

    async def _awaited(self) -> Sequence[Listed]:
        """Return the server's models once it is there. Raises OwnersFault: it cannot be used, or does not come."""
        deadline_s = asyncio.get_running_loop().time() + self._wait_s
        while True:
            try:
                return await self._client.models()
            except InferenceError as error:
                if asyncio.get_running_loop().time() >= deadline_s:
                    raise OwnersFault(f"nobody answers at {self._client.where}: {error}") from None
            await asyncio.sleep(RETRY_S)

    def _take(self, found: Sequence[Listed]) -> None:
        """Take over what the server says of its models."""
        if not self._flavour_is_told:
            self._flavour = FLAVOURS.get(found[0].owner, PLAIN) if found else PLAIN
        served = chosen(found, self._names)
        self._sent = {each.card.name: each.sent for each in served}
        self._vocabularies = {each.card.name: each.vocabulary for each in served}
        if self._cards_are_told:
            self._cards = tuple(replace(card, is_loaded=True) for card in self._cards)
        else:
            self._cards = tuple(each.card for each in served)

    def _card(self, model: str) -> ModelCard:
        for card in self._cards:
            if card.name == model:
                return card
        raise InferenceError("model_not_found", f"The model {model[:200]!r} does not exist here", "model")

    def _name(self, model: str) -> str:
        return self._sent.get(model, model)

    async def _content(self, ask: Ask, card: ModelCard) -> tuple[int | None, bytes]:
        """Return how many tokens are asked for, and the request. Raises InferenceError: they have no room."""
        wanted = ask.request.tokens_max
        most = ask.tokens_usual if wanted is None else wanted
        content = self._body(ask, most)
        # A token is a byte at least, so a short request is known to fit without being counted.
        if most is None or card.context is None or len(content) + TEMPLATE_TOKENS + most <= card.context:
            return most, content
        if (prompt := await self.count(ask)) is None:
            return most, content
        room = card.context - prompt
        if wanted is None:
            most = max(1, min(room, most))
        if most > room:
            raise too_long(card.context, prompt, most)
        return most, self._body(ask, most)

    def _body(self, ask: Ask, tokens_max: int | None) -> bytes:
        body = stream_body(
            ask.request,
            model=self._name(ask.model),
            tokens_max=tokens_max,
            flavour=self._flavour,
            extra=self._extra,
        )
        return encoded(body)

    async def _echo(self, ask: Ask) -> str:
        """Return what is told before an answer. Raises InferenceError: the server does not write tokens as text."""
        request = ask.request
        if isinstance(request, ChatRequest) or not request.echo:
            return ""
        prompt = request.only_prompt
        if isinstance(prompt, str):
            return prompt
        if self._flavour.counting is None:
            raise InferenceError("invalid_argument", "a prompt of tokens cannot be echoed here", "echo")
        return await prompt_text(self.post, self._flavour.counting, prompt, self._name(ask.model))

    def _closed(self, answer: UpstreamAnswer) -> None:
        self._running -= 1
        self._counts.prefix_queries += answer.prompt_tokens
        self._counts.prefix_hits += answer.cached_tokens


def _check_tokens(request: ChatRequest | CompletionRequest, vocabulary: int | None) -> None:
    """Refuse what a server would pass over. Raises InferenceError: no prompt, or tokens that the model has not."""
    prompt = () if isinstance(request, ChatRequest) else request.only_prompt
    if not prompt and not isinstance(request, ChatRequest):
        raise InferenceError("invalid_argument", "the prompt has no tokens", "prompt")
    tokens = {"prompt": () if isinstance(prompt, str) else prompt, "logit_bias": tuple(request.logit_bias or ())}
    for param, each in tokens.items():
        if vocabulary is not None and max(each, default=0) >= vocabulary:
            detail = f"a token of this model is a number from 0 to {vocabulary - 1}"
            raise InferenceError("invalid_argument", detail, param)

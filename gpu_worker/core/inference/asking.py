"""The requests of the HTTP APIs, as the sampler reads them. A 0 that was sent is a 0, and no default."""

from typing import TypeVar

from gpu_worker.core.inference.sampling import Sampling
from wire.generate import GenerateRequest
from wire.openai import ChatRequest, CompletionRequest

_SEEDS = 2**64

T = TypeVar("T")


def openai_sampling(request: ChatRequest | CompletionRequest, eos: tuple[int, ...], drawn_seed: int) -> Sampling:
    """Return how a request of the OpenAI API wants its tokens; `drawn_seed` is for one that names no seed."""
    return Sampling(
        temperature=_or(request.temperature, 1.0),
        top_k=max(0, _or(request.top_k, 0)),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        logit_bias=request.logit_bias or {},
        seed=_or(request.seed, drawn_seed) % _SEEDS,
        logprobs=request.logprobs_count if isinstance(request, ChatRequest) else request.logprobs,
        schema=request.schema_text,
        eos=eos,
        ignore_eos=bool(request.ignore_eos),
    )


def as_completion(asked: GenerateRequest) -> tuple[CompletionRequest, int]:
    """
    Return a request of `/api/v1/generate` as a completion, and how many tokens follow where it names no limit.

    Without sampling the likeliest token is taken.
    """
    told = asked.parameters
    request = CompletionRequest(
        prompt=asked.inputs,
        stream=asked.stream,
        max_tokens=told.max_new_tokens if "max_new_tokens" in told.model_fields_set else None,
        temperature=told.temperature if told.do_sample else 0.0,
        top_p=told.top_p,
        top_k=told.top_k,
        repetition_penalty=told.repetition_penalty,
        seed=told.seed,
        stop=told.stop,
    )
    return request, told.max_new_tokens


def _or(value: T | None, default: T) -> T:
    return default if value is None else value

"""The requests of both HTTP APIs, as the sampler reads them. A 0 that was sent is a 0, and no default."""

from typing import TypeVar

from gpu_worker.core.inference.sampling import Sampling
from wire.generate import GenerateParameters
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


def generate_sampling(asked: GenerateParameters, eos: tuple[int, ...], drawn_seed: int) -> Sampling:
    """Return how a request of `/api/v1/generate` wants its tokens; without sampling the likeliest is taken."""
    return Sampling(
        temperature=asked.temperature if asked.do_sample else 0.0,
        top_k=asked.top_k,
        top_p=asked.top_p,
        repetition_penalty=asked.repetition_penalty,
        seed=drawn_seed if asked.seed is None else asked.seed,
        eos=eos,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value

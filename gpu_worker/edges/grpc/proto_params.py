"""
Sampling parameters as the message GenerationParams and back.

A float there has 32 bits; it is read as the shortest decimal that it can be, so that 0.7 is 0.7 on every stage.
"""

import math
import struct
from typing import Any

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.limits import EOS_MAX, SCHEMA_CHARS_MAX, TOKENS_MAX
from gpu_worker.core.inference.sampling import LOGIT_BIAS_MAX, Sampling, flaw
from wire.proto import inference_pb2 as pb


def params_of(sampling: Sampling, max_new_tokens: int = 0) -> Any:
    """Return the message of `sampling`."""
    return pb.GenerationParams(
        max_new_tokens=max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        do_sample=sampling.temperature > 0,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        logprobs=0 if sampling.logprobs is None else sampling.logprobs + 1,
        json_schema=sampling.schema or "",
        eos=sampling.eos,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_of(params: Any) -> Sampling:
    """
    Return what `params` asks for. A 0 is a 0: temperature 0, or no `do_sample`, is greedy, and top_p 0 leaves the best
    token alone. Only a repetition penalty of 0, which cannot be, is one that was left out.

    Raises InferenceError invalid_argument: a parameter is outside its limits.
    """
    for key, length, most in (
        ("eos", len(params.eos), EOS_MAX),
        ("logit_bias", len(params.logit_bias), LOGIT_BIAS_MAX),
        ("json_schema", len(params.json_schema), SCHEMA_CHARS_MAX),
    ):
        if length > most:
            raise InferenceError("too_large", f"{key} has {length}, at most {most} are taken")
    top_p = shortest(params.top_p)
    sampling = Sampling(
        temperature=shortest(params.temperature) if params.do_sample else 0.0,
        top_k=params.top_k if top_p else 1,
        top_p=top_p or 1.0,
        min_p=shortest(params.min_p),
        repetition_penalty=shortest(params.repetition_penalty) or 1.0,
        presence_penalty=shortest(params.presence_penalty),
        frequency_penalty=shortest(params.frequency_penalty),
        logit_bias={token: shortest(number) for token, number in params.logit_bias.items()},
        seed=params.seed,
        logprobs=params.logprobs - 1 if params.logprobs else None,
        schema=params.json_schema or None,
        eos=tuple(params.eos),
        ignore_eos=params.ignore_eos,
    )
    why = flaw(sampling, TOKENS_MAX)
    if why is not None:
        raise InferenceError("invalid_argument", why)
    return sampling


def shortest(number: float) -> float:
    """Return the number with the fewest digits that has the same 32 bits as `number`."""
    if not math.isfinite(number):
        return number
    bits = struct.pack("<f", number)
    for digits in range(6, 9):
        candidate = float(f"{number:.{digits}g}")
        if struct.pack("<f", candidate) == bits:
            return candidate
    return number

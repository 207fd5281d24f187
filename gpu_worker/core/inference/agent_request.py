"""
A request of AgentService as one of the OpenAI API, which every engine takes.

Options are text, each of the name and within the limits that the OpenAI API has; what is not known is refused, so that
nothing that would change the answer is passed over.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from gpu_worker.core.inference.codes import InferenceError
from wire.openai import ChatRequest, CompletionRequest, Refused, read_request

# What each option is in a request. Ollama's names are those that clients of this service had to send.
OPTIONS = {
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "response_format": "response_format",
    "ignore_eos": "ignore_eos",
}
# Beside those: words of the system before the prompt, and whether the prompt is continued as it is, without a template.
SYSTEM, RAW = "system", "raw"
_T = TypeVar("_T", ChatRequest, CompletionRequest)
_OF_RAW = {"true": True, "1": True, "false": False, "0": False}


def agent_request(
    prompt: str, *, model: str, max_tokens: int, temperature: float, options: Mapping[str, str]
) -> ChatRequest | CompletionRequest:
    """
    Return what is asked for: a chat of one message, or with the option `raw` a text to go on with.

    `max_tokens` 0 and an empty `model` are the same as absent. A `temperature` of 0 is a 0: the likeliest token.

    Raises:
        InferenceError: invalid_argument; `param` is the field or the option that is wrong.
    """
    if not prompt:
        raise InferenceError("invalid_argument", "the prompt is empty", "prompt")
    if not math.isfinite(temperature):
        raise InferenceError("invalid_argument", "temperature is no number", "temperature")
    asked = _options(options)
    for name, value in (("max_tokens", max_tokens), ("temperature", temperature)):
        if value and name in asked:
            raise InferenceError("invalid_argument", f"{name} is said twice, in its field and as an option", name)
        if value or name == "temperature":
            asked.setdefault(name, value)
    is_raw = _OF_RAW.get(options.get(RAW, "false").lower())
    if is_raw is None or (is_raw and SYSTEM in options):
        raise InferenceError("invalid_argument", "raw is true or false, and without words of the system", RAW)
    if is_raw:
        return _checked(CompletionRequest, {**asked, "model": model or None, "prompt": prompt})
    said = [{"role": "system", "content": options[SYSTEM]}] if SYSTEM in options else []
    return _checked(
        ChatRequest, {**asked, "model": model or None, "messages": [*said, {"role": "user", "content": prompt}]}
    )


def _options(options: Mapping[str, str]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for option, value in options.items():
        if option in (SYSTEM, RAW):
            continue
        name = OPTIONS.get(option)
        if name is None:
            known = ", ".join(sorted({*OPTIONS, SYSTEM, RAW}))
            raise InferenceError("invalid_argument", f"{option[:64]!r} is no option: {known} are", option[:64])
        if name in asked:
            raise InferenceError("invalid_argument", f"{name} is said twice", option)
        asked[name] = _structure(value) if name in ("stop", "logit_bias", "response_format") else value
    return asked


def _structure(text: str) -> Any:
    """Return the list or the object that `text` is as JSON, else the text itself."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return from_json(text)
    except ValueError:
        return text


def _checked(kind: type[_T], body: dict[str, Any]) -> _T:
    request = read_request(kind, json.dumps(body).encode())
    if isinstance(request, Refused):
        raise InferenceError("invalid_argument", request.message, request.param)
    assert isinstance(request, kind)
    return request

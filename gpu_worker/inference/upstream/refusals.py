"""What another server refuses, as a refusal of ours. What it says in words is never repeated: it may say anything."""

from collections.abc import Mapping
from typing import Any

import orjson

from gpu_worker.core.inference.codes import InferenceError

# What servers say of a prompt that is too long: OpenAI, vLLM, SGLang, llama.cpp, LM Studio.
_TOO_LONG = (
    "context_length",
    "context length",
    "context size",
    "context window",
    "exceed_context",
    "max_model_len",
    "longer than the model",
)
_UNTOLD = "the server that computes for this worker"
_REFUSED: Mapping[int, tuple[str, str]] = {
    400: ("invalid_argument", "does not take this request"),
    404: ("model_not_found", "does not know this model, or not for requests of this kind"),
    405: ("invalid_argument", "takes no requests of this kind"),
    408: ("upstream_timeout", "gave up"),
    413: ("too_large", "takes no request as large as this"),
    422: ("invalid_argument", "does not take this request"),
    429: ("no_capacity", "has too much to do"),
    501: ("invalid_argument", "does not do this"),
    503: ("not_ready", "is not ready"),
    504: ("upstream_timeout", "had no answer in time"),
}
_NOT_DONE = 501
_PARAMS = frozenset(
    {
        "frequency_penalty", "input", "logit_bias", "logprobs", "max_tokens", "messages", "min_p", "presence_penalty",
        "prompt", "repetition_penalty", "response_format", "seed", "stop", "temperature", "tool_choice", "tools",
        "top_k", "top_logprobs", "top_p",
    }
)  # fmt: skip


def refusal(status: int, body: bytes | Mapping[str, Any], context: int | None = None) -> InferenceError:
    """
    Return what an answer that is none means.

    Args:
        body: as it came, or the error of an event.
        context: of the model that was asked, where it is known.
    """
    told = _read(body)
    if 400 <= status < 500 and any(mark in _words(told) for mark in _TOO_LONG):
        room = "has room for" if context is None else f"has room for: {context} tokens"
        return InferenceError("context_length_exceeded", f"the prompt is longer than this model {room}")
    code, why = _REFUSED.get(status, ("upstream_error", f"answered {status}"))
    param = told.get("param")
    blamed = param if isinstance(param, str) and param in _PARAMS and code == "invalid_argument" else None
    blamed = "model" if status == _NOT_DONE else blamed
    return InferenceError(
        code, f"{_UNTOLD} {why}" + ("" if blamed in (None, "model") else f", because of {blamed}"), blamed
    )


def event_refusal(error: Any, context: int | None = None) -> InferenceError:
    """Return what an error means that came instead of a part of an answer."""
    told: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    status = told.get("code")
    known = isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600
    return refusal(status if known else 500, told, context)  # type: ignore[arg-type]  # it is an int where it is known


def broken(what: str) -> InferenceError:
    """Return the error of an answer that cannot be read; `what` is what the server did, in words of ours."""
    return InferenceError("upstream_error", f"{_UNTOLD} {what}")


def silent(silence_s: float) -> InferenceError:
    return InferenceError("upstream_timeout", f"{_UNTOLD} said nothing for {silence_s:g} s")


def _read(body: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the error in `body`, which servers wrap differently; empty where there is none to be read."""
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except ValueError:
            return {}
    if not isinstance(body, dict):
        return {}
    inner = body.get("error", body.get("detail", body))
    return inner if isinstance(inner, dict) else {"message": inner}


def _words(told: Mapping[str, Any]) -> str:
    said = (told.get(name) for name in ("message", "type", "code"))
    return " ".join(each[:2_000].lower() for each in said if isinstance(each, str))

"""Log probabilities as servers tell them, in the chat's form or the completion's; some tell both in the chat's."""

import math
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from gpu_worker.inference.upstream.refusals import broken
from wire.openai_answers import Told

# What a token that could not be drawn is said to have: OpenAI's own number for it.
IMPOSSIBLE = -9999.0
_Top = tuple[tuple[str, bytes | None, float], ...]


def told_of(logprobs: Any, offset: int, tops_max: int) -> tuple[Told, ...]:
    """
    Return the tokens that are told.

    Args:
        offset: where the first one begins in the answer, in characters.
        tops_max: how many alternatives are told of each.

    Raises:
        InferenceError: this tells of no tokens.
    """
    if not isinstance(logprobs, dict):
        raise broken("sent log probabilities that are none")
    tokens = _of_chat(logprobs["content"], tops_max) if logprobs.get("content") else _of_completion(logprobs, tops_max)
    told = []
    for text, data, logprob, top in tokens:
        told.append(Told(text, data, logprob, offset, top))
        offset += len(text)
    return tuple(told)


def _of_chat(content: Any, tops_max: int) -> Iterable[tuple[str, bytes | None, float, _Top]]:
    for each in _items(content):
        top = tuple(_token(other) for other in _items(each.get("top_logprobs"))[:tops_max])
        yield *_token(each), top


def _of_completion(logprobs: dict[str, Any], tops_max: int) -> Iterable[tuple[str, bytes | None, float, _Top]]:
    texts, numbers, tops = (logprobs.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not (isinstance(texts, list) and isinstance(numbers, list) and isinstance(tops, list)):
        raise broken("sent log probabilities that are none")
    for text, logprob, top in zip_longest(texts, numbers, tops[: len(texts)]):
        others = sorted(top.items(), key=lambda item: -_number(item[1])) if isinstance(top, dict) else ()
        yield _text(text), None, _number(logprob), tuple((key, None, _number(each)) for key, each in others[:tops_max])


def _items(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list | None) or not all(isinstance(each, dict) for each in value or ()):
        raise broken("sent log probabilities that are none")
    return value or []


def _token(each: dict[str, Any]) -> tuple[str, bytes | None, float]:
    data = each.get("bytes")
    # Of an integer, `bytes` would make so many of them.
    whole = isinstance(data, list) and all(type(byte) is int and 0 <= byte < 256 for byte in data)
    return _text(each.get("token")), bytes(data) if whole and data is not None else None, _number(each.get("logprob"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise broken("sent log probabilities that are none")
    return value


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else IMPOSSIBLE

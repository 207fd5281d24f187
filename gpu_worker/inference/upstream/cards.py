"""The models that a server lists, as cards of ours, and the vectors that it makes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_worker.inference.text.engine import Embedded, ModelCard
from gpu_worker.inference.upstream.reading import TOKENS_MAX
from gpu_worker.inference.upstream.refusals import broken

MODELS_MAX = 1_000
WIDTH_MAX = 65_536
_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,512}")
_QUANT = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_PATH = re.compile(r"^(/|[A-Za-z]:\\|\\\\)")
# What servers call the longest request, the most telling first.
_CONTEXT = ("max_model_len", "loaded_context_length", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True, slots=True)
class Listed:
    """
    A model of a server: `sent` is its name there, `card.name` what clients call it; `owner` is who serves it,
    `vocabulary` how many tokens it knows, None where that is not told.
    """

    card: ModelCard
    sent: str
    owner: str
    vocabulary: int | None = None


def listed(document: Any) -> tuple[Listed, ...]:
    """Return the models in a server's list. Raises InferenceError: it is none."""
    models = document.get("data") if isinstance(document, dict) else None
    if not isinstance(models, list):
        raise broken("has no list of models: it does not speak OpenAI's API")
    named = (each for each in models[:MODELS_MAX] if isinstance(each, dict) and _is_name(each.get("id")))
    return tuple(_listed(each) for each in named)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _listed(model: dict[str, Any]) -> Listed:
    meta = model.get("meta")
    more = meta if isinstance(meta, dict) else {}
    lengths = [model.get(name) for name in _CONTEXT] + [more.get("n_ctx")]
    context = next((each for each in lengths if type(each) is int and 0 < each <= TOKENS_MAX), None)
    quant, size, sent = more.get("ftype"), more.get("size"), model["id"]
    card = ModelCard(
        # llama-server calls a model by the path of its file, which is nobody's business.
        name=re.split(r"[/\\]", sent)[-1] or "model" if _PATH.match(sent) else sent,
        context=context,
        embeds=True,
        quant=quant if isinstance(quant, str) and _QUANT.fullmatch(quant) else "",
        bytes=size if type(size) is int and 0 <= size < 2**50 else 0,
    )
    owner, vocabulary = model.get("owned_by"), more.get("n_vocab")
    is_count = type(vocabulary) is int and 0 < vocabulary < 2**31
    return Listed(card, sent, owner if isinstance(owner, str) else "", vocabulary if is_count else None)


def embedded(document: Any, inputs: int) -> Embedded:
    """Return the vectors of `inputs` inputs, in their order. Raises InferenceError: these are none."""
    data = document.get("data") if isinstance(document, dict) else None
    if not (isinstance(data, list) and len(data) == inputs and all(isinstance(each, dict) for each in data)):
        raise broken("sent embeddings that are none")
    places = [each.get("index", at) for at, each in enumerate(data)]
    if any(type(place) is not int for place in places) or sorted(places) != list(range(inputs)):
        raise broken("sent embeddings of other inputs")
    vectors: list[tuple[float, ...]] = [()] * inputs
    for place, each in zip(places, data, strict=True):
        vectors[place] = _vector(each.get("embedding"))
    if len({len(each) for each in vectors}) != 1:
        raise broken("sent embeddings of several widths")
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Embedded(vectors=tuple(vectors), tokens=tokens if type(tokens) is int and 0 <= tokens <= TOKENS_MAX else 0)


def _vector(value: Any) -> tuple[float, ...]:
    sound = (
        isinstance(value, list)
        and 0 < len(value) <= WIDTH_MAX
        and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    )
    if not sound:
        raise broken("sent embeddings that are none")
    return tuple(float(each) for each in value)


def chosen(found: Sequence[Listed], names: Sequence[str]) -> tuple[Listed, ...]:
    """Return the models of those names, in the names' order, or all where no name is given."""
    by_name = {name: each for each in reversed(found) for name in (each.sent, each.card.name)}
    return tuple(by_name[name] for name in names if name in by_name) if names else tuple(found)

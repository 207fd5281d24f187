"""Which quantisation of a model: of those that could be had, of the files that lie here, of an Ollama's tags."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from gpu_worker.core.quantization.catalogue import CATALOGUE, Tier, quality_of, quant_in
from gpu_worker.core.quantization.estimate import Plan, usable_of

# Where a part of the model is computed by the processor, more bits than these cost more speed than they are worth.
SPLIT_BEST = "Q4_K_M"
# What Ollama's tags are that name none.
OLLAMA_USUAL = "Q4_K_M"
QUALITY_SHARE = Decimal("0.6")
MEMORY_SHARE = Decimal("0.4")
_LAST_RESORT = max(quant.quality for quant in CATALOGUE if Tier.EMERGENCY in quant.tiers)


def offered(*, on_arm: bool = False) -> tuple[str, ...]:
    """Return the quantisations that are thought of before a download, the best first, by today's names."""
    rows = sorted((quant for quant in CATALOGUE if on_arm or not quant.is_arm), key=lambda quant: -quant.quality)
    return tuple(dict.fromkeys(quant.now for quant in rows))


def ranked(plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """Return the plans, the best choice first; where that does not fit, none does, and the least is missing of it."""
    return tuple(sorted(plans, key=_worth, reverse=True))


def _worth(each: Plan) -> tuple[bool, int, bool, bool, bool, Decimal, int]:
    """
    Return how good a choice this is.

    What fits, or lacks least; no last resort; all of it on the GPU; else no better than the processor is worth; then
    quality, and of two that are as good the smaller one.
    """
    quality = quality_of(each.weights.quant) if each.weights.quant else Decimal(0)
    is_apt = each.is_whole or quality <= quality_of(SPLIT_BEST)
    return (
        each.fits,
        -each.missing_bytes,
        quality > _LAST_RESORT,
        each.is_whole,
        is_apt,
        quality if is_apt else -quality,
        -each.bytes,
    )


def tag_for(name: str, quant: str) -> str:
    """
    Return what Ollama calls a model in this quantisation.

    Example: llama3.1:8b -> llama3.1:q4_k_m; hf.co/bartowski/Llama-GGUF -> hf.co/bartowski/Llama-GGUF:Q4_K_M.
    """
    base, tag = split_tag(name)
    if tag:
        return f"{base}:{quant.lower()}"
    return f"{name}:{quant if name.endswith('-GGUF') else quant.lower()}"


def split_tag(name: str) -> tuple[str, str]:
    """Return a model's name without its tag, and the tag, empty where there is none; a port is no tag."""
    base, colon, tag = name.rpartition(":")
    return (base, tag) if colon and "/" not in tag else (name, "")


def choose_installed(wanted: str, tags: Mapping[str, int], memory_bytes: int) -> str | None:
    """
    Return which of the models that Ollama has already answers for `wanted`, None: none of them does.

    It is the tag itself, else the one with the best score of those of the same base whose tag has every word of the
    wanted one but the quantisation: 0.6 x quality + 0.4 x the share of the memory that it leaves. What does not fit
    is left out.

    Args:
        tags: the installed models, each with the bytes of its weights.
        memory_bytes: what is free on the device.

    Example: wanted llama3.1, tags llama3.1:8b-instruct-q8_0 of 8.5 GB and ...-q4_k_m of 4.9 GB, 12 GiB -> q4_k_m.
    """
    usable = usable_of(memory_bytes)
    fitting = {tag: size for tag, size in tags.items() if size <= usable}
    for exact in (wanted, f"{wanted}:latest"):
        if exact in fitting:
            return exact
    base, tag = split_tag(wanted)
    words = _words(tag)
    alike = [each for each in sorted(fitting) if split_tag(each)[0] == base and words <= _words(split_tag(each)[1])]
    return max(alike, key=lambda each: score(each, fitting[each], usable), default=None)


def score(tag: str, size: int, usable_bytes: int) -> Decimal:
    """Return how well an installed model suits a memory, 0 to 1."""
    quality = quality_of(quant_in(tag) or OLLAMA_USUAL)
    left = max(Decimal(0), 1 - Decimal(size) / max(1, usable_bytes))
    return QUALITY_SHARE * quality + MEMORY_SHARE * left


def _words(tag: str) -> frozenset[str]:
    """Return the words of a tag, its quantisation left out; `latest` says nothing."""
    quant = quant_in(tag)
    rest = re.sub(re.escape(quant), "", tag, flags=re.IGNORECASE) if quant else tag
    return frozenset(word for word in re.split(r"[-_.:]", rest.lower()) if word and word != "latest")

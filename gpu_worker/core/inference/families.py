"""Which model families can be sliced, and how the rows of their sessions may share a pass. The class is tested."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from gpu_worker.core.errors import OwnersFault

# Sessions at any positions in one pass, at equal positions only, or one session a pass.
Batching = Literal["ragged", "equal", "one"]


@dataclass(frozen=True, slots=True)
class Family:
    """`name` is the `model_type` of config.json; `lean`: our own decoder knows it too, and asks a self-test."""

    name: str
    batching: Batching
    lean: bool = False


_LEAN = ("gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_RAGGED = (
    "bloom",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "falcon",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granitemoe",
    "mixtral",
    "mpt",
    "olmo3",
    "opt",
    "phi",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "seed_oss",
    "starcoder2",
)
# Their state has no positions: what a session's rows leave behind cannot be padded, nor cut.
_ONE = ("qwen3_next",)

FAMILIES: dict[str, Family] = {
    **{name: Family(name, "ragged") for name in _RAGGED},
    **{name: Family(name, "one") for name in _ONE},
    **{name: Family(name, "ragged", lean=True) for name in _LEAN},
}

_SHARED = "its layers take inputs of their own and use each other's cache, so none can be served apart"
_SEEN = "it reads images as well, and only models of text are sliced"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified"), _SHARED),
    **dict.fromkeys(("gemma3", "llama4", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _SEEN),
    **dict.fromkeys(("bert", "roberta"), "it is no causal language model"),
    **dict.fromkeys(("bart", "t5", "mt5"), "it has an encoder, whose states every layer of its decoder reads"),
}


# How a model turns its queries and keys by position. These look at the longest session of a pass.
_ROTATES_ALIKE = "longrope"
_ROTATES_BY_HISTORY = "dynamic"


def family(model_type: str, rotations: Collection[str] = ()) -> Family:
    """
    Return the family of a config's `model_type`, with the class that its `rotations` (rope types) leave it.

    Raises:
        OwnersFault: it is refused; the sentence says why.
    """
    found = FAMILIES.get(model_type)
    if found is None:
        why = REFUSED.get(model_type, "nobody has shown that its layers can be served apart")
        raise OwnersFault(f"models of the family {model_type[:60] or '(none)'} cannot be sliced: {why}")
    if _ROTATES_BY_HISTORY in rotations:
        raise OwnersFault(
            f"this {model_type} model cannot be sliced: its rotation ({_ROTATES_BY_HISTORY}) depends on the longest "
            "session so far"
        )
    if _ROTATES_ALIKE in rotations and found.batching == "ragged":
        return replace(found, batching="equal", lean=False)
    return found

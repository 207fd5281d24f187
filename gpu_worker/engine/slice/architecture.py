"""What the families of the `lean` back end do alike and what each does otherwise, read from a model's config."""

from dataclasses import dataclass
from typing import Any

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference import families
from gpu_worker.engine.slice import rope

# Families whose config says all that they do otherwise than Llama, or that this table says of them.
_QK_NORM = {"qwen3": "head", "olmo2": "row"}
_ACTIVATIONS = frozenset({"silu", "gelu", "gelu_pytorch_tanh"})
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """
    `windows` and `turns` have an entry for each of the model's layers: how many positions it sees, None for all, and
    whether its heads are turned by position. `qk_norm`: queries and keys are normed by `head`, by `row`, or not (the
    empty word). `norms_after`: a block's result is normed, not what it takes. A norm's factors are `norm_offset` plus
    its weight.
    """

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    activation: str
    windows: tuple[int | None, ...]
    turns: tuple[bool, ...]
    qk_norm: str
    norms_after: bool
    norm_offset: float
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logits_divisor: float


def architecture(config: Any) -> Architecture:
    """Return what a text model's config says. Raises OwnersFault: the `lean` back end does not know it; says why."""
    family, layers = str(config.model_type), int(config.num_hidden_layers)
    if not families.family(family).lean:
        raise OwnersFault(f"the lean back end does not know the family {family[:60]}")
    if (kind := rope.rope_type(config)) not in rope.STATIC:
        raise OwnersFault(f"the lean back end does not turn heads as {kind[:40]} does")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = str(getattr(config, "hidden_activation", None) or config.hidden_act)
    if family == "gemma":
        # Its config says gelu where it means this one.
        activation = "gelu_pytorch_tanh" if activation.startswith("gelu") else activation
    if activation not in _ACTIVATIONS:
        raise OwnersFault(f"the lean back end does not know the activation {activation[:40]}")
    turns = getattr(config, "no_rope_layers", None) if family == "smollm3" else None
    return Architecture(
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        eps=config.rms_norm_eps,
        activation=activation,
        windows=_windows(config, layers),
        turns=tuple(bool(each) for each in turns) if turns else (True,) * layers,
        qk_norm=_QK_NORM.get(family, ""),
        norms_after=family == "olmo2",
        norm_offset=1.0 if family == "gemma" else 0.0,
        embedding_scale=float(config.hidden_size) ** 0.5
        if family == "gemma"
        else float(getattr(config, "embedding_multiplier", 1.0)),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        attention_scale=float(config.attention_multiplier) if family == "granite" else head_dim**-0.5,
        logits_divisor=float(getattr(config, "logits_scaling", 1.0)),
    )


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    """Return the window of each layer. Raises OwnersFault: a layer's kind of attention is another one."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        is_everywhere = getattr(config, "use_sliding_window", True)
        if not is_everywhere and hasattr(config, "max_window_layers"):
            window = None
        return (window,) * layers
    if odd := set(kinds) - {_FULL, _SLIDING}:
        raise OwnersFault(f"the lean back end does not know layers of the kind {min(odd)[:40]}")
    return tuple(window if kind == _SLIDING else None for kind in kinds)

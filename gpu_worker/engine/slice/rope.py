"""The angles of rotary positions, made by transformers' own code, so that every variant is the family's own."""

import importlib
from typing import Any

import torch
from torch import Tensor

from gpu_worker.core.errors import OwnersFault

# Angles that depend on nothing but the position.
STATIC = frozenset({"default", "linear", "llama3", "yarn"})


def rope_type(config: Any) -> str:
    """Return the config's variant of rotary positions, by its name in transformers."""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(said.get("rope_type", said.get("type", "default")))


class Angles:
    """
    The angles of any positions, made when they are asked for: a table of a long context takes a hundred megabytes.

    Raises OwnersFault: the angles of this config's variant depend on how long the whole batch is.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        if (kind := rope_type(config)) not in STATIC:
            raise OwnersFault(f"rotary positions of the kind {kind[:40]} depend on a neighbour's length")
        family = str(config.model_type)
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        made = next(getattr(module, name) for name in dir(module) if name.endswith("RotaryEmbedding"))(config=config)
        self._steps = made.inv_freq.float().to(device)
        self._scale, self._dtype = float(made.attention_scaling), dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return (cos, sin) of `positions` [N], each [N, 1, turned dims].

        The sine of the first half is negative: a head turns by x * cos + swapped halves of x * sin.
        """
        angles = positions[:, None, None].float() * self._steps
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), -1).to(self._dtype), torch.cat((-sin, sin), -1).to(self._dtype)


def turn(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn `heads` [N, heads, dims] in place by the angles of their rows, [N, 1, turned dims]."""
    turned = cos.shape[-1]
    part = heads if turned == heads.shape[-1] else heads[..., :turned]
    half = turned // 2
    swapped = torch.cat((part[..., half:], part[..., :half]), -1)
    torch.addcmul(part * cos, swapped, sin, out=part)

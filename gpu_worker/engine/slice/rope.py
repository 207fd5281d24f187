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

    def __init__(self, config: Any, device: torch.device) -> None:
        if (kind := rope_type(config)) not in STATIC:
            raise OwnersFault(f"rotary positions of the kind {kind[:40]} depend on a neighbour's length")
        family = str(config.model_type)
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        made = next(getattr(module, name) for name in dir(module) if name.endswith("RotaryEmbedding"))(config=config)
        self._steps = made.inv_freq.float().to(device)
        self._scale = float(made.attention_scaling)

    def __call__(self, positions: Tensor) -> Tensor:
        """Return how the heads at `positions` [N] turn: complex numbers, [N, 1, turned dims / 2]."""
        angles = positions[:, None, None].float() * self._steps
        return torch.polar(torch.full_like(angles, self._scale), angles)

    def paired(self, rows: Tensor, head_dim: int) -> Tensor:
        """
        Return what makes heads, [heads * head dim, ...], with the two numbers that turn together side by side.

        Families keep them half a head apart; queries and keys that are reordered alike have the same product, and a
        pair is one complex number.
        """
        turned = 2 * len(self._steps)
        order = torch.arange(head_dim, device=rows.device)
        order[:turned] = order[:turned].view(2, -1).t().flatten()
        return rows.view(-1, head_dim, *rows.shape[1:])[:, order].reshape(rows.shape)


def turn(heads: Tensor, angles: Tensor) -> None:
    """Turn `heads` [N, heads, dims], their numbers `paired`, in place by the `angles` of their rows."""
    part = heads[..., : 2 * angles.shape[-1]].unflatten(-1, (-1, 2))
    numbers = torch.view_as_complex(part.float()).mul_(angles)
    if part.dtype != torch.float32:
        part.copy_(torch.view_as_real(numbers))

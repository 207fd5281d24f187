"""
A causal language model of transformers without the layers that somebody else has.

The list of layers keeps its length: what a family asks its layers' numbers for (which ones slide, which are dense, how
a layer scales) stays right. Layers of others are stubs without weights, and so is what stands before or behind them on
a slice that is not the first or the last.
"""

import re
from typing import Any

import torch
from torch import nn

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.layers import Layers

# What stands behind the layers, by the names that the families give it.
_BEHIND = re.compile(r"(^|_)(norm|ln_f|final|project_out|out_norm)")


class _Same(torch.Tensor):  # type: ignore[misc]
    """Hidden states whose first item is themselves: some families' layers return a tuple, some a tensor."""

    def __getitem__(self, index: Any) -> Any:
        return self if isinstance(index, int) and index == 0 else super().__getitem__(index)


class LayerStub(nn.Module):  # type: ignore[misc]
    """A layer of somebody else: it gives back what it got."""

    def forward(self, *args: Any, **named: Any) -> Any:
        hidden = args[0] if args else named["hidden_states"]
        return hidden.as_subclass(_Same)


class BeforeStub(nn.Module):  # type: ignore[misc]
    """What stands before the layers and is somebody else's. Its result is replaced when the first own layer begins."""

    def forward(self, x: Any, *args: Any, **named: Any) -> Any:
        is_hidden = x.is_floating_point() and x.ndim == 3
        return x if is_hidden else torch.zeros(1, 1, 1, device=x.device)


def prune(model: Any, layers: Layers) -> None:
    """Take away from `model`, in place, what the slice does not own. Raises OwnersFault: its layers are not found."""
    parent, name = _place_of_layers(model, layers.total)
    blocks = getattr(parent, name)
    for index in range(layers.total):
        if not layers.start <= index < layers.end:
            blocks[index] = LayerStub()
    is_tied = bool(getattr(model, "all_tied_weights_keys", None))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for child_name, child in list(parent.named_children()):
        if child_name == name or next(child.parameters(), None) is None:
            continue
        is_behind = bool(_BEHIND.search(child_name))
        is_own = layers.is_last if is_behind else layers.is_first
        if not is_own and not (child is embedding and layers.is_last and is_tied):
            setattr(parent, child_name, BeforeStub())
    if not layers.is_last:
        for child_name, child in list(model.named_children()):
            if child is head:
                setattr(model, child_name, LayerStub())
        # Whoever has no head has nothing that is tied to the embedding.
        model.all_tied_weights_keys = {}


def blocks_of(model: Any, total: int) -> Any:
    """Return the list of a model's layers, stubs among them."""
    parent, name = _place_of_layers(model, total)
    return getattr(parent, name)


def _place_of_layers(model: Any, total: int) -> tuple[Any, str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent, _, attribute = name.rpartition(".")
            return model.get_submodule(parent), attribute
    raise OwnersFault(f"the model has no list of {total} layers")

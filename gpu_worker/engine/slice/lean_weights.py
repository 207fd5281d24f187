"""Weights of a Llama-like slice, from the model's files into the order in which the `lean` back end multiplies them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.layers import Layers
from gpu_worker.engine.model_files import stored_in, weight_files
from gpu_worker.engine.slice.architecture import Architecture
from gpu_worker.engine.slice.linear import Linear, Packing
from gpu_worker.engine.slice.loading import SPARE_BYTES, ModelSeen, weights_of
from gpu_worker.engine.slice.rope import Angles


class LeanLayer(NamedTuple):
    """`norms` are those before the attention and the MLP, `norms_after` those behind them; each may be missing."""

    norms: tuple[Tensor | None, Tensor | None]
    norms_after: tuple[Tensor | None, Tensor | None]
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    qk_norms: tuple[Tensor, Tensor] | None
    window: int | None
    is_turned: bool


class LeanWeights:
    """Reads them, tensor by tensor; each is gone from its file's mapping when it is packed."""

    def __init__(
        self, seen: ModelSeen, about: Architecture, angles: Angles, how: Packing, device: torch.device
    ) -> None:
        self._seen, self._about, self._angles, self._how, self._device = seen, about, angles, how, device

    def layer(self, index: int) -> LeanLayer:
        """Return the layer `index`. Raises OwnersFault: the files lack a weight of it."""
        about, at = self._about, f"model.layers.{index}."
        # Opened layer by layer: what is read of a file leaves memory with its layer.
        weights = weights_of(self._seen.folder, Layers(index, index + 1, self._seen.layers))
        attention, mlp = f"{at}self_attn.", f"{at}mlp."

        def packed(prefix: str, *names: str) -> Linear:
            return self._how.pack(*self._joined(weights, [f"{prefix}{name}" for name in names]))

        is_fused = f"{mlp}gate_up_proj.weight" in weights
        gate_up = packed(mlp, "gate_up_proj") if is_fused else packed(mlp, "gate_proj", "up_proj")
        between = f"{at}post_attention_layernorm.weight"
        names = [f"{at}input_layernorm.weight", between, None, None]
        if about.norms_after:
            names = [None, None, between, f"{at}post_feedforward_layernorm.weight"]
        norms = [None if name is None else self._norm_weight(weights, name) for name in names]
        of_heads = [
            self._angles.paired(self._norm_weight(weights, f"{attention}{name}_norm.weight"), about.head_dim)
            for name in "qk"
            if about.qk_norm
        ]
        return LeanLayer(
            norms=(norms[0], norms[1]),
            norms_after=(norms[2], norms[3]),
            qkv=self._qkv(weights, attention),
            out=packed(attention, "o_proj"),
            gate_up=gate_up,
            down=packed(mlp, "down_proj"),
            qk_norms=(of_heads[0], of_heads[1]) if of_heads else None,
            window=about.windows[index],
            is_turned=about.turns[index],
        )

    def _qkv(self, weights: Mapping[str, Tensor], at: str) -> Linear:
        about = self._about
        names = ("qkv_proj",) if f"{at}qkv_proj.weight" in weights else ("q_proj", "k_proj", "v_proj")
        cut = (about.heads + about.kv_heads) * about.head_dim

        def paired(rows: Tensor) -> Tensor:
            return torch.cat((self._angles.paired(rows[:cut], about.head_dim), rows[cut:]))

        weight, bias = self._joined(weights, [f"{at}{name}" for name in names])
        return self._how.pack(paired(weight), None if bias is None else paired(bias))

    def ends(self, layers: Layers) -> tuple[Tensor | None, Tensor | None, Linear | None]:
        """Return embedding, last norm and head of a slice, each where it has it. Raises OwnersFault: one is missing."""
        weights, tied = weights_of(self._seen.folder, layers), "model.embed_tokens"
        embedding, norm, head = None, None, None
        if layers.is_first:
            embedding = _asked(weights, f"{tied}.weight").to(self._device, self._how.stored, copy=True)
            if not bool(embedding.abs().amax().isfinite()):
                raise OwnersFault(f"a number of the embedding is beyond what {self._how.name} holds")
        if layers.is_last:
            norm = self._norm_weight(weights, "model.norm.weight")
            is_tied = getattr(self._seen.config, "tie_word_embeddings", False) or "lm_head.weight" not in weights
            head = self._how.pack_head(*self._joined(weights, [tied if is_tied else "lm_head"]))
        return embedding, norm, head

    def _joined(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return the weights of `names` one below the other, and their biases, None where they have none."""
        parts = [_asked(weights, f"{name}.weight").to(self._device) for name in names]
        if len(parts) == 1:
            weight = parts[0].to(self._how.flow)
        else:
            weight = torch.cat(parts, out=torch.empty(0, dtype=self._how.flow, device=self._device))
        biases = [weights.get(f"{name}.bias") for name in names]
        if not any(each is not None for each in biases):
            return weight, None
        filled = [
            torch.zeros(len(part)) if bias is None else bias.float() for part, bias in zip(parts, biases, strict=True)
        ]
        return weight, torch.cat(filled).to(self._device, self._how.flow)

    def _norm_weight(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        weight = _asked(weights, name).to(self._device, torch.float32, copy=True)
        return (weight + self._about.norm_offset).to(self._how.flow)


def check_fits(seen: ModelSeen, layers: Layers, how: Packing, free: int) -> None:
    """Raise OwnersFault: the slice, or what there is of it while its ends or a layer are packed, has more bytes."""
    is_tied, owned = bool(getattr(seen.config, "tie_word_embeddings", False)), weights_of(seen.folder, layers)
    of_layers, embedding, head, largest = 0, 0, 0, 0
    for path in weight_files(seen.folder):
        for name, stored in stored_in(path):
            padded = stored.numbers
            if len(stored.shape) == 2 and padded:
                padded = stored.shape[0] * -(-stored.shape[1] // how.width) * how.width
            if name == "model.embed_tokens.weight":
                embedding, head = stored.numbers, head or padded
            elif name == "lm_head.weight":
                head = head if is_tied else padded
            elif name in owned:
                of_layers, largest = of_layers + padded, max(largest, padded)
    # Where both ends are owned and tied there are two: one to look up, one packed.
    ends = layers.is_first * embedding * how.stored.itemsize
    ends += layers.is_last * int(head * max(1, how.bytes_per_number))
    beside_ends = layers.is_last * head * how.flow.itemsize
    # Two tensors are packed as one, before the rest of their layer comes.
    rest = int((of_layers // layers.count - 2 * largest) * how.bytes_per_number)
    of_pack = max(0, 2 * largest * how.flow.itemsize - max(0, rest))
    needed = ends + max(beside_ends, int(of_layers * how.bytes_per_number) + of_pack) + SPARE_BYTES
    if needed > free:
        raise OwnersFault(
            f"the layers {layers} of {seen.folder.name} need {needed >> 20} MiB as {how.name}, {free >> 20} are free: "
            f"{(needed - free >> 20) + 1} MiB are missing"
        )


def _asked(weights: Mapping[str, Tensor], name: str) -> Any:
    try:
        return weights[name]
    except KeyError:
        raise OwnersFault(f"the model's files lack {name}") from None

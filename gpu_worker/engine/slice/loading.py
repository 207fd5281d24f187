"""
The weights of a slice from a folder of the owner's: its own layers alone, the first with the embedding, the last with
norm and head. No code of the model's is run, nothing is unpickled, nothing is asked of a network.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.inference.families import Family, family
from gpu_worker.core.inference.layers import Layers
from gpu_worker.engine.model_files import config_in, stored_in, weight_files
from gpu_worker.engine.slice.pruning import prune

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WORDS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# How long a session may be where a config says nothing: Bloom's ends nowhere.
CONTEXT_UNSAID = 2_048
# What a forward pass takes beside the weights; the KV cache has a bound of its own.
SPARE_BYTES = 64 * 1024 * 1024

# What makes transformers read other tensors than those of the folder's files.
_ELSEWHERE = {
    "quantization_config": "its weights are quantised already",
    "transformers_weights": "its weights are said to be in a file of another name",
    "adapter_config.json": "it is an adapter of another model",
}
# Called with how many of the slice's tensors are loaded, and how many it has.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSeen:
    """A model in a folder, not loaded. `config` is transformers' own, of the text; `dtype` is most of its weights'."""

    folder: Path
    family: Family
    config: Any
    layers: int
    hidden_size: int
    vocab_size: int
    context: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A slice in memory: `model` is a causal language model of transformers with stubs for what others have."""

    seen: ModelSeen
    model: Any
    layers: Layers
    dtype: str
    device: torch.device
    bytes: int


def look_at(folder: Path) -> ModelSeen:
    """
    Return what model lies in `folder`. Its config, file names and headers are read, no weights.

    Raises:
        BadInput: it needs code of its own.
        OwnersFault: there is none, its family cannot be sliced, or its files are not whole.
    """
    said = config_in(folder)
    kind = str(said.get("model_type", ""))
    family(kind)
    for name in _ELSEWHERE:
        if name in said or (folder / name).exists():
            raise OwnersFault(f"the model {folder.name} cannot be sliced: {_ELSEWHERE[name]} ({name})")
    from transformers import AutoConfig

    with _as_owners_fault():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
        layers, hidden_size, vocab_size = config.num_hidden_layers, config.hidden_size, config.vocab_size
        found = family(kind, _rotations_of(config))
    held, counted = -1, dict.fromkeys(_WORDS, 0)
    for path in weight_files(folder):
        for name, stored in stored_in(path):
            held = max(held, _layer_of(name, -1))
            if stored.dtype in counted:
                counted[stored.dtype] += stored.bytes
    if held + 1 < layers:  # more there may be: some checkpoints have a layer that only predicts ahead
        raise OwnersFault(f"the model's config.json says {layers} layers, its files have {held + 1}")
    return ModelSeen(
        folder=folder,
        family=found,
        config=config,
        layers=layers,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        context=_context_of(config),
        dtype=_WORDS[max(counted, key=lambda word: counted[word])],
    )


def load_slice(
    seen: ModelSeen,
    layers: Layers,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    free_bytes: int | None = None,
    on_progress: OnProgress | None = None,
) -> Loaded:
    """
    Return the slice in memory. `dtype` is a key of DTYPES, or `auto`: the checkpoint's.

    Args:
        free_bytes: what it may take, None for what the device has left.

    Raises:
        OwnersFault: it does not fit (nothing is allocated then), or its weights are not all there.
    """
    if layers.total != seen.layers:
        raise OwnersFault(f"{layers} is a slice of {layers.total} layers, {seen.folder.name} has {seen.layers}")
    word = seen.dtype if dtype == "auto" else dtype
    if word not in DTYPES:
        raise OwnersFault(f"the dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    where, sizes = torch.device(device), list[int]()

    def fits(shape: Any) -> None:
        sizes.append(sum(each.numel() for each in shape.parameters()) * DTYPES[word].itemsize)
        needed = sizes[-1] + SPARE_BYTES
        free = free_bytes_of(where) if free_bytes is None else free_bytes
        if needed > free:
            raise OwnersFault(
                f"the layers {layers} of {seen.folder.name} need {_mib(needed)} MiB in {word} on {device}, "
                f"{_mib(free)} are free: {_mib(needed - free)} are missing"
            )

    _quiet()
    with _as_owners_fault(), _counted(on_progress):
        model, told = _sliced_class(seen, layers, fits).from_pretrained(
            seen.folder,
            config=seen.config,
            dtype=DTYPES[word],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Straight to where they are used, without a copy in the machine's own memory.
            **({} if where.type == "cpu" else {"device_map": {"": str(where)}}),
        )
    lost = sorted({*told["missing_keys"], *(name for name, each in model.named_parameters() if each.is_meta)})
    if lost or told["mismatched_keys"]:
        # They would be drawn by chance.
        first = (lost or ["one of the right shape"])[0]
        raise OwnersFault(f"the model's files lack {len(lost) or 1} tensors of the layers {layers}, {first} among them")
    return Loaded(seen=seen, model=model.eval(), layers=layers, dtype=word, device=where, bytes=sizes[-1])


def weights_of(folder: Path, layers: Layers) -> Mapping[str, torch.Tensor]:
    """
    Return the tensors of the owned layers, and all that belong to no layer, by their names in the files.

    A tensor is read when it is asked for, and not kept here; on the CPU its pages are the file's: they must not be
    written, and leave memory with it. Raises OwnersFault: a file is cut off or broken.
    """
    return _Weights(
        {
            name: path
            for path in weight_files(folder)
            for name, _ in stored_in(path)
            if layers.start <= _layer_of(name, layers.start) < layers.end
        }
    )


class _Weights(Mapping[str, torch.Tensor]):
    def __init__(self, where: Mapping[str, Path]) -> None:
        self._where = where

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        path = self._where[name]
        # Opened anew for each: what one opening has read stays in memory as long as it is open.
        with _as_owners_fault(), safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _layer_of(name: str, default: int) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else default


def _rotations_of(config: Any) -> set[str]:
    said = getattr(config, "rope_parameters", None) or {}
    kinds = [said, *(each for each in said.values() if isinstance(each, dict))]  # one for all layers, or one a kind
    return {str(each["rope_type"]) for each in kinds if "rope_type" in each}


def _context_of(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            return found
    return CONTEXT_UNSAID


def _sliced_class(seen: ModelSeen, layers: Layers, check: Callable[[Any], None]) -> Any:
    """
    Return the family's causal model as a class whose instances have the slice alone.

    transformers builds an instance without memory, which `check` may refuse, then reads only those tensors that it has,
    with all that it does to them: names of old, experts that become one tensor, dtypes.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    base: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(seen.config)]

    def __init__(self: Any, config: Any, *args: Any, **named: Any) -> None:
        base.__init__(self, config, *args, **named)
        prune(self, layers)
        check(self)

    fields = {"__init__": __init__, "__module__": base.__module__, "_keys_to_ignore_on_load_unexpected": [r".*"]}
    return type(base.__name__, (base,), fields)


def free_bytes_of(device: torch.device) -> int:
    """Return how much of the device's memory is free; a limit on this process alone is not seen."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    import psutil

    return int(psutil.virtual_memory().available)


def _mib(size: int) -> int:
    return -(-size // 2**20)


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _counted(on_progress: OnProgress | None) -> Iterator[None]:
    """Tell of every tensor that transformers loads inside."""
    from transformers.utils import logging

    def hook(factory: Any, args: Any, named: Any) -> Any:
        return _telling(list(args[0]), on_progress) if args and on_progress else factory(*args, **named)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _telling(items: list[Any], on_progress: OnProgress) -> Iterator[Any]:
    for done, item in enumerate(items):
        on_progress(done, len(items))
        yield item
    on_progress(len(items), len(items))


@contextmanager
def _as_owners_fault() -> Iterator[None]:
    """Name what a library of many authors raises for files that are wrong."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | RuntimeError) and "memory" in str(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise OwnersFault(f"the model cannot be loaded: {said[:300]}") from error

"""What a child process that serves a GGUF file through llama.cpp is told, and what its last words mean."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Package = Literal["xllamacpp", "llama-cpp-python"]
PACKAGES: tuple[Package, ...] = ("xllamacpp", "llama-cpp-python")
CacheType = Literal["f16", "q8_0", "q4_0"]
# Positions of all slots together; more is no context of any machine, and counts beyond it overflow in llama.cpp.
POSITIONS_MAX = 2**30
SPEC_BYTES_MAX = 64 * 1024
_WORDS_MAX = 300


class LlamaSpec(BaseModel):
    """
    What is served, and with what: limits of ours, for llama.cpp ends its process over most wrong numbers.

    `context` is of one slot, in tokens; `batch` is how many are computed in one step; `lora` are adapters with their
    scales; `embeds`: it makes vectors, not texts. `key` is what its listener asks for. `memory_bytes_max` is what it
    may have of the machine's own memory beside the mapped file, None: all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: Package
    path: str
    name: Annotated[str, Field(min_length=1, max_length=200)]
    key: Annotated[str, Field(min_length=16)]
    context: Annotated[int, Field(ge=8, le=2**24)]
    slots: Annotated[int, Field(ge=1, le=256)]
    threads: Annotated[int, Field(ge=1, le=512)]
    gpu_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    batch: Annotated[int, Field(ge=32, le=4_096)] = 512
    kv_dtype: CacheType = "f16"
    lora: tuple[tuple[str, Annotated[float, Field(ge=-1_000, le=1_000, allow_inf_nan=False)]], ...] = ()
    embeds: bool = False
    memory_bytes_max: Annotated[int, Field(ge=2**26)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.context * self.slots > POSITIONS_MAX:
            raise ValueError(f"{self.slots} x {self.context} tokens of context are more than any machine holds")
        # A step computes one token of every slot at least.
        if self.slots > self.batch:
            raise ValueError(f"{self.slots} slots need steps of as many tokens, not {self.batch}")
        return self


# What llama.cpp says of a file before it gives up, and what that means; the first that is found is the reason.
_REASONS: tuple[tuple[str, str], ...] = (
    (r"model architecture: 'clip'|expected GGUF|invalid magic", "the file is no GGUF file"),
    (r"failed to read magic", "the file is too short to be a GGUF file"),
    (r"version 5033\d+|endianness", "the file is written in the other order of bytes"),
    (r"GGUFv1 is no longer|is version \d+ but", "the file is of a version of GGUF that llama.cpp does not read"),
    (r"not within the file bounds", "the file is cut off: tensors lie beyond its end"),
    (r"unknown model architecture: '(?P<a>[\w.-]{1,40})'", "llama.cpp does not know the architecture {a}"),
    (r"REMOVED", "its quantisation was removed from llama.cpp: take Q4_0, which is repacked when it is loaded"),
    (r"invalid ggml type", "a tensor is quantised in a way that llama.cpp does not know"),
    (r"loading model vocabulary: unknown (?P<a>tokenizer|pre-tokenizer)", "llama.cpp does not know its {a}"),
    (r"loading model vocabulary|tokenizer\.ggml", "its vocabulary is missing or broken"),
    (
        r"tensor 'token_embd\.weight' has wrong shape",
        "its vocabulary has another number of tokens, or its width is another, than its weights have",
    ),
    (r"tensor '(?P<a>[\w.]{1,60})' has wrong shape", "the tensor {a} has another shape than the model says"),
    (r"tensor '(?P<a>[\w.]{1,60})' not found|missing tensor '(?P<b>[\w.]{1,60})'", "the tensor {a} is missing"),
    (r"loading model hyperparameters", "what it says of its own shape is incomplete or impossible"),
    (r"n_layer_all", "its number of layers is impossible"),
    (
        r"failed to allocate|unable to allocate|out of memory|bad_alloc|cannot allocate|MemoryError",
        "it does not fit into the memory",
    ),
    (r"lora", "an adapter (LoRA) does not fit this model, or cannot be read"),
    (r"chat.?template|jinja|[Tt]emplate", "its chat template cannot be used"),
    (r"gguf_init_from_reader|failed to read|string length", "the file is broken: its header cannot be read"),
    (
        r"No module named '(?:xllamacpp|llama_cpp)[\w.]*'|No module named '(?P<a>[\w.]{1,40})'",
        "llama.cpp is not installed: pip install 'livery[gguf]'",
    ),
)


def reason_of(said: str, code: int | None) -> str:
    """
    Return why llama.cpp ended, in words of ours: what it said may name paths, and anything that stands in a file.

    Args:
        said: the end of its stderr.
        code: its exit code, negative for a signal's number; None: it has not ended.
    """
    for pattern, meaning in _REASONS:
        if (found := re.search(pattern, said)) is not None:
            groups = [each for each in found.groups() if each is not None]
            return meaning.format(a=groups[0] if groups else "")[:_WORDS_MAX]
    if code is None:
        return "it does not come to an end with loading"
    return f"llama.cpp ended by signal {-code}" if code < 0 else f"llama.cpp ended with exit code {code}"

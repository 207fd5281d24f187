"""
The bodies of Ollama's API, as far as a worker in front of one needs them. What is not known is passed over.

Its server writes an empty list as null, and leaves out what is zero.

Source: Ollama's api/types.go.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from wire.lenient import Lenient

MODELS_MAX = 10_000
NAME_CHARS_MAX = 300
COUNT_MAX = 2**53

_Count = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value), Field(ge=0, le=COUNT_MAX)]
_Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
_Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]


def _listed(value: Any) -> Any:
    return () if value is None else value


def _object(value: Any) -> Any:
    return {} if value is None else value


class Details(Lenient):
    """`quantization_level` as in `Q4_K_M`, `parameter_size` as in `8.0B`."""

    quantization_level: _Text = ""
    parameter_size: _Text = ""
    family: _Text = ""


class Tag(Lenient):
    """A model that is installed, or that is loaded: then `size_vram` of its `size` in memory are a GPU's."""

    name: _Name
    size: _Count = 0
    size_vram: _Count = 0
    digest: _Text = ""
    details: Annotated[Details, BeforeValidator(_object)] = Details()

    @property
    def sha256(self) -> str:
        """The digest where it is one, else empty."""
        text = self.digest.removeprefix("sha256:").lower()
        return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else ""


class Tags(Lenient):
    models: Annotated[tuple[Tag, ...], BeforeValidator(_listed), Field(max_length=MODELS_MAX)] = ()


class Shown(Lenient):
    """What `/api/show` tells of a model."""

    details: Annotated[Details, BeforeValidator(_object)] = Details()
    capabilities: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    model_info: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(default_factory=dict)

    @property
    def context(self) -> int | None:
        """The longest context that the model was made for, None where it is not told."""
        for key, value in self.model_info.items():
            if key.endswith(".context_length") and isinstance(value, int) and 0 < value <= COUNT_MAX:
                return value
        return None

    @property
    def only_embeds(self) -> bool:
        return "embedding" in self.capabilities and "completion" not in self.capabilities


class Pulled(Lenient):
    """A line of `/api/pull`: a step, or how much of one file is there."""

    status: _Text = ""
    digest: _Text = ""
    total: _Count = 0
    completed: _Count = 0
    error: str | None = None


class TokenTold(Lenient):
    token: str = ""
    logprob: float = 0.0
    data: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...] | None, Field(alias="bytes")] = None


class ToldLine(TokenTold):
    top_logprobs: Annotated[tuple[TokenTold, ...], BeforeValidator(_listed)] = ()


class CalledFunction(Lenient):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(default_factory=dict)


class Called(Lenient):
    id: _Text = ""
    function: CalledFunction


class LineMessage(Lenient):
    content: _Text = ""
    thinking: _Text = ""
    tool_calls: Annotated[tuple[Called, ...], BeforeValidator(_listed), Field(max_length=1_000)] = ()


class Line(Lenient):
    """A line of `/api/chat` (`message`) or `/api/generate` (`response`, `thinking`); the last one is `done`."""

    message: LineMessage | None = None
    response: _Text = ""
    thinking: _Text = ""
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: _Count = 0
    eval_count: _Count = 0
    logprobs: Annotated[tuple[ToldLine, ...], BeforeValidator(_listed)] = ()
    error: str | None = None

    @property
    def said(self) -> LineMessage:
        return LineMessage(content=self.response, thinking=self.thinking) if self.message is None else self.message


class EmbeddedBody(Lenient):
    embeddings: Annotated[
        tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], ...], BeforeValidator(_listed)
    ]
    prompt_eval_count: _Count = 0


class Failed(Lenient):
    error: str


class Version(Lenient):
    version: str = ""

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """Its numbers, None where it tells none: a build of somebody's own is 0.0.0."""
        parts = self.version.partition("-")[0].split(".")
        numbers = tuple(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 10)
        return numbers if len(numbers) == len(parts) and any(numbers) else None


_QUANT = re.compile(r"^(?:i?q[1-8](?:_[0-9a-z_]+)?|b?f16|fp16|f32)$")
_SIZE = re.compile(r"^(?:\d+x)?\d+(?:\.\d+)?[mb]$")
_TUNED = frozenset({"instruct", "chat", "it"})


class Name(NamedTuple):
    """A model's name in two: `base` is the model (`llama3.1`, `hf.co/owner/repo`), `tag` the variant, empty: none."""

    base: str
    tag: str

    @property
    def words(self) -> frozenset[str]:
        """What the tag says, without `latest`, which says nothing."""
        return frozenset(self.tag.lower().split("-")) - {"", "latest"}


def split_name(name: str) -> Name:
    """Return the parts of a name. The colon of a registry's port, before a slash, is none of a tag."""
    head, colon, tag = name.rpartition(":")
    return Name(head, tag) if colon and "/" not in tag else Name(name, "")


def is_same(name: str, other: str) -> bool:
    """Return whether both name the same variant; without a tag it is `latest`, and case says nothing."""
    left, right = split_name(name.lower()), split_name(other.lower())
    return left.base == right.base and (left.tag or "latest") == (right.tag or "latest")


def is_variant(name: str, wanted: str) -> bool:
    """
    Return whether `name` is the model that is `wanted`, in whatever quantisation.

    Its tag says all that the wanted one says, and else only how it was quantised and that it was tuned to chat, as what
    Ollama takes for a short name is; its size, too, where none is wanted.
    """
    found, asked = split_name(name.lower()), split_name(wanted.lower())
    more = found.words - asked.words
    plain = all(_QUANT.match(word) or word in _TUNED or (not asked.words and _SIZE.match(word)) for word in more)
    return found.base == asked.base and asked.words <= found.words and plain


def other_names(served: Mapping[str, str]) -> dict[str, str]:
    """
    Return what models may be called besides: by their variant, and by their base, which is the first one of it.

    Args:
        served: the variant of each name that is served.
    """
    names: dict[str, str] = {}
    for name, variant in served.items():
        for other in (variant, split_name(name).base, f"{split_name(name).base}:latest"):
            if other not in served:
                names.setdefault(other, name)
    return names

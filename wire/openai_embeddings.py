"""
The bodies of the OpenAI API's embeddings.

Source: the openai package's types, to which the answers validate; its client asks for base64 unless told otherwise.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from wire.lenient import Lenient

INPUTS_MAX = 2_048
INPUT_CHARS_MAX = 4 * 1024 * 1024
Tokens = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1, max_length=INPUT_CHARS_MAX)]


def _listed(value: Any) -> Any:
    is_one = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if is_one else value


class EmbeddingsRequest(Lenient):
    """`input` is one text or several, or their tokens; `dimensions` is what every model here has by itself."""

    model: str | None = None
    input: Annotated[tuple[Text | Tokens, ...], BeforeValidator(_listed), Field(min_length=1, max_length=INPUTS_MAX)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


def embeddings_answer(
    model: str, vectors: Sequence[Sequence[float]], tokens: int, *, as_base64: bool
) -> dict[str, Any]:
    """Return the vectors in order, as numbers or as base64 of little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

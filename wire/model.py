"""The base of every body: camelCase on the wire, frozen in the hand."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from wire import decimal_json


class Body(BaseModel):
    """A frozen body. Unknown fields are ignored (peers may be newer), known ones are strict."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", arbitrary_types_allowed=False
    )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the body in JSON `text`. Raises ValueError (pydantic's included) for anything else."""
        return cls.model_validate(decimal_json.loads(text))

    def document(self) -> dict[str, Any]:
        """Return the body as a dict with wire names, absent fields left out; decimals stay decimals."""
        return self.model_dump(by_alias=True, exclude_none=True)

    def to_json(self) -> bytes:
        return decimal_json.dumps(self.document())

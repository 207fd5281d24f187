"""
The base of every body: camelCase on the wire, frozen in the hand.

A body has no lists and objects without a limit, and of a wrong list only the first wrong item is told: a megabyte of
wrong items would else become hundreds of megabytes of errors.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from wire import decimal_json

ITEMS_MAX = 1_000
ENTRIES_MAX = 200
METRICS_MAX = 100
PLACE_CHARS_MAX = 300

ItemT = TypeVar("ItemT")


def _at_most(entries_max: int) -> Callable[[Any], Any]:
    """Return what refuses a larger object before any of its entries is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries_max:
            raise ValueError(f"must have at most {entries_max} entries")
        return value

    return check


def _only_text(value: Any) -> Any:
    if not isinstance(value, str | datetime):
        raise ValueError("must be an RFC 3339 time")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


Instant = Annotated[
    AwareDatetime,
    BeforeValidator(_only_text),
    AfterValidator(_in_utc),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Key = Annotated[str, StringConstraints(max_length=200)]
Many = Annotated[tuple[ItemT, ...], FailFast(), Field(max_length=ITEMS_MAX)]
Entries = Annotated[dict[Key, ItemT], Field(max_length=ENTRIES_MAX), BeforeValidator(_at_most(ENTRIES_MAX))]
Metrics = Annotated[
    dict[Key, decimal_json.DecimalNumber], Field(max_length=METRICS_MAX), BeforeValidator(_at_most(METRICS_MAX))
]
# A free-form JSON object: what it holds is the sender's affair.
JsonObject = Annotated[Entries[Any], BeforeValidator(decimal_json.plain)]


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


def first_error(error: ValidationError, whole: str = "the whole") -> str:
    """
    Return the first error as one line, `place: what is wrong`. The value that was refused is not in it.

    Args:
        whole: the place of what is wrong with all of it.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:PLACE_CHARS_MAX]
    return f"{place or whole}: {first['msg'].removeprefix('Value error, ')}"

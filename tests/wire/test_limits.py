"""No body grows without a limit, and a wrong one costs a handful of errors, however large it is."""

import json
from collections.abc import Iterator
from typing import Any, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from wire import checkpoint, control, jobs, vendor, x402
from wire.model import Body, first_error

MANY = 2_000


def fields_of(*kinds: type) -> Iterator[Any]:
    """Yield every body's fields of these kinds, each with its name on the wire."""
    for module in (checkpoint, control, jobs, vendor, x402):
        for name, body in vars(module).items():
            if isinstance(body, type) and issubclass(body, Body) and body.__module__ == module.__name__:
                for field_name, field in body.model_fields.items():
                    if any(kind in kinds for kind in shapes(field)):
                        yield pytest.param(body, str(field.alias), id=f"{name}.{field_name}")


def shapes(field: FieldInfo) -> set[Any]:
    """Return the unsubscripted types in a field's annotation, of a union each."""
    found: set[Any] = set()
    left = [field.annotation]
    while left:
        kind = left.pop()
        origin = get_origin(kind)
        if origin in (tuple, dict):
            found.add(origin)
        elif origin is not None:
            left += kind.__args__
    return found


def errors_in(body: type[Body], name: str, value: Any) -> list[Any]:
    """Return the errors told of the field `name`."""
    with pytest.raises(ValidationError) as refused:
        body.from_json(json.dumps({name: value}))
    return [error for error in refused.value.errors() if error["loc"][0] == name]


LISTS = list(fields_of(tuple))
OBJECTS = list(fields_of(dict))


def test_the_lists_and_objects_are_found() -> None:
    assert {row.id for row in LISTS} >= {"JobsReply.jobs", "JobStatus.logs", "StatusReply.jobs"}
    assert {row.id for row in OBJECTS} >= {"JobStatus.final_metrics", "JobRequest.env", "SubmitRequest.job_params"}


@pytest.mark.parametrize(("body", "name"), LISTS)
def test_of_a_wrong_list_only_the_first_wrong_item_is_told(body: type[Body], name: str) -> None:
    assert {error["loc"][:2] for error in errors_in(body, name, [1] * MANY)} == {(name, 0)}
    assert len(errors_in(body, name, [{}] * MANY)) <= 20


@pytest.mark.parametrize(("body", "name"), OBJECTS)
def test_an_object_too_large_is_one_error_whatever_is_in_it(body: type[Body], name: str) -> None:
    for value in (None, [], "x"):
        found = errors_in(body, name, {str(number): value for number in range(MANY)})
        assert [error["loc"] for error in found] == [(name,)]
        assert "must have at most" in found[0]["msg"]


def test_a_megabyte_of_wrong_items_is_one_error() -> None:
    with pytest.raises(ValidationError) as refused:
        vendor.JobsReply.from_json(b'{"jobs":[%b1]}' % (b"1," * 500_000))
    assert refused.value.error_count() == 1


@pytest.mark.parametrize("count", [0, 1_000, 1_001])
def test_a_list_has_at_most_a_thousand_items(count: int) -> None:
    text = json.dumps({"jobs": [{"vendorJobId": "j", "status": "running"}] * count})
    if count <= 1_000:
        assert len(vendor.JobsReply.from_json(text).jobs) == count
    else:
        with pytest.raises(ValidationError, match="at most 1000 items"):
            vendor.JobsReply.from_json(text)


@pytest.mark.parametrize(
    ("body", "name", "entries_max", "value"),
    [
        (vendor.JobStatus, "finalMetrics", 100, 1),
        (vendor.SubmitRequest, "jobParams", 200, None),
        (vendor.QuoteRequest, "jobMetadata", 200, None),
        (control.JobRequest, "params", 200, None),
        (control.JobRequest, "env", 200, "x"),
    ],
)
def test_an_object_has_as_many_entries_as_it_may_and_no_long_keys(
    body: type[Body], name: str, entries_max: int, value: Any
) -> None:
    sizes = {size: {f"{number:0200}": value for number in range(size)} for size in (0, 1, entries_max, entries_max + 1)}
    told = {}
    for size, document in sizes.items():
        try:
            body.from_json(json.dumps({name: document}))
            told[size] = 0
        except ValidationError as error:
            told[size] = sum(one["loc"][0] == name for one in error.errors())
    assert told == {0: 0, 1: 0, entries_max: 0, entries_max + 1: 1}
    assert len(errors_in(body, name, {"k" * 201: value})) == 1


def test_the_first_error_is_one_line_without_what_was_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        control.StartRequest.from_json('{"goal": "g", "budgetTotal": "hush"}')
    assert first_error(refused.value) == "budgetTotal: must be a JSON number"
    with pytest.raises(ValidationError) as refused:
        control.StartRequest.from_json("[]")
    assert first_error(refused.value, "the body").startswith("the body: Input should be")

"""The codec between the model and a store's documents: nothing is lost, nothing foreign becomes a key."""

from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin, get_type_hints

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.errors import Bug
from agent.core.model import Entry, Run, Vendor
from agent.edges.documents import (
    decode,
    decode_cursor,
    decode_run,
    decode_time,
    encode,
    encode_cursor,
    encode_time,
    is_id,
)
from tests.contracts.store_values import T0, a_job, a_payment, a_run, a_vendor, an_entry
from wire import decimal_json

INT64_MAX = 2**63 - 1

# Numbers of free-form JSON are floats where they are not whole, as `plain` made them when they came in.
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: decimal_json.plain(Decimal(repr(number))))

# What can be text in UTF-8: any character but half of a pair.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12)
amounts = st.integers(0, 10**15)
free = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers(-INT64_MAX, INT64_MAX) | texts | numbers,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
known: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    datetime: times,
    Decimal: decimals,
    int: amounts,
    type(None): st.none(),
    dict[str, Any]: free,
}


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Return every value of a field's type that the model may hold, new fields included."""
    if hint in known:
        return known[hint]
    if is_dataclass(hint):
        return st.builds(hint, **{name: of(inner) for name, inner in get_type_hints(hint).items()})
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(of(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=3)
    return st.one_of([of(arg) for arg in args])


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    return decimal_json.loads(decimal_json.dumps(document))


def through_bson(document: dict[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document))


@pytest.mark.parametrize("through", [through_json, through_bson])
@settings(max_examples=30)
@given(run=of(Run))
def test_a_run_is_what_it_was_after_any_storage(through: Any, run: Run) -> None:
    document = through(encode(run)) | {
        "cancelRequestedAt": run.cancel_requested_at and encode_time(run.cancel_requested_at),
        "nextTickAt": run.next_tick_at and encode_time(run.next_tick_at),
    }
    parts = ([through(encode(part)) for part in group] for group in (run.jobs, run.payments))
    assert decode_run(document, *parts) == run


@pytest.mark.parametrize("through", [through_json, through_bson])
@settings(max_examples=30)
@given(model=of(Entry) | of(Vendor))
def test_entries_and_vendors_are_what_they_were_after_any_storage(through: Any, model: Entry | Vendor) -> None:
    assert decode(type(model), through(encode(model))) == model


def test_what_others_sent_comes_back_however_deep_or_large() -> None:
    deep: Any = 1.5
    for _ in range(decimal_json.DEPTH_MAX_WRITTEN - 10):
        deep = [deep]
    sent = {"deep": deep, "large": 1e30, "small": 1e-300, "whole": INT64_MAX}
    assert decode(Entry, encode(an_entry("run_1", 1, data=sent))).data == sent


def test_the_fields_have_the_names_that_others_know() -> None:
    run = encode(a_run())
    assert {"_id", "userId", "goal", "status", "createdAt", "updatedAt"} <= run.keys()
    job = encode(a_job())
    assert job.keys() >= {"vendorId", "vendorJobId", "status", "jobParams", "expectedCost", "actualCost", "artifactUrl"}
    assert {"expectedDurationMinutes", "errorMessage", "createdAt", "updatedAt", "completedAt"} <= job.keys()
    payment = encode(a_payment(transaction="0xaa"))
    assert payment["x402TxId"] == "0xaa"
    assert {"_id", "jobId", "vendorId", "amount", "status", "errorMessage", "createdAt", "updatedAt"} <= payment.keys()
    assert {"runId", "jobId", "type", "content", "timestamp"} <= encode(an_entry("run_1", 1)).keys()
    vendor = encode(a_vendor())
    assert {
        "vendorId",
        "name",
        "endpoint",
        "basePricePerHour",
        "reliabilityScore",
        "supportedGpuTypes",
    } <= vendor.keys()


@given(first=times, second=times)
def test_times_sort_as_their_texts_do(first: datetime, second: datetime) -> None:
    assert (first < second) == (encode_time(first) < encode_time(second))
    assert decode_time(encode_time(first)) == first


def test_a_time_is_written_in_utc_and_one_without_a_zone_is_refused() -> None:
    assert encode_time(T0.astimezone(timezone(timedelta(hours=5)))) == "2026-01-31T09:30:00.123456Z"
    assert encode_time(T0.replace(microsecond=0)) == "2026-01-31T09:30:00.000000Z"
    with pytest.raises(Bug):
        encode_time(T0.replace(tzinfo=None))


def test_what_has_no_form_in_a_store_is_our_bug() -> None:
    with pytest.raises(Bug):
        encode(a_job(job_params={"what": object()}))
    with pytest.raises(Bug):
        encode(a_job(progress=0.5))
    with pytest.raises(Bug):
        decode(Vendor, encode(a_vendor()) | {"reliabilityScore": "much"})


@given(created_at=times, run_id=texts)
def test_a_cursor_gives_back_its_place(created_at: datetime, run_id: str) -> None:
    expected = (encode_time(created_at), run_id) if is_id(run_id) else None
    assert decode_cursor(encode_cursor(encode_time(created_at), run_id)) == expected

"""Server-Sent Events come apart alike, however their bytes come."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.inference.upstream.events import Events, EventTooLarge

STREAM = (
    b": a sign of life\n\n"
    b'data: {"a": 1}\n\n'
    b"event: message\r\nid: 7\r\ndata:two\r\n\r\n"
    b"data: first line\ndata: second line\n\n"
    b"\n\n\n"
    b"retry: 10\n\n"
    b"data: [DONE]\n\n"
    b"data: never ended"
)
DATA = [b'{"a": 1}', b"two", b"first line\nsecond line", b"[DONE]"]


def test_an_event_is_its_data_and_comments_names_and_unended_ones_are_none() -> None:
    assert Events().push(STREAM) == DATA


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_however_the_bytes_are_cut_the_events_are_the_same(cuts: list[int]) -> None:
    events, places = Events(), [0, *sorted(cuts), len(STREAM)]
    found = [data for start, end in pairwise(places) for data in events.push(STREAM[start:end])]
    assert found == DATA


@given(st.lists(st.text(max_size=40).map(lambda text: text.replace("\r", "").encode()), max_size=20))
def test_data_of_any_text_comes_back(texts: list[bytes]) -> None:
    sent = b"".join(b"".join(b"data: " + line + b"\n" for line in text.split(b"\n")) + b"\n" for text in texts)
    assert Events().push(sent) == texts


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: x\n", b"data:\n"])
def test_an_event_without_end_is_not_collected(piece: bytes) -> None:
    events = Events(event_bytes_max=1_000)

    def drip() -> None:
        for _ in range(1_002):
            assert events.push(piece) == []

    with pytest.raises(EventTooLarge):
        drip()


def test_the_limit_is_of_one_event_and_not_of_all() -> None:
    events = Events(event_bytes_max=100)
    assert sum(len(events.push(b"data: " + b"x" * 90 + b"\n\n")) for _ in range(1_000)) == 1_000

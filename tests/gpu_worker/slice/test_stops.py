"""Stop strings: whatever the cuts, the text ends at the same place and nothing of a stop string is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.stops import Stops, feed


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Return where the first stop string to be complete begins, read character by character, and which it is."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return end - len(stop), stop
    return None


def fed(pieces: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None, str]:
    """Return what was shown after each piece, the hit, and what was still held at the end."""
    state, shown = Stops(stops), []
    for piece in pieces:
        state, text, hit = feed(state, piece)
        shown.append(text)
        if hit is not None:
            return shown, hit, state.held
    return shown, None, state.held


TEXTS = st.text("abé\u20ac", max_size=30)
STOPS = st.lists(st.text("abé\u20ac", min_size=1, max_size=5), max_size=4).map(tuple)


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.row(50)
@given(cuttings(), STOPS)
def test_wherever_a_text_is_cut_it_ends_before_the_first_stop_string(
    cut: tuple[str, list[str]], stops: tuple[str, ...]
):
    text, pieces = cut
    shown, hit, held = fed(pieces, stops)
    wanted = first_stop(text, stops)
    if wanted is None:
        assert hit is None
        assert "".join(shown) + held == text
    else:
        assert ("".join(shown), hit, held) == (text[: wanted[0]], wanted[1], "")


@given(cuttings(), STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(cut: tuple[str, list[str]], stops: tuple[str, ...]):
    state, so_far = Stops(stops), ""
    for piece in cut[1]:
        state, _, hit = feed(state, piece)
        if hit is not None:
            return
        so_far += piece
        beginnings = [stop[:size] for stop in stops for size in range(len(stop)) if so_far.endswith(stop[:size])]
        assert len(state.held) == max(map(len, beginnings), default=0)


def test_of_two_that_are_complete_at_once_the_longer_one_counts():
    assert feed(Stops(("b", "ab")), "xab")[1:] == ("x", "ab")


def test_the_one_that_is_complete_first_counts():
    assert fed(["a", "b", "c", "d"], ("abcd", "bc")) == (["", "", "a"], "bc", "")


def test_without_stop_strings_nothing_is_held():
    assert feed(Stops(()), "abc")[1:] == ("abc", None)


def test_an_empty_stop_string_is_none():
    with pytest.raises(ValueError, match="empty"):
        Stops(("a", ""))

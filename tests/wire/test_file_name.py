"""Names of others as names of files: no two share one, none leaves its folder, unquoting gives the name back."""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.file_name import FILE_NAME_BYTES_MAX, NotAFileName, shown_file_name, to_file_name

SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEF0123456789._-%")


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("model.json", "model.json"),
        ("a_b-c.tar.gz", "a_b-c.tar.gz"),
        ("../../etc/passwd", "%2E%2E%2F..%2Fetc%2Fpasswd"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        (".ssh", "%2Essh"),
        ("~", "%7E"),
        ("50%", "50%25"),
        ("ü", "%C3%BC"),
        ("a\0b", "a%00b"),
        ("README.md", "%52%45%41%44%4D%45.md"),
        ("%2E", "%252%45"),
        ("ÜA", "%C3%9C%41"),
    ],
)
def test_a_name_becomes_a_file_name(name: str, file_name: str) -> None:
    assert to_file_name(name) == file_name


@given(st.text(min_size=1, max_size=300))
def test_a_file_name_is_safe_and_unquoting_gives_the_name_back(name: str) -> None:
    try:
        file_name = to_file_name(name)
    except NotAFileName:
        return
    assert set(file_name) <= SAFE
    assert not file_name.startswith(".")
    assert 1 <= len(file_name) <= FILE_NAME_BYTES_MAX
    assert unquote(file_name) == name


@given(st.text("aAeE2%.ÄäİK", min_size=1, max_size=5), st.text("aAeE2%.ÄäİK", min_size=1, max_size=5))
def test_no_two_names_share_a_file_on_a_disk_that_is_blind_to_case(one: str, other: str) -> None:
    assert (to_file_name(one).casefold() == to_file_name(other).casefold()) == (one == other)


def test_capitals_stay_where_they_are_asked_for() -> None:
    assert to_file_name("README ü.md", cased=True) == "README%20%C3%BC.md"


@pytest.mark.parametrize("name", ["", "x" * 256, "\ud800"])
def test_what_no_file_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(NotAFileName):
        to_file_name(name)


def test_the_longest_name_fits() -> None:
    assert len(to_file_name("x" * 255)) == 255


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.json", "model.json"),
        ('"; filename="evil.html', "___filename__evil.html"),
        ("../../x", "_.._x"),
        ("a\r\nb", "a__b"),
        ("☃", "_"),
        ("..", "file"),
        ("x" * 300, "x" * 255),
    ],
)
def test_what_a_browser_is_told_is_plain(name: str, shown: str) -> None:
    assert shown_file_name(name) == shown

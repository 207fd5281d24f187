"""The header of a GGUF file: what it says, and that nothing it says is believed before it was held against a limit."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.quantization.header import BadGguf, Header, Incomplete, parse
from tests.fixtures.gguf_bytes import Raw, Shape, TensorInfo, gguf, llama, llama_tensors, model_bytes, u64

WHOLE = model_bytes()
SMALL = gguf({"a": 1, "b": [1, 2], "c": "x"}, [TensorInfo("t", (32,), "Q8_0"), TensorInfo("u", (4, 2))])


def read(data: bytes) -> Header:
    return parse(data, len(data))


def test_a_header_is_read_as_it_was_written() -> None:
    header = read(gguf({"n": 7, "big": u64(2**40), "minus": Raw(5, "<i", -3), "yes": True, "half": 0.5, "name": "Ünï",
                        "many": [3, 4], "flags": [True, False], "words": ["a", "bb"], "long": [1] * 2_000},
                       [TensorInfo("t", (256, 3), "Q4_K"), TensorInfo("u", (5,))]))  # fmt: skip

    assert header.values == {"n": 7, "big": 2**40, "minus": -3, "yes": True, "half": 0.5, "name": "Ünï", "many": (3, 4),
                             "flags": (True, False)}  # fmt: skip
    assert header.lengths == {"many": 2, "flags": 2, "words": 2, "long": 2_000}
    assert [(each.name, each.shape, each.kind, each.bytes, each.offset) for each in header.tensors] == [
        ("t", (256, 3), "Q4_K", 432, 0),
        ("u", (5,), "F32", 20, 448),
    ]
    assert header.data_bytes == 468


def test_an_alignment_of_its_own_is_kept() -> None:
    data = gguf({"general.alignment": 64}, [TensorInfo("t", (3,)), TensorInfo("u", (3,))], alignment=64)

    assert read(data).tensors[1].offset == 64


@pytest.mark.parametrize("size", [4, 11, 23, 24, 100, 5_000])
def test_more_is_asked_for_where_the_header_goes_on_behind_what_was_read(size: int) -> None:
    with pytest.raises(Incomplete):
        parse(WHOLE[:size], len(WHOLE))


def test_a_file_cut_off_anywhere_is_refused() -> None:
    whole = len(SMALL) - (-8 * 4 % 32)  # behind the last tensor nothing need stand
    for size in range(whole):
        with pytest.raises(BadGguf):
            read(SMALL[:size])


def refused_with(data: bytes) -> str | None:
    """Return why a file is refused, None: it is read. Whatever else happens is raised."""
    try:
        read(data)
    except BadGguf as refused:
        return str(refused)
    return None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_bytes_that_are_wrong_are_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    broken = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(4, len(broken) - 1))] = data.draw(st.integers(0, 255))
    said = refused_with(bytes(broken))
    assert said is None or said.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_behind_the_magic_is_refused(noise: bytes) -> None:
    with pytest.raises(BadGguf):
        read(b"GGUF" + struct.pack("<I", 3) + b"\xff" + noise)


def tensor(**more: Any) -> Callable[[], bytes]:
    return lambda: gguf({}, [TensorInfo(**({"name": "t", "shape": (32,)} | more))], data=bytes(4_096))


def keyed(value: Any) -> Callable[[], bytes]:
    return lambda: gguf({"key": value})


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "another format": (lambda: b"PK\3\4" + bytes(40), "does not begin with GGUF"),
    "empty": (lambda: b"", "does not begin with GGUF"),
    "version 1": (lambda: gguf({}, version=1), "version 1"),
    "version 9": (lambda: gguf({}, version=9), "version 9"),
    "big-endian": (lambda: gguf({}, version=3 << 24), "big-endian"),
    "keys without number": (lambda: gguf({}, counts=(0, 2**62)), "keys"),
    "tensors without number": (lambda: gguf({}, counts=(2**63, 0)), "tensors"),
    "more keys than there are": (lambda: gguf({"a": 1}, counts=(0, 9)), "empty"),
    "a key twice": (lambda: gguf([("a", 1), ("a", 2)]), "twice"),
    "a key without a name": (lambda: gguf([("", 1)]), "empty"),
    "a key that is no text": (lambda: gguf([(b"\xff\xfe", 1)]), "UTF-8"),
    "a key without end": (lambda: gguf({"k" * 2_000: 1}), "a key"),
    "a value of no type": (keyed(Raw(13, "<I", 1)), "unknown type"),
    "a text without end": (keyed(Raw(8, "<Q", 2**63)), "a text"),
    "an array of arrays": (keyed(Raw(9, "", struct.pack("<IQ", 9, 1) + bytes(20))), "unknown type"),
    "an array without end": (keyed(Raw(9, "", struct.pack("<IQ", 4, 2**61))), "cut off"),
    "texts without end": (keyed(Raw(9, "", struct.pack("<IQ", 8, 2**61))), "more than the file could hold"),
    "one text too long among many": (keyed(Raw(9, "", struct.pack("<IQQ", 8, 1, 2**40))), "bytes long"),
    "an alignment of 0": (lambda: gguf({"general.alignment": 0}), "power of two"),
    "an alignment of 3": (lambda: gguf({"general.alignment": 3}), "power of two"),
    "an alignment that is huge": (lambda: gguf({"general.alignment": 2**31}), "power of two"),
    "an alignment that is a text": (lambda: gguf({"general.alignment": "32"}), "power of two"),
    "a tensor twice": (lambda: gguf({}, [TensorInfo("t", (32,)), TensorInfo("t", (32,))]), "twice"),
    "a tensor's name without end": (tensor(name="t" * 64), "a tensor's name"),
    "no dimension": (tensor(shape=()), "0 dimensions"),
    "five dimensions": (tensor(shape=(1, 1, 1, 1, 1)), "5 dimensions"),
    "a side of 0": (tensor(shape=(32, 0)), "cannot be"),
    "a side below 0": (tensor(shape=(-32,)), "cannot be"),
    "sides that run over": (tensor(shape=(2**32, 2**32)), "cannot be"),
    "a block cut in two": (tensor(shape=(33,), kind="Q8_0"), "at a time"),
    "a tensor of no type": (tensor(number=99), "unknown type"),
    "a type that is no more": (tensor(number=31), "take the Q4_0 file"),
    "a tensor inside another": (lambda: gguf({}, [TensorInfo("t", (8,)), TensorInfo("u", (8,), offset=0)]), "begin"),
    "a tensor behind the end": (tensor(offset=2**40), "does not begin"),
    "weights that are cut off": (lambda: SMALL[:-64], "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_by_name(name: str) -> None:
    make, why = BROKEN[name]

    with pytest.raises(BadGguf, match=why):
        read(make())


def test_a_name_out_of_a_file_is_shown_without_its_control_characters() -> None:
    with pytest.raises(BadGguf) as refused:
        read(gguf({}, [TensorInfo("t\x1b[2J", (32,), number=99)]))

    assert "\x1b" not in str(refused.value)


def test_a_vocabulary_of_a_quarter_of_a_million_is_read_in_steps() -> None:
    shape = Shape(vocabulary=250_000, width=32, inner=32, heads=1, kv_heads=1, layers=1)
    data = gguf(llama(shape), llama_tensors(shape))

    with pytest.raises(Incomplete):
        parse(data[: 1024 * 1024], len(data))
    assert read(data).lengths["tokenizer.ggml.tokens"] == 250_000

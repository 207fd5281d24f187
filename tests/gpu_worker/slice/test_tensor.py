"""Rows on the wire: what has which size, and what is refused before anything is made of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.limits import ROWS_MAX
from gpu_worker.core.inference.step import Tensor
from gpu_worker.core.inference.tensor import DTYPES, IDS, Expected, check, cut, row_bytes
from gpu_worker.engine.slice.wire_int8 import pack, unpack

HIDDEN = Expected(16, ("float32", "float16", "bfloat16", "int8"))


@pytest.mark.parametrize(
    ("dtype", "bytes_of_100"),
    [("float32", 400), ("float16", 200), ("bfloat16", 200), ("int64", 800), ("int8", 104), ("int8g128", 102)],
)
def test_a_row_has_the_bytes_of_its_dtype(dtype: str, bytes_of_100: int) -> None:
    assert row_bytes(dtype, 100) == bytes_of_100


def test_every_dtype_of_the_table_has_a_row() -> None:
    assert {dtype: row_bytes(dtype, 128) for dtype in DTYPES} == {
        "float32": 512, "float16": 256, "bfloat16": 256, "int64": 1024, "int8": 132, "int8g128": 130,
    }  # fmt: skip


def test_what_fits_is_counted_with_and_without_a_batch_of_one() -> None:
    assert check("float32", (3, 16), 192, HIDDEN) == 3
    assert check("bfloat16", (1, 3, 16), 96, HIDDEN) == 3
    assert check("int8", (3, 16), 3 * 18, HIDDEN) == 3
    assert check(IDS, (5,), 40, Expected(0, (IDS,))) == 5
    assert check(IDS, (1, 5), 40, Expected(0, (IDS,))) == 5


@pytest.mark.row(49)
@pytest.mark.parametrize(
    ("dtype", "shape", "length"),
    [
        pytest.param("float32", (3, 16), 191, id="a byte short"),
        pytest.param("float32", (3, 16), 193, id="a byte long"),
        pytest.param("float32", (3, 16), 0, id="nothing"),
        pytest.param("float32", (), 4, id="no shape"),
        pytest.param("float32", (48,), 192, id="one dimension"),
        pytest.param("float32", (1, 1, 3, 16), 192, id="four dimensions"),
        pytest.param("float32", (2, 3, 16), 384, id="a batch"),
        pytest.param("float32", (0, 16), 0, id="no rows"),
        pytest.param("float32", (-3, 16), 192, id="negative rows"),
        pytest.param("float32", (-3, -16), 192, id="two negatives"),
        pytest.param("float32", (2**62, 16), 192, id="more rows than there are"),
        pytest.param("float32", (2**62, 4), 0, id="a product that overflows 64 bits to 0"),
        pytest.param("float32", (ROWS_MAX + 1, 16), (ROWS_MAX + 1) * 64, id="one row too many"),
        pytest.param("float32", (3, 17), 204, id="another width"),
        pytest.param("int64", (3, 16), 384, id="ids for hidden states"),
        pytest.param("float64", (3, 16), 384, id="no dtype of the wire"),
        pytest.param("torch.bfloat16", (3, 16), 96, id="the word of a library"),
        pytest.param("", (3, 16), 96, id="no dtype"),
        pytest.param("bfloat16", (3, 16), 1400, id="a container around the numbers"),
    ],
)
def test_what_does_not_fit_is_an_invalid_tensor(dtype: str, shape: tuple[int, ...], length: int) -> None:
    with pytest.raises(InferenceError) as raised:
        check(dtype, shape, length, HIDDEN)
    assert raised.value.code == "invalid_tensor"
    assert CODES[raised.value.code].grpc == "INVALID_ARGUMENT"


@given(
    dtype=st.sampled_from([*DTYPES, "float64"]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40), max_size=4),
    length=st.integers(0, 4096),
)
def test_whatever_is_sent_is_refused_or_has_the_bytes_that_it_says(dtype: str, shape: list[int], length: int) -> None:
    try:
        rows = check(dtype, shape, length, HIDDEN)
    except InferenceError as error:
        code, rows = error.code, None
    assert code == "invalid_tensor" if rows is None else rows * row_bytes(dtype, 16) == length


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_are_cut_without_a_look_at_them(dtype: str) -> None:
    size = row_bytes(dtype, 16)
    rows = [bytes([i]) * size for i in range(5)]
    middle = cut(Tensor(dtype, (5, 16), b"".join(rows)), 1, 3)
    assert middle.shape == (3, 16)
    assert bytes(middle.data) == b"".join(rows[1:4])


@pytest.mark.parametrize("dtype", ["int8", "int8g128"])
@pytest.mark.parametrize("width", [64, 200, 4096])
def test_int8_loses_less_than_a_hundredth(dtype: str, width: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(32, width)
    back = unpack(pack(hidden, dtype), 32, width, dtype)
    assert len(pack(hidden, dtype)) == 32 * row_bytes(dtype, width)
    assert (back - hidden).norm() / hidden.norm() < 0.01


def test_a_neighbour_of_a_row_does_not_change_it() -> None:
    torch.manual_seed(0)
    row = torch.randn(1, 256)
    alone = unpack(pack(row), 1, 256)
    beside = unpack(pack(torch.cat((row * 100, row, row * 1e-3))), 3, 256)
    assert torch.equal(beside[1:2], alone)
    assert (beside[2:] - row * 1e-3).norm() / (row * 1e-3).norm() < 0.01


def test_zeros_and_the_largest_numbers_survive() -> None:
    hidden = torch.zeros(2, 64)
    hidden[1, 0] = 60_000.0
    assert (unpack(pack(hidden), 2, 64) - hidden).abs().max() < 60_000 * 0.01

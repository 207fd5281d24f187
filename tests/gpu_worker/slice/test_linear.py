"""Packed weights: how far from the double product they are, and that no row of a neighbour's changes a row."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpu_worker.core.errors import OwnersFault
from gpu_worker.engine.slice import linear
from gpu_worker.engine.slice.linear import Pack, packing

# Some backends choose another order of their sums with another number of rows.
EXACT: dict[str, Pack] = {
    "fbgemm_f16": linear.fbgemm_f16,
    "x86_int8": linear.x86_int8,
    "any_int8": linear.any_int8,
    "avx_int4": linear.avx_int4,
}
NEARLY: dict[str, Pack] = {"plain": linear.plain, "mkl_f32": linear.mkl_f32, "any_int4": linear.any_int4}
ALL = {**EXACT, **NEARLY}
ROWS = (1, 2, 3, 8, 32, 65)


def _drawn(out: int, width: int, rows: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(out + width + rows)
    weight = torch.randn(out, width, generator=dice) * 0.05
    return weight, torch.randn(out, generator=dice), torch.randn(max(1, rows), width, generator=dice)


def _bound(name: str, weight: Tensor, x: Tensor) -> Tensor:
    """Return for each output how far it may be off by its roundings: [N, out], in double precision."""
    w, rows = weight.double().abs(), x.double().abs()
    sums = rows @ w.t()
    if name.endswith("int8"):
        off_w, off_x = w.amax(1) / 254, rows.amax(1, keepdim=True) / 254
        return rows.sum(1, keepdim=True) * off_w + off_x * w.sum(1) + off_x * off_w * w.shape[1] + 1e-5 * sums
    if name.endswith("int4"):
        groups = weight.double().unflatten(1, (-1, linear.GROUP))
        spread = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(linear.GROUP, 1)
        # Half a step; the roundings to bfloat16 of scale and middle, of the activations and of the result.
        off = spread / 30 + (spread * 8 / 15 + w) / 256
        return rows @ off.t() + sums / 128
    return sums * (2**-11 if name == "fbgemm_f16" else 1e-6)


@pytest.mark.parametrize("shape", [(96, 64), (200, 160), (33, 32)], ids=str)
@pytest.mark.parametrize("name", list(ALL))
def test_a_product_is_within_the_bound_of_its_rounding(name: str, shape: tuple[int, int]) -> None:
    for rows in ROWS:
        weight, bias, x = _drawn(*shape, rows)
        off = (ALL[name](weight, None)(x).double() - x.double() @ weight.double().t()).abs()
        assert (off <= _bound(name, weight, x)).all(), float((off / _bound(name, weight, x)).max())
        biased = ALL[name](weight, bias)(x)
        assert torch.allclose(biased, ALL[name](weight, None)(x) + bias, atol=1e-2 if "int4" in name else 1e-5)


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("beside", ["a hundred times larger", "not a number"])
def test_a_row_is_the_same_alone_and_beside_any_other(name: str, beside: str) -> None:
    weight, _, x = _drawn(200, 160, 40)
    product = ALL[name](weight, None)
    for rows in ROWS[1:40:1]:
        some = x[: min(rows, 40)].clone()
        some[1:] = some[1:] * 100 if beside.startswith("a hundred") else float("nan")
        alone, together = product(x[:1]), product(some)[:1]
        if name in EXACT:
            assert torch.equal(alone, together), f"{rows} rows"
        else:
            most = 1e-2 if name == "any_int4" else 1e-5
            assert float((alone - together).norm() / alone.norm()) < most, f"{rows} rows"


def test_one_scale_for_a_whole_batch_would_fail_that() -> None:
    """The operator that this stands in for: 15 % beside a row twenty times larger."""
    weight, _, x = _drawn(200, 160, 2)
    x[1] *= 100
    steps = x.abs().amax() / 127
    rounded = (x / steps).round() * steps
    alone = x[:1] @ weight.t()
    assert float((rounded[:1] @ weight.t() - alone).norm() / alone.norm()) > 0.1


@pytest.mark.parametrize("name", list(ALL))
def test_rows_of_nothing_give_nothing(name: str) -> None:
    weight, _, _ = _drawn(96, 64)
    assert float(ALL[name](weight, None)(torch.zeros(2, 64)).abs().max()) == 0.0


@pytest.mark.parametrize("pack", [linear.avx_int4, linear.any_int4], ids=["avx", "any"])
def test_int4_refuses_a_width_that_it_cannot_group(pack: Pack) -> None:
    with pytest.raises(OwnersFault, match="multiple of 32"):
        pack(torch.ones(8, 40), None)


def test_a_weight_beyond_half_precision_is_refused_not_made_infinite() -> None:
    with pytest.raises(OwnersFault, match="half precision"):
        linear.fbgemm_f16(torch.full((8, 32), 1e5), None)


@pytest.mark.parametrize(
    ("dtype", "quant", "name"),
    [("fp32", "none", "fp32"), ("bf16", "none", "fp16"), ("fp16", "none", "fp16"), ("bf16", "int8", "int8")],
)
def test_how_a_slice_is_served_on_a_cpu(dtype: str, quant: str, name: str) -> None:
    how = packing(dtype, quant, torch.device("cpu"))
    assert (how.name, how.flow) == (name, torch.float32)


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(OwnersFault, match="fp8 with none is none of"):
        packing("fp8", "none", torch.device("cpu"))
    with pytest.raises(OwnersFault, match="fp32 with int3"):
        packing("fp32", "int3", torch.device("cpu"))


def test_a_packed_weight_keeps_one_copy() -> None:
    """MKL's own order and nothing else: the original goes with its last holder."""
    weight = torch.randn(64, 64)
    before = weight.untyped_storage()._use_count() if hasattr(weight.untyped_storage(), "_use_count") else None
    product: Callable[[Tensor], Tensor] = linear.mkl_f32(weight, None)
    held = [cell.cell_contents for cell in product.__closure__ or ()]
    sizes = [each.untyped_storage().nbytes() for each in held if isinstance(each, Tensor) and not each.is_mkldnn]
    assert max(sizes) < 64
    assert before is None or weight.untyped_storage()._use_count() == before

"""
Linear layers of packed weights behind one interface: called with rows [N, in] they return [N, out].

A row comes out the same whatever rows lie beside it: quantised activations have a scale of their own for each row.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gpu_worker.core.errors import OwnersFault

Linear = Callable[[Tensor], Tensor]
# Takes a weight [out, in] and a bias [out] or None, on the device where they will be used; keeps neither.
Pack = Callable[[Tensor, Tensor | None], Linear]

GROUP = 32
_HALF_MAX = 65_504.0
# FBGEMM packs so many inputs together, the last ones with zeros.
_HALF_WIDTH = 512
# MKL packs for a number of rows and multiplies any; a pack for many is never slower with few, and twice as fast with 32
# rows as a pack for 8.
_PACK_ROWS = 256


def plain(weight: Tensor, bias: Tensor | None) -> Linear:
    """The weight as it is, in the dtype of the rows. Its last bits may depend on how many rows there are."""
    weight = weight.contiguous()
    return lambda x: functional.linear(x, weight, bias)


def mkl_f32(weight: Tensor, bias: Tensor | None) -> Linear:
    """
    MKL's own order of a float32 weight, and no second copy: one row is multiplied with it as fast as with the original.
    """
    ops = torch.ops.mkl
    packed = ops._mkl_reorder_linear_weight(weight.float().contiguous(), _PACK_ROWS)
    # Of the original only the shape is read.
    shape = weight.new_empty(1, dtype=torch.float32).expand(weight.shape)
    call = ops._mkl_linear
    return lambda x: call(x, packed, shape, bias, x.shape[0])


def fbgemm_f16(weight: Tensor, bias: Tensor | None) -> Linear:
    """Half-precision weights, single-precision products and sums. Raises OwnersFault: a weight is no half number."""
    least, most = weight.aminmax()
    if not bool(torch.maximum(most, -least) <= _HALF_MAX):
        raise OwnersFault(f"a weight is beyond {_HALF_MAX:.0f}, the largest number of half precision")
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)
    call = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: call(x, packed)


def x86_int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """
    8-bit weights with a scale for each output, 8-bit activations with a scale for each row.

    The operator takes one scale for all rows, so each row is divided by its own largest number before and multiplied
    by it after.
    """
    quantised = torch.ops.quantized
    scales = _row_scales(weight.float(), 127)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        # They announce that eager quantisation moves to another package one day.
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = "x86"
        try:
            made = torch.quantize_per_channel(weight.float(), scales[:, 0].double(), zeros, 0, torch.qint8)
            packed = quantised.linear_prepack(made, None)
        finally:
            torch.backends.quantized.engine = before
    # Without VNNI sums of two products are kept in 16 bits, which full 8-bit activations would overflow.
    steps = 127 if _has_vnni() else 63
    call, scale, zero = quantised.linear_with_input_q_dq_qweight_dq_output_fp32, 1 / steps, steps + 1

    def linear(x: Tensor) -> Tensor:
        largest = _largest(x)
        y: Tensor = call(x / largest, scale, zero, packed).mul_(largest)
        return y if bias is None else y.add_(bias)

    return linear


def any_int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """As `x86_int8`, of operators that every device has; the products are summed in 32-bit integers."""
    scales = _row_scales(weight.float(), 127)
    numbers = (weight.float() / scales).round_().to(torch.int8)
    out = len(numbers)
    # CUDA's product takes multiples of 8, and more than 16 rows.
    numbers = functional.pad(numbers, (0, -numbers.shape[1] % 8, 0, -out % 8)).t()
    factors = scales[:, 0]

    def linear(x: Tensor) -> Tensor:
        largest = _largest(x.float()) / 127
        rows = (x / largest).round_().to(torch.int8)
        rows = functional.pad(rows, (0, numbers.shape[0] - x.shape[1], 0, max(0, 17 - x.shape[0])))
        y = torch._int_mm(rows, numbers)[: x.shape[0], :out].float().mul_(factors).mul_(largest)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    return linear


def avx_int4(weight: Tensor, bias: Tensor | None) -> Linear:
    """4-bit weights, a scale and a least value for each 32 of a row; activations in bfloat16. Raises OwnersFault."""
    out = len(weight)
    numbers, scales, middles = _four_bits(functional.pad(weight.float(), (0, 0, 0, -out % 64)))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.to(torch.int32), 1)
    scale_and_zero = torch.stack([scales.t(), middles.t()], -1).contiguous().to(torch.bfloat16)
    call = torch.ops.aten._weight_int4pack_mm_for_cpu

    def linear(x: Tensor) -> Tensor:
        y: Tensor = call(x.to(torch.bfloat16), packed, GROUP, scale_and_zero)[:, :out].to(x.dtype)
        return y if bias is None else y.add_(bias)

    return linear


def any_int4(weight: Tensor, bias: Tensor | None) -> Linear:
    """As `avx_int4`, for every device: made whole for each product, so that it saves memory and no time."""
    numbers, scales, middles = _four_bits(weight.float())
    pairs = numbers[:, ::2] | numbers[:, 1::2] << 4
    scales, middles = scales.to(torch.bfloat16)[..., None], middles.to(torch.bfloat16)[..., None]

    def linear(x: Tensor) -> Tensor:
        numbers = torch.stack((pairs & 15, pairs >> 4), -1).view(len(pairs), -1, GROUP)
        whole = (numbers.to(torch.bfloat16) - 8) * scales + middles
        return functional.linear(x, whole.flatten(1).to(x.dtype), bias)

    return linear


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers [out, in] of 0 to 15, and scales and middles [out, in / 32] of what they stand for."""
    out, width = weight.shape
    if width % GROUP:
        raise OwnersFault(f"int4 takes weights whose width is a multiple of {GROUP}, this one has {width}")
    groups = weight.view(out, width // GROUP, GROUP)
    least, most = groups.amin(-1), groups.amax(-1)
    scales = ((most - least) / 15).clamp_min_(1e-6)
    middles = least + 8 * scales
    numbers = (groups - middles[..., None]).div_(scales[..., None]).round_().add_(8).clamp_(0, 15)
    return numbers.view(out, width).to(torch.uint8), scales, middles


def _row_scales(weight: Tensor, steps: int) -> Tensor:
    # Without the copy that abs makes of a whole weight.
    largest = torch.maximum(weight.amax(1, keepdim=True), weight.amin(1, keepdim=True).neg_())
    return largest.div_(steps).clamp_min_(1e-30)


def _largest(x: Tensor) -> Tensor:
    """Return [N, 1]: the largest number of each row, whatever its sign; a row of zeros is multiplied by its 0 again."""
    return x.abs().amax(1, keepdim=True)


class Packing(NamedTuple):
    """
    How a slice is served: its name, how weights and the head's are packed, and the dtype of what flows between layers.

    The embedding is kept as `stored`. Weights are as wide as the next multiple of `width`.
    """

    name: str
    pack: Pack
    pack_head: Pack
    flow: torch.dtype
    stored: torch.dtype
    bytes_per_number: float
    width: int = 1


def packing(dtype: str, quant: str, device: torch.device) -> Packing:
    """
    Return how `dtype` (fp32, fp16, bf16) and `quant` (none, int8, int4) are served on the device.

    Single precision flows on a CPU, half-precision weights or not: 16-bit products collapse there with many rows.
    Raises OwnersFault: there is no such dtype or quantisation.
    """
    is_cpu, flows = device.type == "cpu", {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in flows or quant not in ("none", "int8", "int4"):
        raise OwnersFault(f"{dtype} with {quant} is none of fp32, fp16, bf16 with none, int8, int4")
    stored = flows[dtype]
    flow = torch.float32 if is_cpu else stored
    int8 = x86_int8 if is_cpu and _has("fbgemm") else any_int8
    if quant == "int8":
        return Packing("int8", int8, int8, flow, stored, 1)
    if quant == "int4":
        # What chooses the token is kept finer, as llama.cpp does.
        return Packing("int4", avx_int4 if is_cpu and _is_x86() else any_int4, int8, flow, stored, 0.625)
    if not is_cpu:
        return Packing(dtype, plain, plain, flow, stored, flow.itemsize)
    if dtype == "fp32":
        pack = mkl_f32 if torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear") else plain
        return Packing("fp32", pack, pack, flow, stored, 4)
    if not _has("fbgemm"):
        raise OwnersFault(f"this CPU build of torch has no product of {dtype} weights")
    return Packing("fp16", fbgemm_f16, fbgemm_f16, flow, stored, 2, _HALF_WIDTH)


def _has(engine: str) -> bool:
    return bool(engine in torch.backends.quantized.supported_engines)


def _is_x86() -> bool:
    return str(torch.backends.cpu.get_cpu_capability()).startswith("AVX")


def _has_vnni() -> bool:
    cpu: Any = torch.cpu
    found = getattr(cpu, "_is_vnni_supported", None) or getattr(cpu, "_is_avx512_vnni_supported", None)
    return bool(found and found())

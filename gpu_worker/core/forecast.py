"""What a model would do on this machine and bring, before a byte of it is downloaded."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from gpu_worker.core.errors import BadInput
from gpu_worker.core.estimate import ModelShape, need_of, step_s
from gpu_worker.core.hardware import Device, Speed
from wire.jobs import FineTune, Generate, Params
from wire.money import Asset, to_decimal

Work = Literal["full", "lora", "generate"]
_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to use the model. `missing_bytes` 0: it fits; `tokens_per_s` None: the device was not measured yet."""

    work: Work
    memory_bytes: int
    missing_bytes: int
    tokens_per_s: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`weights_bytes` is about what a download has; `per_hour`, in `currency`, the most that an hour of work brings."""

    parameters: int
    weights_bytes: int
    rows: tuple[Row, ...]
    per_hour: Decimal | None
    currency: str


def forecast(
    shape: ModelShape,
    device: Device,
    memory_bytes: int,
    speed: Speed | None,
    per_hour_atomic: int | None,
    asset: Asset,
    *,
    number_bytes: int = 2,
) -> Forecast:
    """
    Return what the model of `shape` does on a device of which jobs may have `memory_bytes`.

    `number_bytes` are those of one number of the download. It is trained one sequence at a time, the least there is.
    """
    length = min(_LENGTH, shape.positions)
    works: dict[Work, Params] = {
        "full": FineTune(batch_size=1, sequence_length=length, steps=1),
        "lora": FineTune(method="lora", batch_size=1, sequence_length=length, steps=1),
        "generate": Generate(dataset="input:" + "0" * 64, batch_size=1, max_new_tokens=length),
    }
    rows = tuple(_row(work, params, shape, device, memory_bytes, speed) for work, params in works.items())
    can = any(row.missing_bytes == 0 for row in rows)
    return Forecast(
        parameters=shape.parameters,
        weights_bytes=shape.parameters * number_bytes,
        rows=rows,
        per_hour=to_decimal(per_hour_atomic, asset) if can and per_hour_atomic is not None else None,
        currency=asset.symbol,
    )


def _row(work: Work, params: Params, shape: ModelShape, device: Device, memory_bytes: int, speed: Speed | None) -> Row:
    need = need_of(shape, params, device.kind)
    rate = None
    if speed is not None:
        rate = (need.step_tokens / max(Decimal("1e-9"), step_s(need, shape, speed))).quantize(Decimal("0.1"))
    missing = max(0, need.memory_bytes - memory_bytes)
    return Row(work=work, memory_bytes=need.memory_bytes, missing_bytes=missing, tokens_per_s=rate)


def number_bytes_of(config_dtype: object) -> int:
    """Return the bytes of one number in the files of a model whose config.json names that type. Raises BadInput."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
    name = str(config_dtype or "float32").removeprefix("torch.")
    if name not in sizes:
        raise BadInput("model_unknown", f"config.json: {name[:40]!r} is no kind of number that is trained here")
    return sizes[name]

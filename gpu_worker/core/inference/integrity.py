"""Whether a model is the one that it is said to be."""

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.model import LocalModel

_DIGITS = 64


def check_hash(model: LocalModel, wanted: str | None) -> None:
    """
    Return where `wanted`, SHA-256 in hexadecimal digits with or without 0x, is the model's; None asks for nothing.

    Raises:
        OwnersFault: it is another, or no SHA-256; nothing of the model is to be served then.
    """
    if wanted is None:
        return
    digits = wanted.strip().lower().removeprefix("0x")
    if len(digits) != _DIGITS or set(digits) - set("0123456789abcdef"):
        raise OwnersFault(f"{wanted[:80]!r} is no SHA-256: write its {_DIGITS} hexadecimal digits")
    if digits != model.model_hash:
        raise OwnersFault(
            f"the model {model.name} is not the one that was asked for: its files have the hash {model.model_hash}, "
            f"wanted is {digits}"
        )

"""What a till keeps must mean the same after an update, and a value in hand must not change."""

import importlib
import pkgutil
from dataclasses import is_dataclass

import pytest

import cashier
from cashier.core.model import PaidRequest
from cashier.core.reading import _fingerprint

# Made to be filled in: in-process locks, and the cashier that joins its parts.
_NOT_VALUES = {"Locks", "Cashier"}


def _values() -> list[type]:
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(cashier.__path__, "cashier.")]
    kinds = {
        kind for module in modules for kind in vars(module).values() if isinstance(kind, type) and is_dataclass(kind)
    }
    return sorted(
        (kind for kind in kinds if kind.__module__.startswith("cashier.") and kind.__name__ not in _NOT_VALUES),
        key=lambda kind: kind.__qualname__,
    )


@pytest.mark.parametrize("kind", _values(), ids=lambda kind: kind.__name__)
def test_a_value_is_frozen_and_has_no_room_for_more(kind: type) -> None:
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)


def test_a_requests_fingerprint_is_the_one_it_has_always_been() -> None:
    # Rows of a till hold it: another one would make the same request, sent again after an update, a conflict.
    request = PaidRequest(method="post", url="http://vendor/submit-job?x=1", headers={}, body=b'{"a":1}')
    assert _fingerprint(request, "header") == "c00a20862ab7c67ab5e7696b26da495f33583d7726d981a387e51d5c7a1ca9c3"

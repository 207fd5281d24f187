"""Which model a caller may ask for."""

import pytest

from gpu_worker.core.inference.callers import Caller, model_for
from gpu_worker.core.inference.codes import InferenceError

NAMES = {None: "small-q4", "small": "small-q4", "small-q4": "small-q4", "large": "large-q8"}


@pytest.mark.parametrize(
    ("of_pass", "asked", "expected"),
    [
        (None, None, "small-q4"),
        (None, "large", "large-q8"),
        ("large", None, "large-q8"),
        ("large", "", "large-q8"),
        ("small", "small-q4", "small-q4"),
        ("small-q4", "small", "small-q4"),
    ],
)
def test_a_pass_names_the_model_where_the_request_does_not(
    of_pass: str | None, asked: str | None, expected: str
) -> None:
    assert model_for(Caller(kind="pass", id="c", model=of_pass), asked, NAMES.__getitem__) == expected


def test_a_pass_for_one_model_is_none_for_another() -> None:
    with pytest.raises(InferenceError, match="for the model small-q4") as raised:
        model_for(Caller(kind="pass", id="c", model="small"), "large", NAMES.__getitem__)
    assert (raised.value.code, raised.value.param) == ("forbidden", "model")

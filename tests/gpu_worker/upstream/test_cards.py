"""The models and vectors of a server, as far as they can be true."""

from typing import Any

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.upstream.cards import MODELS_MAX, WIDTH_MAX, chosen, embedded, listed

LLAMA = {
    "id": "/srv/owner/models/tiny-q8.gguf",
    "object": "model",
    "owned_by": "llamacpp",
    "meta": {"n_ctx": 512, "n_ctx_train": 4096, "size": 93662208, "ftype": "Q8_0"},
}
VLLM = {"id": "meta/Llama-3", "object": "model", "owned_by": "vllm", "max_model_len": 8192}


def test_a_model_says_how_long_a_request_may_be_and_shows_no_path() -> None:
    llama, vllm = listed({"data": [LLAMA, VLLM]})
    assert (llama.card.name, llama.sent, llama.owner) == ("tiny-q8.gguf", LLAMA["id"], "llamacpp")
    assert (llama.card.context, llama.card.quant, llama.card.bytes) == (512, "Q8_0", 93662208)
    assert (vllm.card.name, vllm.sent, vllm.card.context) == ("meta/Llama-3", "meta/Llama-3", 8192)


@pytest.mark.parametrize("path", ["C:\\models\\x.gguf", "\\\\share\\x.gguf", "/x.gguf"])
def test_a_path_of_any_system_is_its_last_part(path: str) -> None:
    assert listed({"data": [{"id": path}]})[0].card.name == "x.gguf"


@pytest.mark.parametrize("lie", [-1, 0, 2**40, True, "8192", 1.5, None, {}])
def test_a_length_that_cannot_be_true_is_not_known(lie: Any) -> None:
    (found,) = listed({"data": [{"id": "m", "max_model_len": lie, "meta": {"n_ctx": lie, "size": -1, "ftype": 7}}]})
    assert (found.card.context, found.card.bytes, found.card.quant) == (None, 0, "")


def test_names_that_are_none_are_passed_over_and_there_are_not_too_many() -> None:
    names: list[Any] = ["", 7, None, "a b", "x" * 513, "a\nb", "good"]
    assert [each.sent for each in listed({"data": [*({"id": name} for name in names), "what"]})] == ["good"]
    assert len(listed({"data": [{"id": f"m{n}"} for n in range(MODELS_MAX + 5)]})) == MODELS_MAX


@pytest.mark.parametrize("document", [None, [], "x", {}, {"data": {}}, {"models": []}])
def test_what_is_no_list_of_models_is_none(document: Any) -> None:
    with pytest.raises(InferenceError) as caught:
        listed(document)
    assert caught.value.code == "upstream_error"


def test_the_owners_order_of_models_stands_and_both_names_of_one_do() -> None:
    found = listed({"data": [LLAMA, VLLM]})
    assert [each.sent for each in chosen(found, ["meta/Llama-3", "tiny-q8.gguf"])] == [VLLM["id"], LLAMA["id"]]
    assert [each.sent for each in chosen(found, [LLAMA["id"], "gone"])] == [LLAMA["id"]]
    assert chosen(found, []) == found


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    data = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1, 2]}]
    made = embedded({"data": data, "usage": {"prompt_tokens": 6}}, 2)
    assert (made.vectors, made.tokens) == (((1.0, 2.0), (3.0, 4.5)), 6)


def _one(value: Any) -> dict[str, Any]:
    return {"data": [{"index": 0, "embedding": value}]}


@pytest.mark.parametrize(
    ("document", "inputs"),
    [
        (None, 1),
        ({"data": []}, 1),
        (_one([1.0]), 2),
        (_one([]), 1),
        (_one(["1"]), 1),
        (_one([True]), 1),
        (_one([float("inf")]), 1),
        (_one(None), 1),
        (_one([0.0] * (WIDTH_MAX + 1)), 1),
        ({"data": [{"index": 1, "embedding": [1]}]}, 1),
        ({"data": [{"index": "0", "embedding": [1]}]}, 1),
        ({"data": [{"index": True, "embedding": [1]}, {"index": 0, "embedding": [1]}]}, 2),
        ({"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}, 2),
        ({"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}, 2),
    ],
)
def test_vectors_that_are_none_are_refused(document: Any, inputs: int) -> None:
    with pytest.raises(InferenceError) as caught:
        embedded(document, inputs)
    assert caught.value.code == "upstream_error"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"prompt_tokens": 10**12}, {"prompt_tokens": "6"}])
def test_a_count_that_cannot_be_true_is_none(usage: Any) -> None:
    assert embedded({**_one([1]), "usage": usage}, 1).tokens == 0

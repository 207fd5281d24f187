"""What a GGUF header says of its model: every number sane, each layer's bytes, and what a token leaves in its cache."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.errors import BadInput
from gpu_worker.core.quantization.catalogue import BITS
from gpu_worker.core.quantization.choice import offered
from gpu_worker.core.quantization.gguf_weights import check_adapter, weights_of_header
from gpu_worker.core.quantization.header import BadGguf, parse
from gpu_worker.core.quantization.weights import Weights, size_in, weights_named, weights_of_config
from tests.fixtures.gguf_bytes import Shape, gguf, llama, llama_tensors

# Bytes of the files that llama.cpp's own tool makes of Llama 3.1 8B; its README tells them in GiB.
_LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


def weights(shape: Shape = Shape(), name: str = "model", **more: Any) -> Weights:  # noqa: B008
    data = gguf(llama(shape, **more), llama_tensors(shape))
    return weights_of_header([parse(data, len(data))], name)


def test_every_byte_of_the_tensors_has_its_place() -> None:
    shape = Shape(layers=3)
    found = weights(shape)

    assert found.is_exact
    assert found.bytes == sum(tensor.bytes for tensor in llama_tensors(shape))
    assert found.input_bytes == 256 * 300 * 2
    assert found.output_bytes == 256 * 300 * 2 + 256 * 4
    attention, inner = 2 * 256 * 256 + 2 * 256 * 128, 3 * 256 * 512
    assert [layer.bytes for layer in found.layers] == [2 * 1024 + 2 * (attention + inner)] * 3
    assert [(layer.k, layer.v, layer.window) for layer in found.layers] == [(128, 128, None)] * 3


def test_a_table_that_is_input_and_output_counts_once_in_the_file_and_again_on_a_gpu() -> None:
    found = weights(Shape(is_tied=True))

    assert found.is_tied
    assert found.output_bytes == 256 * 300 * 2 + 256 * 4
    assert found.bytes == found.input_bytes + sum(layer.bytes for layer in found.layers)


def test_of_experts_a_token_reads_those_that_it_asks() -> None:
    layer = weights(Shape(experts=8)).layers[0]

    assert layer.bytes - layer.read_bytes == 3 * 256 * 512 * 2 * 6


def test_a_layer_that_sees_a_window_is_known_by_its_family_or_by_what_the_file_says() -> None:
    def windows(shape: Shape, **more: Any) -> list[int | None]:
        return [layer.window for layer in weights(shape, **more).layers]

    gemma = Shape(layers=12, architecture="gemma3")
    assert windows(gemma, gemma3__attention__sliding_window=512) == ([512] * 5 + [None]) * 2
    told = Shape(layers=4, architecture="newest")
    each = {"newest__attention__sliding_window_pattern": [True, False, False, True]}
    assert windows(told, newest__attention__sliding_window=64, **each) == [64, None, None, 64]
    # Of a family that nobody knows each layer is taken to see all: rather too much than too little.
    assert windows(told, newest__attention__sliding_window=64) == [None] * 4


def test_layers_with_heads_of_their_own_and_layers_without_attention_are_counted_each() -> None:
    found = weights(Shape(layers=3), llama__attention__head_count_kv=[2, 0, 1], llama__ssm__inner_size=512,
                    llama__ssm__state_size=16, llama__ssm__conv_kernel=4)  # fmt: skip

    assert [layer.k for layer in found.layers] == [128, 0, 64]
    assert [layer.state_bytes for layer in found.layers] == [0, 4 * (3 * 512 + 512 * 16), 0]


def test_latent_attention_keeps_one_row_of_keys_and_values() -> None:
    found = weights(
        llama__attention__key_length=576,
        llama__attention__value_length=512,
        llama__attention__key_length_mla=192,
        llama__attention__head_count_kv=1,
    )

    assert [(layer.k, layer.v) for layer in found.layers] == [(576, 0)] * 2


@pytest.mark.parametrize(
    ("more", "name", "quant"),
    [
        ({"general__file_type": 15}, "model", "Q4_K_M"),
        ({"general__file_type": 18}, "x-Q6_K_L", "Q6_K_L"),
        ({"general__file_type": 15}, "x-Q8_0", "Q4_K_M"),
        ({}, "x-q5_k_m", "Q5_K_M"),
        ({}, "model", ""),
    ],
)
def test_a_quantisation_is_what_the_header_says_but_for_mixtures_that_a_name_alone_tells(
    more: dict[str, Any], name: str, quant: str
) -> None:
    assert weights(name=name, **more).quant == quant


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "more layers than llama.cpp survives": ({"llama__block_count": 4_000_000}, "is 4000000: a model has 1 to 512"),
    "no layer": ({"llama__block_count": 0}, "block_count is 0"),
    "a layer too few": ({"llama__block_count": 1}, "there is a tensor of layer 1"),
    "a layer too many": ({"llama__block_count": 3}, "layer 2 has no tensor"),
    "layers not told": ({"llama__block_count": None}, "block_count is missing"),
    "layers as a text": ({"llama__block_count": "2"}, "block_count is 2"),
    "a context of 0": ({"llama__context_length": 0}, "context_length is 0"),
    "a context of billions": ({"llama__context_length": 2**32 - 1}, "context_length is 4294967295"),
    "no head": ({"llama__attention__head_count": 0}, "head_count is missing or 0"),
    "more key heads than heads": ({"llama__attention__head_count_kv": 64}, "head_count_kv is 64"),
    "heads beyond number": ({"llama__attention__head_count": 2**31}, "head_count is 2147483648"),
    "heads that do not divide": ({"llama__attention__head_count": 7}, "7 heads do not divide"),
    "heads for one layer of two": ({"llama__attention__head_count_kv": [2]}, "one number"),
    "another width": ({"llama__embedding_length": 128}, "that of the weights 256"),
    "another tokenizer": ({"tokenizer__ggml__tokens": ["a"], "tokenizer__ggml__token_type": None}, "do not belong"),
    "scores that are too few": ({"tokenizer__ggml__scores": [0.5]}, "1 entries in scores"),
    "an end that is no token": ({"tokenizer__ggml__eos_token_id": 300}, "the eos token is 300"),
    "no architecture": ({"general__architecture": None}, "holds no model"),
    "a picture's projector": ({"general__architecture": "clip"}, "a part of one"),
    "an adapter": ({"general__type": "adapter"}, "of the type adapter"),
    "experts beyond number": ({"llama__expert_count": 100_000}, "expert_count"),
}  # fmt: skip


ANY = (
    st.integers(0, 2**32 - 1)
    | st.floats(width=32)
    | st.booleans()
    | st.text(max_size=20)
    | st.lists(st.integers(0, 2**32 - 1), max_size=4)
    | st.lists(st.booleans(), max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*llama(), "llama.attention.sliding_window", "llama.expert_count", "general.file_type"]), ANY)
def test_whatever_a_key_says_the_model_is_sane_or_refused_in_a_sentence(key: str, value: Any) -> None:
    found = weights_or_words(llama() | {key: value})

    if isinstance(found, str):
        assert found.isprintable()
    else:
        assert 0 < found.context <= 2**27
        assert len(found.layers) == 2
        assert all(0 <= layer.read_bytes <= layer.bytes and layer.k >= 0 <= layer.v for layer in found.layers)


def weights_or_words(values: dict[str, Any]) -> Weights | str:
    """Return the model of a header, or why it is refused. Whatever else happens is raised."""
    data = gguf(values, llama_tensors())
    try:
        return weights_of_header([parse(data, len(data))], "model")
    except BadGguf as refused:
        return str(refused)


@pytest.mark.parametrize("name", WRONG)
def test_a_header_that_says_what_no_model_has_is_refused(name: str) -> None:
    more, why = WRONG[name]

    with pytest.raises(BadGguf, match=why):
        weights(**more)


def test_a_tokenizer_alone_is_no_model() -> None:
    data = gguf(llama())

    with pytest.raises(BadGguf, match="no whole model"):
        weights_of_header([parse(data, len(data))], "vocabulary")


def test_an_adapter_is_one_of_its_model_or_is_refused() -> None:
    def adapter(**more: Any) -> Any:
        data = gguf({"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", **more})
        return parse(data, len(data))

    check_adapter(adapter(), "llama")
    with pytest.raises(BadGguf, match="is for llama models"):
        check_adapter(adapter(), "gemma3")
    with pytest.raises(BadGguf, match="no LoRA adapter"):
        check_adapter(adapter(**{"general.type": "model"}), "llama")


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("8B", 8_000_000_000, 8_000_000_000),
        ("llama3.1:8b-instruct-q4_k_m", 8_000_000_000, 8_000_000_000),
        ("Qwen2.5-0.5B-Instruct-GGUF", 500_000_000, 500_000_000),
        ("qwen3:30b-a3b", 30_000_000_000, 3_000_000_000),
        ("mixtral-8x7b", 56_000_000_000, 56_000_000_000),
        ("smollm:135m", 135_000_000, 135_000_000),
    ],
)
def test_a_size_is_read_wherever_it_stands_in_a_name(name: str, parameters: int, active: int) -> None:
    size = size_in(name)

    assert size is not None
    assert (size.parameters, size.active) == (parameters, active)


@pytest.mark.parametrize("name", ["mistral", "phi3:mini", "gpt-4o", "llama3.1", "q4_k_m", "b", "0b", ""])
def test_a_name_that_tells_no_size_is_not_guessed(name: str) -> None:
    assert size_in(name) is None
    with pytest.raises(BadInput, match="tells no size"):
        weights_named(name, "Q4_K_M")


@pytest.mark.parametrize(
    ("quant", "gib"),
    [("Q8_0", 7.95), ("Q6_K", 6.14), ("Q5_K_M", 5.33), ("Q4_K_M", 4.58), ("Q3_K_L", 4.02), ("Q2_K", 2.95)],
)
def test_before_a_download_the_shape_tells_the_file_within_a_tenth(quant: str, gib: float) -> None:
    found = weights_of_config(_LLAMA_8B, "llama", quant).bytes / 1024**3

    assert gib * 0.97 <= found <= gib * 1.10
    # Its name tells less, and so asks for more.
    assert found <= weights_named("llama-8b", quant).bytes / 1024**3 <= gib * 1.25


def test_the_output_is_never_shrunk_as_far_as_the_rest() -> None:
    assert weights_of_config(_LLAMA_8B, "llama", "Q2_K").output_bytes == 128_256 * 4_096 * 210 // 256
    assert weights_of_config(_LLAMA_8B, "llama", "Q8_0").output_bytes == int(128_256 * 4_096 * 8.5 / 8)


def test_what_a_config_tells_of_experts_is_read() -> None:
    config = _LLAMA_8B | {"num_local_experts": 8, "num_experts_per_tok": 2, "model_type": "mixtral"}
    layer = weights_of_config(config, "m", "Q8_0").layers[0]

    assert layer.read_bytes < layer.bytes * 0.32


def test_more_bits_are_more_bytes_whatever_the_model_is_known_by() -> None:
    ordered = sorted(offered(on_arm=True), key=BITS.__getitem__)
    for make in (lambda quant: weights_named("8b", quant), lambda quant: weights_of_config(_LLAMA_8B, "m", quant)):
        sizes = [make(quant).bytes for quant in ordered]
        assert sizes == sorted(set(sizes))

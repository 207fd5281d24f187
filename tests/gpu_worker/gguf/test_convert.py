"""A folder of safetensors as a GGUF file: what is converted comes out right, what would not is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.engines.gguf_file import read_model
from gpu_worker.engine.gguf.convert import adapter_to_gguf, main, model_to_gguf
from tests.fixtures.tiny_gguf import CONTEXT, HEADS, KV_HEADS, LAYERS, VOCABULARY, WIDTH, TinyGguf


@pytest.mark.parametrize(("kind", "quant"), [("f32", "F32"), ("f16", "F16"), ("q8_0", "Q8_0")])
def test_the_header_says_what_the_model_is(kind: str, quant: str, tiny_gguf: TinyGguf) -> None:
    weights = read_model(tiny_gguf.gguf(kind)).weights
    assert (weights.quant, weights.context, weights.width) == (quant, CONTEXT, WIDTH)
    assert (weights.vocabulary, len(weights.layers), weights.is_tied) == (VOCABULARY, LAYERS, True)


def test_converted_again_it_is_the_same_to_the_byte(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    assert main([str(tiny_gguf.hf), str(tmp_path / "again.gguf")]) == 0
    assert (tmp_path / "again.gguf").read_bytes() == tiny_gguf.gguf("f16").read_bytes()
    command = [str(tiny_gguf.adapter_folder), str(tmp_path / "adapter.gguf"), "--for", str(tiny_gguf.gguf())]
    assert main(command) == 0
    assert (tmp_path / "adapter.gguf").read_bytes() == tiny_gguf.adapter.read_bytes()


def _config(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return change


def _tokenizer(change_it: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text())
        change_it(document)
        path.write_text(json.dumps(document))

    return change


ODD = {
    "another architecture": (_config(model_type="mamba"), "a mamba, only llama is converted"),
    "scaled positions": (_config(rope_parameters={"rope_type": "yarn", "factor": 4}), "scaled positions"),
    "biases": (_config(attention_bias=True), "biases"),
    "another activation": (_config(hidden_act="gelu"), "the activation gelu"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
    "a config that is none": (lambda folder: (folder / "config.json").write_text("[]"), "is no object"),
    "another cut": (_tokenizer(lambda told: told["pre_tokenizer"].update(add_prefix_space=True)), "cuts texts"),
    "another tokenizer": (_tokenizer(lambda told: told["model"].update(type="Unigram")), "cuts texts"),
    "a normalizer": (_tokenizer(lambda told: told.update(normalizer={"type": "NFC"})), "cuts texts"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_would_come_out_wrong_is_refused(name: str, tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    change, words = ODD[name]
    folder = tmp_path / "model"
    shutil.copytree(tiny_gguf.hf, folder)
    change(folder)
    with pytest.raises(OwnersFault, match=words):
        model_to_gguf(folder, tmp_path / "out.gguf", "f16")
    assert main([str(folder), str(tmp_path / "out.gguf")]) == 1


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}]
)
def test_an_adapter_of_another_kind_is_refused(more: dict[str, Any], tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_gguf.adapter_folder, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(OwnersFault, match="is not served on a GGUF model"):
        adapter_to_gguf(folder, tmp_path / "out.gguf", heads=HEADS, kv_heads=KV_HEADS)


def test_it_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "python -m gpu_worker.engine.gguf.convert" in capsys.readouterr().err

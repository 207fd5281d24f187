"""Which engine serves a model: what its owner names, else what the model is."""

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.wiring.model import engine_of


def chosen(folder: Path, **told: Any) -> str:
    return engine_of(WorkerSettings(data=folder, models=folder, **told))


@pytest.mark.parametrize(
    ("told", "engine"),
    [
        ({"model": "here"}, "slice"),
        ({"model": "file"}, "gguf"),
        ({"model": "file.gguf"}, "gguf"),
        ({"model": "nowhere.gguf"}, "gguf"),
        ({"model": "bartowski/Llama-3.1-8B-GGUF:Q4_K_M"}, "gguf"),
        ({"model": "llama3.1:8b"}, "ollama"),
        ({"model": "hf.co/someone/model:q4_k_m"}, "ollama"),
        ({"supported_models": "llama3.1"}, "ollama"),
        ({"model": "nowhere"}, "slice"),
        ({"model": "here", "layers": "0:1"}, "slice"),
        ({"upstream_url": "http://127.0.0.1:8000"}, "openai"),
        ({"model": "here", "upstream_url": "http://127.0.0.1:8000"}, "openai"),
        ({"model": "llama3.1:8b", "engine": "openai"}, "openai"),
        # An Ollama that is there for another program is no reason to serve by it.
        ({"model": "nowhere", "ollama_url": "http://127.0.0.1:11434"}, "slice"),
    ],
)
def test_the_engine_is_what_the_model_is(tmp_path: Path, told: dict[str, Any], engine: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    assert chosen(tmp_path, **told) == engine

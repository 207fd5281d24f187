"""`livery quant plan`: what an owner is told of a model before it is downloaded, and of a file that lies here."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.hw import worker_settings
from gpu_worker.core.hardware import MIB
from gpu_worker.quantization import GGUFQuantizationManager, Tier
from gpu_worker.wiring.machine import open_hardware
from gpu_worker.wiring.quantization import Rates, rates_for
from tests.cli.conftest import Livery
from tests.fixtures.gguf_bytes import Shape, model_bytes, write

CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.row(65)
def test_a_model_of_a_size_is_planned_for_a_card_before_it_is_downloaded(livery: Livery) -> None:
    said = livery("quant", "plan", "8B", "--vram", "8GiB", "--ram", "32GiB", "--ctx", "8192", "--slots", "4", "--json")
    document = said.json

    assert said.code == 0
    assert (document["best"], document["tier"], document["refusal"]) == ("Q4_K_M", "PREMIUM", None)
    best = document["plans"][0]
    assert (best["context"], best["slots"], best["is_whole"]) == (8_192, 4, False)
    assert 0 < best["gpu_layers"] < best["layers"] == 33
    gpu = best["gpu"]
    assert gpu["weights_mb"] + gpu["cache_mb"] + gpu["compute_mb"] + gpu["reserve_mb"] <= 8_192 + 3
    by_quant = {each["quant"]: each for each in document["plans"]}
    assert by_quant["Q8_0"]["file_mb"] > by_quant["Q4_K_M"]["file_mb"] > by_quant["Q2_K"]["file_mb"]
    assert by_quant["Q2_K"]["tiers"] == ["EMERGENCY"]


def test_a_file_is_planned_by_its_header(livery: Livery, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny-Q8_0.gguf", model_bytes(Shape(kind="Q8_0")))
    document = livery("quant", "plan", str(path), "--vram", "0", "--ram", "16GiB", "--json").json

    assert [(each["quant"], each["is_exact"], each["fits"]) for each in document["plans"]] == [("Q8_0", True, True)]
    assert document["device"] == "cpu"
    assert document["plans"][0]["slots"] == 4


@pytest.mark.parametrize("called", ["folder", "name"])
def test_a_folder_is_planned_by_what_lies_in_it(livery: Livery, tmp_path: Path, called: str) -> None:
    folder = tmp_path / "models" / "llama-1b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = str(folder) if called == "folder" else folder.name
    before = livery("quant", "plan", model, "--ram", "64g", "--json", LIVERY_WORKER_MODELS=str(folder.parent)).json
    assert before["plans"][0]["quant"] == "Q8_0"
    assert not before["plans"][0]["is_exact"]

    for kind in ("Q8_0", "F16"):
        write(folder / f"{kind}.gguf", model_bytes(Shape(kind=kind)))
    after = livery("quant", "plan", model, "--ram", "64g", "--json", LIVERY_WORKER_MODELS=str(folder.parent)).json
    assert [each["quant"] for each in after["plans"]] == ["F16", "Q8_0"]
    one = livery(
        "quant", "plan", model, "--ram", "64g", "--quant", "q8_0", "--json", LIVERY_WORKER_MODELS=str(folder.parent)
    )
    assert [each["quant"] for each in one.json["plans"]] == ["Q8_0"]


def test_a_name_that_no_file_can_have_is_one_sentence(livery: Livery) -> None:
    said = livery("quant", "plan", "a" * 300, "--json")
    assert (said.code, said.json["code"]) == (1, "no_plan")
    assert "File name too long" in said.json["detail"]


def test_a_page_says_where_each_part_goes(livery: Livery) -> None:
    said = livery("quant", "plan", "llama3.1:8b", "--vram", "24GiB", "--ram", "32GiB")

    assert said.code == 0
    for word in ("best", "Q8_0", "33 of 33 on the GPU", "weights", "cache", "compute", "reserve", "Q4_K_M", "33/33"):
        assert word in said.out
    assert "not measured" in said.out


def test_what_does_not_fit_is_told_with_what_is_missing_and_what_would_fit(livery: Livery) -> None:
    said = livery("quant", "plan", "70b", "--vram", "0", "--ram", "40GiB", "--quant", "Q8_0")

    assert said.code == 1
    assert "MiB are missing; one answer at a time, " in said.out
    assert "of it would fit" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mistral",), 1, "tells no size"),
        (("8b", "--quant", "Q9_X"), 1, "no quantisation"),
        (("8b", "--vram", "lots"), 2, "write a size as 8GiB"),
        (("8b", "--kv", "f8"), 2, "f8"),
        (("8b", "--ctx", "1"), 2, "256"),
        (("8b", "--ctx", "1000000"), 1, "was trained for"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(
    livery: Livery, arguments: tuple[str, ...], code: int, words: str
) -> None:
    said = livery("quant", "plan", *arguments)

    assert said.code == code
    assert words in said.err
    assert "Traceback" not in said.err


def test_a_broken_file_is_refused_without_its_place(livery: Livery, tmp_path: Path) -> None:
    said = livery("quant", "plan", str(write(tmp_path / "bad.gguf", b"GGUF" + bytes(100))))

    assert said.code == 1
    assert "bad.gguf: " in said.err
    assert str(tmp_path) not in said.err


@pytest.mark.slow
async def test_the_speed_is_from_what_was_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVERY_WORKER_DATA", str(tmp_path))
    monkeypatch.setenv("LIVERY_WORKER_DEVICE", "cpu")
    settings = worker_settings(True)
    machine = await open_hardware(settings).read()
    assert await rates_for(settings, machine) == Rates()

    measured = await rates_for(settings, machine, measure=True)
    assert measured.gpu is None
    assert measured.host is not None
    assert 10**8 < measured.host < 10**12
    assert await rates_for(settings, machine) == measured

    said = await asyncio.to_thread(plan_here, tmp_path)
    best = said["plans"][0]
    assert best["tokens_per_s"] is not None
    assert 0 < float(best["tokens_per_s"]) < measured.host / 10**8


def plan_here(folder: Path) -> dict[str, list[dict[str, str]]]:
    variables = {"LIVERY_WORKER_DATA": str(folder), "LIVERY_WORKER_DEVICE": "cpu", "PATH": "", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "quant", "plan", "1b", "--ram", "16GiB", "--json"],
        capture_output=True, text=True, check=True, env=variables, timeout=60,
    )  # fmt: skip
    document: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return document


@pytest.mark.row(156)
def test_the_manager_is_used_as_its_readme_does() -> None:
    code = (
        "from gpu_worker.quantization import GGUFQuantizationManager\n"
        "manager = GGUFQuantizationManager()\n"
        "total, available = manager.get_system_memory_info()\n"
        "print(total, available, manager.determine_optimal_tier(available).name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    total, available, tier = done.stdout.split()

    assert 0 < int(available) <= int(total)
    assert tier == GGUFQuantizationManager().determine_optimal_tier(int(available)).name


@pytest.mark.row(156)
def test_the_manager_tells_the_memory_that_models_go_to() -> None:
    import psutil

    total, _ = GGUFQuantizationManager(worker_settings(True, device="cpu")).get_system_memory_info()
    assert total <= psutil.virtual_memory().total // MIB
    assert [GGUFQuantizationManager().determine_optimal_tier(mb) for mb in (8_192, 6_144, 4_096, 100)] == list(Tier)

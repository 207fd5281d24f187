"""What `livery worker start` says of a model that it cannot serve: one sentence, and exit code 1."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.slice_worker import typed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def strange(model: Path, folder: Path) -> Path:
    """Return a copy of a model that says that it is of a family that nobody knows."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mystery"}))
    return folder


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--layers", "0:9"], "0:9 is no slice of a model with 6 layers"),
        (["--model-hash", "0" * 64], "is not the one that was asked for"),
        (["--kv-max-mb", "99000000"], r"caches 99000000 MiB, \d+ are free: \d+ MiB are missing"),
        (["--grpc-port", "{taken}"], r"gRPC cannot listen on 127\.0\.0\.1:{taken}: the port is taken"),
        (["--model", "{folder}/none"], "there is no model"),
        (["--quant", "int8", "--back-end", "hf"], "the hf back end serves no int8"),
        (["--model", "{strange}"], "mystery"),
        (["{ram}"], r"need \d+ MiB .*\d+ are free: \d+ (MiB )?are missing"),
    ],
    ids=["layers", "hash", "cache", "port", "no model", "quant", "family", "memory"],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    tiny_words: Path, tmp_path: Path, taken: int, more: list[str], says: str
) -> None:
    about = {"taken": str(taken), "folder": str(tmp_path), "strange": ""}
    if "{strange}" in more:
        about["strange"] = str(strange(tiny_words, tmp_path / "strange"))
    environment = {"LIVERY_WORKER_RAM_MB": "32"} if "{ram}" in more else {}
    words = [re.sub(r"\{(\w+)\}", lambda found: about[found[1]], word) for word in more if word != "{ram}"]
    base = ["worker", "start", "--model", str(tiny_words), "--port", "0"]
    door = [] if "--grpc-port" in words else ["--grpc-port", "0"]
    ended = typed(tmp_path, *base, *door, *words, LIVERY_WORKER_RPC_URL="http://127.0.0.1:9", **environment)

    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert re.search(says.replace("{taken}", str(taken)), ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "worker is online" not in ended.stderr
    assert last

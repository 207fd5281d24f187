"""Datasets of strangers: what is refused, where, and how much of it is ever held or written."""

import gzip
import hashlib
import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpu_worker.core.dataset import InputForm, Limits
from gpu_worker.core.errors import BadInput, OwnersFault, Unavailable
from gpu_worker.core.folder import InputFile
from gpu_worker.core.unpacking import unpacked
from gpu_worker.datasets import fetch, head, local
from outbound.guard import guard
from outbound.http import HttpClient
from tests.fixtures.tiny import Job
from wire.vendor import FilesGrant

KIB = 1024
LIMITS = Limits(bytes_max=256 * KIB, unpacked_bytes_max=1024 * KIB, ratio_from_bytes=64 * KIB, line_bytes_max=64 * KIB)
WIDE = Limits(bytes_max=2**40, unpacked_bytes_max=2**40)
TOKEN = "token-of-the-run-and-job"
GRANT = FilesGrant(url="http://plane/api/agent-files/run_1/job_1", token=TOKEN, part_bytes_max=4 * KIB * KIB)
LINES = b'{"text": "one"}\n{"text": "two"}\n'


class Server:
    """Answers with what is put at a path: a body, or a status."""

    def __init__(self) -> None:
        self.at: dict[str, bytes | int] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        route = Route("/{path:path}", self._serve, methods=["GET", "HEAD"])
        self.http = HttpClient(transport=httpx.ASGITransport(Starlette(routes=[route])))

    async def _serve(self, request: Request) -> Response:
        self.seen.append((request.method, request.url.path, request.headers.get("authorization")))
        found = self.at.get(request.url.path, 404)
        return Response(status_code=found) if isinstance(found, int) else Response(found)


@pytest.fixture
def server() -> Server:
    return Server()


async def fetched(
    server: Server, into: Path, content: bytes, name: str = "data.jsonl", form: InputForm = "text"
) -> Path:
    """Return the file of records made of `content`."""
    server.at[f"/{name}"] = content
    found = await fetch(f"http://data/{name}", form, into, LIMITS, server.http)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    _check(into, found)
    return into / found.name


def _check(into: Path, found: InputFile) -> None:
    assert [path.name for path in into.iterdir()] == [found.name]
    assert (into / found.name).stat().st_size == found.bytes
    assert (into / found.name).read_bytes().count(b"\n") == found.records


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return made.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def encrypted() -> bytes:
    made = bytearray(zipped(("a.txt", b"text")))
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(sign) + at] |= 1
    return bytes(made)


def of_many_entries() -> bytes:
    made = bytearray(zipped(("a.txt", b"text")))
    # Only the end of the archive is looked at before its directory is read.
    made[-10:-6] = struct.pack("<I", 512 * KIB * KIB)
    return bytes(made)


def _short(value: str | bytes) -> str:
    """Return how a case is called: what is packed has the time of packing in it."""
    return value if isinstance(value, str) else f"{len(value)} bytes"


def records_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", LINES),
        ("data", LINES),
        ("data.jsonl.gz", gzip.compress(LINES)),
        ("data", gzip.compress(b"\xef\xbb\xbf" + LINES)),
        ("data.zip", zipped(("b/one.jsonl", LINES[:16]), ("a/two.jsonl", LINES[16:]), ("__MACOSX/._x", b"\0"))),
        ("data.zip", zipped(("one.txt", b"one\n"), ("two.md", b"two\n"), packed=zipfile.ZIP_STORED)),
    ],
    ids=_short,
)
async def test_every_form_of_a_dataset_becomes_the_same_records(
    server: Server, tmp_path: Path, name: str, content: bytes
) -> None:
    path = await fetched(server, tmp_path / "input", content, name)
    assert records_in(path) == [{"text": "one"}, {"text": "two"}]


async def test_a_plain_text_is_cut_at_empty_lines(server: Server, tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " * 60 for number in range(40)]
    path = await fetched(server, tmp_path / "input", "\n\n".join(paragraphs).encode(), "book.txt")
    texts = [str(record["text"]) for record in records_in(path)]
    assert len(texts) > 5
    assert "\n\n".join(texts) == "\n\n".join(paragraphs)


async def test_of_chats_and_prompts_what_counts_is_kept(server: Server, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "more": 1}], "x": 2}
    path = await fetched(server, tmp_path / "a", json.dumps(chat).encode(), "c.jsonl", "chat")
    assert records_in(path) == [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    asked = [{"prompt": "p", "id": 7}, {"messages": chat["messages"], "id": "x", "completion": "c"}]
    lines = "\n".join(map(json.dumps, asked)).encode()
    found = records_in(await fetched(server, tmp_path / "b", lines, "p.jsonl", "prompt"))
    assert [record["id"] for record in found] == [7, "x"]


@pytest.mark.parametrize(
    ("name", "content", "form", "says"),
    [
        ("data.jsonl", b"", "text", "empty"),
        ("data.jsonl", b"\n \n", "text", "empty"),
        ("data.jsonl", b'{"text": "a"}\n{"text": 7}\n', "text", 'line 2: no "text"'),
        ("data.jsonl", b'{"text": "a"}\n{"text": "b"\n', "text", "line 2: "),
        ("data.jsonl", b'["text"]', "text", 'no "text"'),
        ("data.jsonl", b'{"text": ' + b"[" * 50_000 + b"}", "text", "line 1: nested too deeply"),
        ("data.jsonl", b'{"text": "\\ud800"}', "text", "line 1: "),
        ("data.jsonl", LINES, "chat", 'line 1: no "messages"'),
        ("data.jsonl", b'{"messages": [{"role": "x", "content": "y"}]}', "chat", "there is no role 'x'"),
        ("data.jsonl", b'{"prompt": "p"}\n{"id": 3}', "prompt", 'line 2: no "prompt"'),
        ("data.jsonl", b'{"prompt": "p", "id": [1]}', "prompt", '"id"'),
        ("data.txt", b"some text", "prompt", "plain text"),
        ("data.txt", b"caf\xe9 au lait", "text", "not text"),
        ("data.txt", "text".encode("utf-16"), "text", "not text"),
        ("data.txt", b"a\0b", "text", "zero byte"),
        ("data.txt", b"text that ends in the middle of a sign \xe2\x82", "text", "not text"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "text", "not text"),
        ("data.txt", b"x" * 100 * KIB, "text", "a line of more than"),
        ("data.gz", gzip.compress(LINES)[:-9], "text", "cut off or broken"),
        ("data.gz", gzip.compress(LINES)[:12] + b"????" + gzip.compress(LINES)[16:], "text", "cut off or broken"),
        ("data.zip", zipped(("../../etc/cron.txt", b"x")), "text", "climbs out"),
        ("data.zip", zipped(("/etc/passwd.txt", b"x")), "text", "climbs out"),
        ("data.zip", zipped(("a\\..\\b.txt", b"x")), "text", "climbs out"),
        ("data.zip", zipped(("C:/a.txt", b"x")), "text", "climbs out"),
        ("data.zip", zipped((link("a.txt"), b"/etc/passwd")), "text", "is a link"),
        ("data.zip", zipped(("a.exe", b"x")), "text", "is not text"),
        ("data.zip", zipped(("n" * 300 + ".txt", b"x")), "text", "no usable name"),
        ("data.zip", zipped(("inner.zip", zipped(("a.txt", b"x")))), "text", "is not text"),
        ("data.zip", zipped(("a.txt", b"x"), packed=zipfile.ZIP_LZMA), "text", "not read here"),
        ("data.zip", encrypted(), "text", "is encrypted"),
        ("data.zip", zipped(("a.txt", b"text" * 99))[:-30], "text", "broken"),
        ("data.zip", zipped(("a.txt", b"x")) + b"comment", "text", "broken"),
        ("data.zip", of_many_entries(), "text", "too many entries"),
        ("data.zip", zipped(*((f"{at}.txt", b"x") for at in range(1_001))), "text", "1000 entries"),
        ("data.zip", zipped(), "text", "empty"),
    ],
    ids=_short,
)
async def test_what_is_no_dataset_is_refused_and_says_where(
    server: Server, tmp_path: Path, name: str, content: bytes, form: InputForm, says: str
) -> None:
    with pytest.raises(BadInput) as refused:
        await fetched(server, tmp_path / "input", content, name, form)
    assert refused.value.code == "dataset_unavailable"
    assert refused.value.fault == "buyer"
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\x01" * 199 * KIB, "written as records"), (b'{"text": "a"}\n' * 2_000, "more than the 1000 records")],
)
async def test_what_grows_when_it_is_written_is_bounded_too(
    server: Server, tmp_path: Path, content: bytes, says: str
) -> None:
    server.at["/data"] = content
    limits = replace(LIMITS, line_bytes_max=256 * KIB, records_max=1_000)
    with pytest.raises(BadInput, match=says) as refused:
        await fetch("http://data/data", "text", tmp_path / "input", limits, server.http)
    assert refused.value.code == "dataset_too_large"


def bomb_of_zeros() -> bytes:
    return zipped(("zeros.txt", b"line\n" * 400 * KIB))


def bomb_that_lies() -> bytes:
    """Return an archive whose headers say that there is little in it."""
    made = bytearray(bomb_of_zeros())
    at = made.index(b"PK\x01\x02")
    made[at + 24 : at + 28] = struct.pack("<I", 10)
    made[22:26] = struct.pack("<I", 10)
    return bytes(made)


def bomb_in_many_entries() -> bytes:
    return zipped(*((f"{at}.txt", b"line\n" * 10 * KIB) for at in range(40)))


def large_and_dense() -> bytes:
    """Return what is no bomb by its ratio, and too large all the same."""
    return gzip.compress(b"".join(hashlib.sha256(b"%d" % at).hexdigest().encode() * 20 + b"\n" for at in range(1_000)))


@pytest.mark.parametrize(
    "make",
    [bomb_of_zeros, large_and_dense, bomb_in_many_entries, lambda: gzip.compress(b"line\n" * 400 * KIB)],
)
async def test_a_bomb_is_refused_long_before_it_is_unpacked(
    server: Server, tmp_path: Path, make: Callable[[], bytes]
) -> None:
    content = make()
    assert len(content) < LIMITS.bytes_max
    with pytest.raises(BadInput) as refused:
        await fetched(server, tmp_path / "input", content, "bomb")
    assert refused.value.code == "dataset_too_large"
    written = sum(path.stat().st_size for path in (tmp_path / "input").iterdir())
    assert written < 3 * LIMITS.unpacked_bytes_max


def test_a_bomb_is_known_by_its_ratio_however_much_may_be_unpacked() -> None:
    with pytest.raises(BadInput, match="100 times as large"):
        for _ in unpacked(io.BytesIO(bomb_of_zeros()), "", "text", WIDE, lambda: False):
            pass


async def test_an_archive_that_lies_about_its_size_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        await fetched(server, tmp_path / "input", bomb_that_lies(), "bomb.zip")


async def test_what_is_absent_or_too_large_is_known_before_anything_is_paid(server: Server) -> None:
    server.at["/large"] = b"x" * (LIMITS.bytes_max + 1)
    server.at["/small"] = LINES
    server.at["/no-head"] = 405
    server.at["/busy"] = 503
    await head("http://data/small", LIMITS, server.http)
    await head("http://data/no-head", LIMITS, server.http)
    await head("input:" + "a" * 64, LIMITS, server.http)
    assert {method for method, _, _ in server.seen} == {"HEAD"}
    for path, kind, code in (("absent", BadInput, "dataset_unavailable"), ("large", BadInput, "dataset_too_large")):
        with pytest.raises(kind) as refused:
            await head(f"http://data/{path}", LIMITS, server.http)
        assert refused.value.code == code
    with pytest.raises(Unavailable):
        await head("http://data/busy", LIMITS, server.http)


async def test_what_is_fetched_is_never_more_than_the_limit(server: Server, tmp_path: Path) -> None:
    server.at["/large"] = b"x" * (LIMITS.bytes_max + 1)
    with pytest.raises(BadInput) as refused:
        await fetch("http://data/large", "text", tmp_path / "input", LIMITS, server.http)
    assert refused.value.code == "dataset_too_large"
    with pytest.raises(BadInput):
        await fetch("http://data/absent", "text", tmp_path / "input", LIMITS, server.http)


async def test_an_address_of_our_own_network_is_never_called(tmp_path: Path) -> None:
    http = HttpClient(guard=guard(allow_private=False))
    for dataset in ("http://127.0.0.1:1/d", "http://169.254.169.254/latest/meta-data", "http://[::1]:1/d"):
        with pytest.raises(BadInput, match="public"):
            await head(dataset, LIMITS, http)
        with pytest.raises(BadInput, match="public"):
            await fetch(dataset, "text", tmp_path / "input", LIMITS, http)


async def test_an_uploaded_dataset_is_read_with_the_jobs_token_and_must_have_its_hash(
    server: Server, tmp_path: Path
) -> None:
    digest = hashlib.sha256(LINES).hexdigest()
    path = f"/api/agent-files/run_1/job_1/inputs/{digest}"
    server.at[path] = LINES
    found = await fetch(f"input:{digest}", "text", tmp_path / "a", LIMITS, server.http, grant=GRANT)
    assert (found.records, found.sha256) == (2, digest)
    assert server.seen == [("GET", path, f"Bearer {TOKEN}")]
    server.at[path] = LINES + b'{"text": "three"}'
    with pytest.raises(BadInput, match="SHA-256"):
        await fetch(f"input:{digest}", "text", tmp_path / "b", LIMITS, server.http, grant=GRANT)
    with pytest.raises(BadInput, match="no way"):
        await fetch(f"input:{digest}", "text", tmp_path / "c", LIMITS, server.http)


async def test_the_owners_own_file_is_checked_like_any_other(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(LINES)
    assert (await local(own, "text", tmp_path / "input", LIMITS)).records == 2
    with pytest.raises(OwnersFault):
        await local(tmp_path / "absent.jsonl", "text", tmp_path / "input", LIMITS)


def test_who_leaves_stops_the_unpacking() -> None:
    seen = [False, False, True]
    lines = unpacked(io.BytesIO(b"line\n" * 400 * KIB), ".txt", "text", WIDE, lambda: seen.pop(0))
    with pytest.raises(BadInput, match="nobody"):
        for _ in lines:
            pass
    assert seen == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("too_long", "invalid_field", "params.sequenceLength: this model reads at most 512 tokens"),
        ("one_record", "dataset_unavailable", "two different records"),
        ("nothing_to_learn", "dataset_unavailable", "nothing in it that could be predicted"),
        ("no_template", "invalid_field", "no chat template"),
        ("own_code", "model_unknown", "code of its own"),
        ("template_loops", "dataset_unavailable", "the model's chat template takes more than 2 s for a chat"),
        ("template_floods", "dataset_unavailable", "makes more than 1048576 characters of a chat"),
        ("nothing_left", "dataset_unavailable", "nothing in it that could be predicted"),
        ("too_large_a_file", "model_too_large", "a larger file"),
    ],
)
@pytest.mark.slow
def test_what_only_the_program_sees_is_the_buyers_fault_and_told(
    worked: dict[str, Job], name: str, code: str, says: str
) -> None:
    job = worked[name]
    assert job.exit_code == 65
    assert (job.state["phase"], job.state["fault"], job.state["code"]) == ("ended", "buyer", code)
    assert says in job.state["message"]
    assert says in job.logs()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_model", "the model has no config.json that can be read"),
        ("huge_config", "bytes are missing"),
        ("huge_tokenizer", "tokenizer.json is larger than"),
        ("cut_model", "the model cannot be loaded"),
        ("third_layer", "the model's files lack 9 of its tensors, model.layers.2."),
    ],
)
@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_the_owners_fault_and_names_no_folder_of_his(
    worked: dict[str, Job], name: str, says: str
) -> None:
    job = worked[name]
    assert (job.exit_code, job.state["fault"]) == (1, "owner")
    assert says in job.state["message"]
    told = job.logs() + json.dumps(job.report["state"])
    assert str(job.path.parent.parent) not in told
    assert "Traceback" not in told

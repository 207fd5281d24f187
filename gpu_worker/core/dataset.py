"""
What jobs work on: which lines are records, which records are held out, and what is no dataset.

A record is `{"text"}`, `{"messages": [{"role", "content"}]}` or `{"prompt", "completion"?, "id"?}`.
"""

import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu_worker.core.errors import BadInput
from wire import decimal_json
from wire.file_name import NotAFileName, to_file_name
from wire.jobs import Container, Evaluate, FineTune, Params

InputForm = Literal["text", "chat", "prompt"]
Record = dict[str, Any]

SUFFIXES = (".txt", ".md", ".jsonl")
ROLES = frozenset({"system", "user", "assistant", "tool"})
# A plain text is cut at empty lines into records of about so many characters.
TEXT_CHARS = 2_000
MESSAGES_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a dataset may be, as it comes (`bytes_max`) and unpacked; `ratio_max` is between the two."""

    bytes_max: int
    unpacked_bytes_max: int
    ratio_max: int = 100
    ratio_from_bytes: int = 1024 * 1024
    entries_max: int = 1_000
    line_bytes_max: int = 4 * 1024 * 1024
    records_max: int = 5_000_000


def unusable(detail: str) -> BadInput:
    return BadInput("dataset_unavailable", detail)


def too_large(detail: str) -> BadInput:
    return BadInput("dataset_too_large", detail)


def form_of(params: Params) -> InputForm:
    """Return what the records of a job with `params` are; a container gets texts."""
    if isinstance(params, Container):
        return "text"
    if isinstance(params, FineTune) or (isinstance(params, Evaluate) and params.metric == "perplexity"):
        return params.form
    return "prompt"


def suffix_of(name: str) -> str:
    """Return how a file's name ends, as far as it says what is in it: `.txt`, `.md`, `.jsonl` or nothing."""
    plain = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), "")


def entry_suffix(name: str, mode: int, *, is_encrypted: bool) -> str | None:
    """
    Return what the entry `name` of an archive holds, None for what is passed over: folders and hidden files.

    No entry is ever written under its name; one that would climb out of a folder is refused all the same.

    Raises:
        BadInput: it climbs, is a link, is encrypted, or is no text.
    """
    shown = name[:100].encode("ascii", "backslashreplace").decode()
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise unusable(f"the archive's entry {shown!r} climbs out of its folder")
    if stat.S_ISLNK(mode):
        raise unusable(f"the archive's entry {shown!r} is a link")
    if parts[-1] == "" or parts[0] == "__MACOSX" or parts[-1].startswith("."):
        return None
    try:
        for part in parts:
            to_file_name(part)
    except NotAFileName as error:
        raise unusable(f"the archive's entry {shown!r} has no usable name: {error}") from None
    if is_encrypted:
        raise unusable(f"the archive's entry {shown!r} is encrypted")
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise unusable(f"the archive's entry {shown!r} is not text: there may be {', '.join(SUFFIXES)} in it")
    return suffix


def records(lines: Iterable[str], form: InputForm, *, is_json: bool, place: str) -> Iterator[Record]:
    """
    Yield the records in the `lines` of one file.

    Raises:
        BadInput: a line is no record of `form`; the message names it.
    """
    if not is_json:
        if form != "text":
            raise unusable(f"{place} is plain text: a dataset of {form}s is JSON, one object a line")
        yield from _passages(lines)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _CHECKS[form](decimal_json.plain(decimal_json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise unusable(f"{place}, line {number}: {str(error)[:300]}") from None


def _passages(lines: Iterable[str]) -> Iterator[Record]:
    """Yield a plain text in pieces, cut at empty lines, or anywhere between lines where there are none for long."""
    piece: list[str] = []
    chars = 0
    for line in lines:
        piece.append(line)
        chars += len(line)
        if (chars >= TEXT_CHARS and not line.strip()) or chars >= 4 * TEXT_CHARS:
            yield from _passage(piece)
            piece, chars = [], 0
    yield from _passage(piece)


def _passage(piece: list[str]) -> Iterator[Record]:
    text = "".join(piece).strip("\r\n")
    if text.strip():
        yield {"text": text}


def _text(value: Any) -> Record:
    return {"text": _string(value, "text")}


def _chat(value: Any) -> Record:
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not isinstance(messages, list) or not 0 < len(messages) <= MESSAGES_MAX:
        raise ValueError('no "messages"')
    said = [{"role": _string(message, "role"), "content": _string(message, "content")} for message in messages]
    if unknown := next((message["role"] for message in said if message["role"] not in ROLES), None):
        raise ValueError(f"there is no role {unknown[:40]!r}")
    return {"messages": said}


def _prompt(value: Any) -> Record:
    asked: Record = (
        _chat(value) if isinstance(value, Mapping) and "messages" in value else {"prompt": _string(value, "prompt")}
    )
    if "completion" in value:
        asked["completion"] = _string(value, "completion")
    given = value.get("id")
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, str | int):
            raise ValueError('"id" is neither text nor a whole number')
        asked["id"] = given
    return asked


def _string(value: Any, name: str) -> str:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, str) or not found:
        raise ValueError(f'no "{name}"')
    return found


_CHECKS: Mapping[InputForm, Callable[[Any], Record]] = {"text": _text, "chat": _chat, "prompt": _prompt}


def fingerprint(record: Record) -> int:
    """Return the first 63 bits of the SHA-256 of a record (compact JSON, keys sorted)."""
    digest = hashlib.sha256(decimal_json.dumps(record, sort_keys=True)).digest()
    return int.from_bytes(digest[:8]) >> 1

"""
The records in a file as it came, unpacked by chunks.

What archives say of themselves is not believed: bytes are counted as they come out, over all entries, and no entry is
written under its name.
"""

import codecs
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, cast

from gpu_worker.core.dataset import (
    InputForm,
    Limits,
    Record,
    entry_suffix,
    records,
    too_large,
    unusable,
)
from wire import decimal_json

CHUNK_BYTES = 256 * 1024
_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
_END_BYTES, _LOCATOR_BYTES = 22, 20
_DIRECTORY_BYTES_MAX = 4 * 1024 * 1024


def unpacked(
    file: IO[bytes], suffix: str, form: InputForm, limits: Limits, is_left: Callable[[], bool]
) -> Iterator[Record]:
    """
    Yield the records of a dataset as it came: a text, JSON lines, either of them by gzip, or a zip of such files.

    Args:
        suffix: what its name says of it (`suffix_of`), nothing where it says nothing.
        is_left: nobody waits for them any more.

    Raises:
        BadInput: it is too large or no dataset of `form`; the message says where.
    """
    meter = _Meter(limits, file.seek(0, 2), is_left)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start.startswith(_ZIP):
        yield from _zipped(file, form, meter)
    elif start.startswith(_GZIP):
        with gzip.GzipFile(fileobj=file) as opened:
            yield from _in_file(cast(IO[bytes], opened), suffix, form, meter, "the dataset")
    else:
        yield from _in_file(file, suffix, form, meter, "the dataset")


def _zipped(file: IO[bytes], form: InputForm, meter: "_Meter") -> Iterator[Record]:
    _check_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > meter.limits.entries_max:
                raise unusable(f"the archive has more than {meter.limits.entries_max} entries")
            for entry in entries:
                suffix = entry_suffix(entry.filename, entry.external_attr >> 16, is_encrypted=bool(entry.flag_bits & 1))
                if suffix is None:
                    continue
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise unusable("the archive is compressed in a way that is not read here")
                with archive.open(entry) as opened:
                    yield from _in_file(opened, suffix, form, meter, f"entry {entries.index(entry) + 1}")
    except (zipfile.BadZipFile, RuntimeError, UnicodeError) as error:
        raise unusable(f"the archive is broken: {str(error)[:200]}") from None


def _check_directory(file: IO[bytes]) -> None:
    """
    Refuse an archive whose directory would fill the memory before its entries are counted.

    Its end must stand at the very end (no comment, no zip64), so that the library reads the same one.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if len(end) < _END_BYTES or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise unusable("the archive is broken, or has a comment")
    if tail[:-_END_BYTES].startswith(b"PK\x06\x07"):
        raise unusable("the archive is of the kind zip64, which is not read here")
    if int.from_bytes(end[12:16], "little") > _DIRECTORY_BYTES_MAX:
        raise unusable("the archive has too many entries")
    file.seek(0)


def _in_file(opened: IO[bytes], suffix: str, form: InputForm, meter: "_Meter", place: str) -> Iterator[Record]:
    try:
        lines = _lines(meter.chunks(opened), meter.limits, place)
        first: list[str] = []
        if not suffix:
            for line in lines:
                first.append(line)
                if line.strip():
                    break
        is_json = suffix == ".jsonl" or (not suffix and bool(first) and _is_object(first[-1]))
        yield from records(_chained(first, lines), form, is_json=is_json, place=place)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unusable(f"{place} is cut off or broken: {str(error)[:200]}") from None


def _chained(first: list[str], rest: Iterator[str]) -> Iterator[str]:
    yield from first
    yield from rest


def _is_object(line: str) -> bool:
    try:
        return isinstance(decimal_json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Meter:
    """Counts what comes out of a dataset, over all of its files, against what went in."""

    def __init__(self, limits: Limits, packed_bytes: int, is_left: Callable[[], bool]) -> None:
        self.limits = limits
        self._packed_bytes = packed_bytes
        self._is_left = is_left
        self._bytes = 0

    def chunks(self, opened: IO[bytes]) -> Iterator[bytes]:
        """Yield what `opened` has. Raises BadInput where it is too much, or nobody waits for it."""
        while chunk := opened.read(CHUNK_BYTES):
            self._bytes += len(chunk)
            if self._is_left():
                raise unusable("nobody waits for it any more")
            if self._bytes > self.limits.unpacked_bytes_max:
                raise too_large(more_than(self.limits.unpacked_bytes_max, "unpacked it has"))
            if self._bytes > max(self.limits.ratio_from_bytes, self.limits.ratio_max * self._packed_bytes):
                raise too_large(f"unpacked it is more than {self.limits.ratio_max} times as large: this is no dataset")
            yield chunk


def _lines(chunks: Iterator[bytes], limits: Limits, place: str) -> Iterator[str]:
    """Yield the lines of a text with their ends. Raises BadInput for what is no UTF-8, or too long a line."""
    decoder, rest, offset = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    for chunk, is_last in _with_end(chunks):
        try:
            text = rest + decoder.decode(chunk, is_last)
        except UnicodeDecodeError as error:
            raise unusable(f"{place} is not text: no UTF-8 near byte {offset + error.start}") from None
        if "\0" in text:
            raise unusable(f"{place} is not text: a zero byte near byte {offset}")
        offset += len(chunk)
        lines = text.split("\n")
        rest = lines.pop()
        yield from (line + "\n" for line in lines)
        if len(rest) > limits.line_bytes_max:
            raise unusable(f"{place} has a line of more than {limits.line_bytes_max} characters")
    if rest:
        yield rest


def _with_end(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    yield from ((chunk, False) for chunk in chunks)
    yield b"", True


def more_than(bytes_max: int, what: str) -> str:
    return f"{what} more than the {bytes_max} bytes that this worker takes"

"""A name of somebody else's choosing as the name of a file: it stays in its folder, and unquoting gives it back."""

import re
from urllib.parse import quote

# What one name may have on ext4, APFS and NTFS.
FILE_NAME_BYTES_MAX = 255

_LEADING_DOTS = re.compile(r"^\.+")
# A capital that is not a digit of `%XX`.
_UPPER = re.compile(r"(?<!%)(?<!%.)[A-Z]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class NotAFileName(ValueError):
    """The name cannot be a file's: it is empty, too long, or not text."""


def to_file_name(name: str, *, cased: bool = False) -> str:
    """
    Return `name` with a-z, digits, `.`, `_`, `-` and everything else as `%XX`; no two names share one, on any disk.

    A dot at the beginning is escaped too, so that none is hidden, `.` or `..`. With `cased` A-Z stay as they are:
    on a disk that is blind to case, names that differ in nothing else then share one.

    Raises:
        NotAFileName: there is no such file name.
    """
    try:
        # `~` is left alone by `quote`, but is a home in a shell.
        escaped = quote(name, safe="").replace("~", "%7E")
    except UnicodeEncodeError:
        raise NotAFileName("the name is not text") from None
    if not cased:
        escaped = _UPPER.sub(lambda upper: f"%{ord(upper[0]):X}", escaped)
    escaped = _LEADING_DOTS.sub(lambda dots: "%2E" * len(dots[0]), escaped)
    if not escaped or len(escaped) > FILE_NAME_BYTES_MAX:
        raise NotAFileName(f"a file's name has 1 to {FILE_NAME_BYTES_MAX} bytes, escaped; this has {len(escaped)}")
    return escaped


def shown_file_name(name: str) -> str:
    """Return `name` as a browser may be told it (Content-Disposition): ASCII, no path, not hidden, for people only."""
    return _LEADING_DOTS.sub("", _UNSAFE.sub("_", name))[:FILE_NAME_BYTES_MAX] or "file"

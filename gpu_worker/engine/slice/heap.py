"""What loading has freed goes back to the system: the C library's heap keeps it for later, and it counts as taken."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names; its heap grows to these two by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SERVING = 64 * 1024 * 1024, 32 * 1024 * 1024
_LOADING_MMAP = 1024 * 1024


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """
    Let each large block that is allocated inside be a mapping of its own, on every thread: it is gone when it is freed.

    Behind it blocks come from the heap again, which costs a forward pass no page faults. Elsewhere than on glibc
    nothing is done.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _LOADING_MMAP)
    try:
        yield
    finally:
        set_option(_TRIM_THRESHOLD, _SERVING[0])
        set_option(_MMAP_THRESHOLD, _SERVING[1])

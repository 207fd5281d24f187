"""
A program without a network: it moves into a network namespace of its own, which is empty.

Source: unshare(2), user_namespaces(7).
"""

import ctypes
import os
import sys
from pathlib import Path

_NEWUSER = 0x1000_0000
_NEWNET = 0x4000_0000


def leave_network() -> bool:
    """
    Return whether this process and all that it starts reaches no network any more, not even this machine's own.

    Only Linux can, and not every system lets its users. To be called before the first thread starts: the others would
    stay.
    """
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    user, group = os.getuid(), os.getgid()
    if unshare(_NEWNET) == 0:
        return True
    # Who is not root may do it inside a user namespace.
    if unshare(_NEWUSER | _NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        pass  # it is nobody inside; outside, where files are made, it is who it was
    return True

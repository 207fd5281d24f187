"""What trains reaches no network: it is asked to call a server of this machine, and cannot."""

import socket
import subprocess
import sys

import pytest

NOBODY = 65534
PROGRAM = """
import os, socket, sys
from gpu_worker.engine.offline import leave_network
port, user = map(int, sys.argv[1:])
socket.create_connection(("127.0.0.1", port), timeout=5)
if user and os.getuid() == 0:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
print(leave_network())
try:
    socket.create_connection(("127.0.0.1", port), timeout=5)
    print("reached")
except OSError as error:
    print("unreachable")
"""


@pytest.mark.parametrize("user", [0, NOBODY])
def test_a_program_that_left_the_network_reaches_not_even_this_machine(user: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, port, str(user)], capture_output=True, text=True, timeout=60, check=True
        )
    # Where the system refuses, the answer says so and the program is as it was.
    assert ran.stdout.split() in (["True", "unreachable"], ["False", "reached"])
    if sys.platform == "linux" and user == 0:
        assert ran.stdout.split()[0] == "True" or _is_refused()


def _is_refused() -> bool:
    """Return whether this system lets nobody have a network namespace: util-linux's program is refused too."""
    refused = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, timeout=60, check=False)
    return refused.returncode != 0

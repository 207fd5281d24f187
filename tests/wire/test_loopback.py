"""Which addresses are of this machine alone."""

import pytest

from wire.loopback import is_address, is_loopback


@pytest.mark.parametrize(
    ("host", "loopback", "address"),
    [
        ("localhost", True, False),
        ("127.0.0.1", True, True),
        ("127.9.9.9", True, True),
        ("::1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("0.0.0.0", False, True),  # noqa: S104 - nothing is bound
        ("10.0.0.1", False, True),
        ("::", False, True),
        ("localhost.example", False, False),
        ("127.0.0.1.example", False, False),
        ("/run/livery.sock", False, False),
        ("", False, False),
    ],
)
def test_only_this_machine_reaches_loopback(host: str, loopback: bool, address: bool) -> None:
    assert (is_loopback(host), is_address(host)) == (loopback, address)

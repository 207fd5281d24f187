"""Runs the vendors as a server until SIGTERM or Ctrl-C; `python -m vendor_mock` does the same."""

import signal
import socket
import sys

import uvicorn
from pydantic import ValidationError

from vendor_mock.app import create_app
from vendor_mock.catalogue import SetupError
from vendor_mock.config import VendorMockSettings

# Requests that never end (a scripted timeout among them) are cut off then.
DRAIN_S = 3


class PortTaken(Exception):
    """The port that the owner set is in use."""


def main() -> int:
    """Serve by the environment's settings; return the exit code: 0 after a signal, 2 when it cannot start."""
    try:
        settings = VendorMockSettings()
        serve(settings)
    except ValidationError as error:
        print(f"vendor-mock: {_sentence(error)}", file=sys.stderr)
        return 2
    except (SetupError, PortTaken) as error:
        print(f"vendor-mock: {error}", file=sys.stderr)
        return 2
    return 0


def serve(settings: VendorMockSettings) -> None:
    """
    Serve until a signal comes, finish what is being answered, and return.

    Raises:
        SetupError, PortTaken: it cannot start.
    """
    app = create_app(settings)
    listener = listen(settings.host, settings.port, chosen=settings.port_is_chosen)
    host, port = listener.getsockname()[:2]
    print(f"vendor mock: http://{host}:{port} serves {', '.join(app.state.shop.vendors)}", flush=True)
    if settings.keys is None:
        print("vendor mock: paid at the public test accounts of a local chain; use no other chain", flush=True)
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=DRAIN_S)
    # uvicorn raises the signal again after a clean shutdown; here it has done its work by then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, wanted: int, *, chosen: bool) -> socket.socket:
    """
    Return a socket that listens at `wanted`, or at a free port where that is taken and the owner did not choose it.

    Raises:
        PortTaken: the owner chose it, or there is no free port either.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted,) if chosen else (wanted, 0):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = str(error.strerror)
    raise PortTaken(f"port {wanted} of {host} cannot be used: {reason}")


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return "GPU_VENDOR_SECRET is not set; it is the bearer secret that buyers must send"
    return f"{name}: {first['msg']}"

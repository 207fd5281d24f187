"""
Serving an ASGI application on this machine: which port, how it stops, how it logs.

SIGTERM and Ctrl-C let the requests in flight finish, then end with exit code 0.
"""

import asyncio
import ipaddress
import logging
import signal
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

logger = logging.getLogger("livery.serve")

BACKLOG = 128


class CannotServe(Exception):
    """The address cannot be served; the message says why and what to do."""


def bound_socket(host: str, port: int, *, chosen: bool) -> socket.socket:
    """
    Return a socket listening at `host:port`; a taken default port is replaced by a free one.

    Args:
        chosen: the owner set the port, so a taken one is an error.

    Raises:
        CannotServe: the port is taken and was chosen, or the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port,) if chosen else (port, 0):
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, candidate))
            # From here on callers wait in the queue until the application is up; none is turned away.
            server.listen(BACKLOG)
            return server
        except OSError as error:
            server.close()
            failure = error
    raise CannotServe(f"{host}:{port} cannot be bound ({failure.strerror}): free it or choose another with --port")


def url_of(server: socket.socket) -> str:
    """Return where programs of this machine reach a listening socket."""
    host, port = server.getsockname()[:2]
    # All of this machine's addresses are no address to call.
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: "ASGIApp", server: socket.socket, *, name: str, drain_s: int) -> None:
    """Serve `app` on a bound socket until SIGTERM or Ctrl-C, then return."""
    import uvicorn

    _say_ready(server, name)
    # uvicorn repeats a caught signal once it has stopped; this is who hears it then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(_config(app, drain_s)).run(sockets=[server])
    logger.info("%s has stopped", name)


def stopped_by_signals() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and Ctrl-C set from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def serve_until(app: "ASGIApp", server: socket.socket, stop: asyncio.Event, *, name: str, drain_s: int) -> None:
    """
    Serve `app` on a bound socket until `stop` is set, then let the requests in flight finish, and return.

    Signals are left to the caller, who has more to end than this. Cancelled, it closes the door in the same way.

    Raises:
        CannotServe: the application's own start-up failed; the log says how.
    """
    import uvicorn

    serving = uvicorn.Server(_config(app, drain_s))
    serving.capture_signals = nullcontext  # type: ignore[method-assign, assignment]

    async def end() -> None:
        await stop.wait()
        serving.should_exit = True

    ending = asyncio.create_task(end())
    _say_ready(server, name)
    try:
        await serving.serve(sockets=[server])
    except SystemExit:
        raise CannotServe(f"{name} could not start; its log says why") from None
    except asyncio.CancelledError:
        if serving.started:
            await serving.shutdown(sockets=[server])
        raise
    finally:
        ending.cancel()
    logger.info("%s has stopped", name)


def _config(app: "ASGIApp", drain_s: int) -> "uvicorn.Config":
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
        # Far above what the doors take, so that they, not the parser, answer an oversized header, and in their words.
        h11_max_incomplete_event_size=256 * 1024,
        http="h11",
    )


def _say_ready(server: socket.socket, name: str) -> None:
    host, port = server.getsockname()[:2]
    logger.info("%s is ready", name, extra={"url": f"http://{host}:{port}"})

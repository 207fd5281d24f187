"""Certificates and keys of the gRPC doors and of every client of them, and where going without is allowed."""

import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from gpu_worker.core.errors import OwnersFault


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes. With `ca` a server asks for a client's certificate, and a client trusts that authority alone."""

    cert: bytes | None
    key: bytes | None = field(repr=False)
    ca: bytes | None

    def server(self) -> Any:
        """Return the credentials of a server. Raises OwnersFault: a server needs a certificate and its key."""
        if not self.cert or not self.key:
            raise OwnersFault("a server with TLS needs a certificate and its key: GRPC_TLS_CERT and GRPC_TLS_KEY")
        pairs = [(self.key, self.cert)]
        return grpc.ssl_server_credentials(pairs, root_certificates=self.ca, require_client_auth=self.ca is not None)

    def client(self) -> Any:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


def read_tls(cert: Path | None, key: Path | None, ca: Path | None) -> tuple[Tls | None, tuple[str, ...]]:
    """
    Return what the files hold, None where none is named, and a warning for a key that others can read.

    Raises:
        OwnersFault: a file cannot be read or is no PEM, or one of certificate and key is missing.
    """
    if cert is None and key is None and ca is None:
        return None, ()
    if (cert is None) != (key is None):
        raise OwnersFault("GRPC_TLS_CERT and GRPC_TLS_KEY go together")
    tls = Tls(_pem(cert), _pem(key), _pem(ca))
    return tls, () if key is None else open_to_others(key)


def open_to_others(key: Path) -> tuple[str, ...]:
    """Return a warning where others than its owner may read the file `key`."""
    try:
        mode = key.stat().st_mode
    except OSError:
        return ()  # whoever reads it says so
    open_ = mode & (stat.S_IRWXG | stat.S_IRWXO)
    return (f"{key} can be read by others: chmod 600 {key}",) if open_ else ()


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OwnersFault(f"{path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise OwnersFault(f"{path} is no PEM file")
    return data


def host_of(endpoint: str) -> str:
    """Return the host of `host:port`, without the brackets of IPv6."""
    return endpoint.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def must_be_safe(host: str, tls: Tls | None, insecure: bool) -> None:
    """Raises OwnersFault: without TLS, and nobody allowed it, other machines would hear what is said."""
    if tls is None and not insecure and not is_loopback(host):
        raise OwnersFault(
            f"{host} is not this machine and there is no TLS: set GRPC_TLS_CERT and GRPC_TLS_KEY, or allow it"
            " explicitly with LIVERY_WORKER_GRPC_INSECURE=true"
        )

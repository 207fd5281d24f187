"""
Livery rents GPUs on your behalf, and rents out the ones you own.

Here: the SDK. `livery.Client` speaks with a control plane; everything else is a room of its own.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Client", "ProblemError", "Unreachable", "__version__"]

if TYPE_CHECKING:
    from livery.client import Client, ProblemError, Unreachable


def __getattr__(name: str) -> Any:
    """Import the client when it is first named: knowing the version costs no httpx."""
    if name in __all__:
        from livery import client

        return getattr(client, name)
    raise AttributeError(name)

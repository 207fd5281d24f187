"""The compiled contracts, read from wherever the house is installed."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract; `bytecode` deploys it, `runtime` is what then stands at its address (0x-hex)."""

    abi: tuple[dict[str, Any], ...]
    bytecode: str
    runtime: str


@cache
def load_artifact(name: str) -> Artifact:
    """Return the committed artifact of the contract `name`."""
    read = json.loads(files(__name__).joinpath(f"{name}.json").read_bytes())
    return Artifact(tuple(read["abi"]), read["bytecode"], read["runtime"])

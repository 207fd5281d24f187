"""What a topology file says: a model, and which worker serves which of its layers. Several of the same are replicas."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers, gap

STAGES_MAX = 1_024
BYTES_MAX = 1024 * 1024
_FIELDS = frozenset({"model", "model_hash", "key", "stages"})
_STAGE_FIELDS = frozenset({"endpoint", "layers", "http"})
_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})")
_LAYERS = re.compile(r"(\d{1,5}):(\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """`key` names a PEM file beside the topology's; `http` has the HTTP address of each stage that told one."""

    model: str
    stages: tuple[Hop, ...]
    model_hash: str | None = None
    key: str | None = None
    http: Mapping[str, str]


def parse(document: Any) -> Topology:
    """Return the topology of a document. Raises OwnersFault: the sentence names the field that is wrong."""
    if not isinstance(document, dict):
        raise OwnersFault("the topology is no table")
    _known(document, _FIELDS, "the topology")
    model, listed = _text(document, "model", "the topology"), document.get("stages")
    if not isinstance(listed, list) or not 1 <= len(listed) <= STAGES_MAX:
        raise OwnersFault(f"the topology needs `stages`, 1 to {STAGES_MAX} of them")
    stages: list[Hop] = []
    http: dict[str, str] = {}
    for number, each in enumerate(listed, 1):
        hop, url = _stage(each, f"stage {number} of the topology")
        if any(hop.endpoint == other.endpoint for other in stages):
            raise OwnersFault(f"{hop.endpoint} is twice in the topology: a worker serves one slice")
        stages.append(hop)
        if url is not None:
            http[hop.endpoint] = url
    model_hash, key = (_text(document, name, "the topology", None) for name in ("model_hash", "key"))
    if model_hash is not None and not re.fullmatch("[0-9a-fA-F]{64}", model_hash):
        raise OwnersFault("the topology's `model_hash` is no SHA-256: 64 hexadecimal digits")
    assert model is not None
    return Topology(model=model, stages=tuple(stages), model_hash=model_hash, key=key, http=http)


def endpoint_of(text: str) -> str:
    """Return a gRPC address as it was written. Raises OwnersFault: it is none."""
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= 65_535:
        raise OwnersFault(f"{text[:100]!r} is no gRPC address: write it as host:port")
    return text


def slice_of(stages: tuple[Hop, ...], endpoint: str) -> Hop | None:
    """Return what the worker at `endpoint` serves, None where it is not in the topology."""
    return next((hop for hop in stages if hop.endpoint == endpoint), None)


def hole_of(stages: Sequence[Hop], own: Layers) -> str | None:
    """Return which layers nobody serves behind `own`, None where the stages are a whole model, replicas aside."""
    at = {own.end}
    for hop in sorted(stages, key=lambda each: (each.start, each.end)):
        if hop.start in at:
            at.add(hop.end)
    if own.total in at:
        return None
    behind = [Layers(hop.start, hop.end, own.total) for hop in stages if own.end <= hop.start < hop.end <= own.total]
    reached = max(at)
    rest = sorted(each.start for each in behind if each.start > reached)
    return gap([Layers(0, reached, own.total), *([Layers(rest[0], own.total, own.total)] if rest else [])])


def _stage(each: Any, where: str) -> tuple[Hop, str | None]:
    if not isinstance(each, dict):
        raise OwnersFault(f"{where} is no table")
    _known(each, _STAGE_FIELDS, where)
    text = _text(each, "layers", where)
    found = _LAYERS.fullmatch(text or "")
    if found is None or int(found[1]) >= int(found[2]):
        raise OwnersFault(f'{where}: `layers` is {str(text)[:40]!r}: write it as "0:12", 12 not included')
    endpoint = endpoint_of(_text(each, "endpoint", where) or "")
    return Hop(endpoint=endpoint, start=int(found[1]), end=int(found[2])), _text(each, "http", where, None)


def _known(table: dict[Any, Any], fields: frozenset[str], where: str) -> None:
    if odd := sorted(str(name) for name in table if name not in fields):
        raise OwnersFault(f"{where} has {odd[0][:40]!r}, which is none of {', '.join(sorted(fields))}")


def _text(table: dict[Any, Any], name: str, where: str, default: str | None = "") -> str | None:
    """Return a text field. Raises OwnersFault: it is no text, or missing where `default` is empty."""
    found = table.get(name, default)
    if found is None and default is None:
        return None
    if not isinstance(found, str) or not found:
        raise OwnersFault(f"{where} needs `{name}`, a text")
    return found

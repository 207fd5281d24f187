"""What a stage tells of itself to its neighbours."""

from dataclasses import dataclass

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.tensor import HIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    A stage as it describes itself. `endpoint` is where it says it can be reached, `next` the one that it was started
    with (empty: none), `http_url` its HTTP door. `wire_dtypes` are the rows that it takes. Without `has_steps` it
    is served by the four older RPCs.
    """

    endpoint: str
    layers: Layers
    model: str
    model_hash: str
    is_ready: bool
    next: str = ""
    http_url: str = ""
    device: str = ""
    dtype: str = ""
    back_end: str = ""
    hidden_size: int = 0
    wire_dtypes: tuple[str, ...] = HIDDEN
    has_steps: bool = True

    @property
    def hop(self) -> Hop:
        return Hop(endpoint=self.endpoint, start=self.layers.start, end=self.layers.end)

"""A world whose vendors push checkpoints to the control plane, and reach it."""

from agent.core.model import Run
from api.door import create_app
from tests.fixtures.world import World, replace_agent
from vendor_mock.catalogue import DEFAULT_PLANS, VendorPlan

PLANE = "http://plane"
PLANS: tuple[VendorPlan, ...] = tuple(plan.model_copy(update={"checkpoints_every": 1}) for plan in DEFAULT_PLANS)


def open_plane(world: World) -> None:
    """Let the world's vendors reach its control plane."""
    replace_agent(world, callback_base_url=PLANE)
    world.hosts.serve("plane", create_app(lambda: world.agent, hosts=("plane",)))


def paid_and_back(run: Run) -> list[tuple[str, int, int]]:
    """Return who was paid how much, and how much of it came back."""
    return [(paid.vendor_id, paid.amount_atomic, paid.refunded_atomic) for paid in run.payments]

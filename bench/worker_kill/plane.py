"""
The control plane of the environment's settings as a process, driving its own runs: `python -m bench.worker_kill.plane`.

It is that of `livery serve --tick` in all but its patience: jobs that nobody wants and refunds that may come are looked
for every few seconds, not every few minutes, so that a trial is over when its run is.
"""

from dataclasses import replace

from agent.config import AgentSettings
from agent.ports import Agent
from agent.wiring import open_agent
from api.config import ApiSettings
from api.door import create_app
from inbound.logs import configure_logs
from inbound.serve import bound_socket, serve

ORPHANS_S, ORPHAN_GRACE_S, REFUND_WAIT_S = 3, 2, 1
DRAIN_S = 5


def hasty_agent() -> Agent:
    agent = open_agent(AgentSettings())
    limits = replace(
        agent.limits, orphans_interval_s=ORPHANS_S, orphan_grace_s=ORPHAN_GRACE_S, refund_wait_s=REFUND_WAIT_S
    )
    return replace(agent, limits=limits)


def main() -> None:
    configure_logs()
    settings = ApiSettings()
    server = bound_socket(settings.host, settings.port, chosen=True)
    serve(create_app(hasty_agent, settings=settings), server, name="control plane", drain_s=DRAIN_S)


if __name__ == "__main__":
    main()

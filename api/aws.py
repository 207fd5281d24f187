"""
`api.aws.handler`, the control plane on AWS Lambda: HTTP API v2 and function URL, SQS batches, a schedule's sweep.

One event loop serves this process for its whole life, through every freeze: the store's connections belong to it.
Queues and schedules are let in by AWS, not by the bearer; they call the use cases that the routes call.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from mangum import Mangum

from agent.core.errors import RunBusy, RunFinished, UnknownRun
from agent.notify import notify
from agent.ports import Agent
from agent.sweep import TICK_ROOM_S, sweep, sweep_reply
from agent.tick import tick
from api.app import app
from wire.control import RunIdRequest

logger = logging.getLogger("livery.aws")

_loop = asyncio.new_event_loop()
# A lifespan would begin and end with each request, and close the store each time.
_http = Mangum(app, lifespan="off")

Message = dict[str, Any]


def handler(event: Any, context: Any) -> Any:
    """Return the answer to one invocation. An event of no known kind raises RuntimeError: Lambda counts it failed."""
    # Mangum runs requests on the loop that is set, and an `asyncio.run` anywhere would have unset it.
    asyncio.set_event_loop(_loop)
    if isinstance(event, dict):
        messages = event.get("Records")
        if isinstance(messages, list) and messages and messages[0].get("eventSource") == "aws:sqs":
            return _loop.run_until_complete(_batch(messages, context))
        if event.get("agent") == "sweep" or event.get("detail-type") == "Scheduled Event":
            return _loop.run_until_complete(_sweep(context))
    return _http(event, context)


async def _sweep(context: Any) -> dict[str, Any]:
    return sweep_reply(await sweep(_agent(), seconds_left=_seconds_left(context))).document()


async def _batch(messages: Sequence[Message], context: Any) -> dict[str, list[dict[str, str]]]:
    """
    Tick the runs that the messages name; return those that are to come again.

    Those of a FIFO queue are served in order, those of another beside each other, but one run's never at once. A
    message that fails stops those behind it: they would be served out of order, or find the run held.
    """
    lanes: dict[str, list[Message]] = {}
    for message in messages:
        in_order = str(message.get("eventSourceARN", "")).endswith(".fifo")
        lanes.setdefault("" if in_order else message["body"], []).append(message)
    failed = await asyncio.gather(*[_lane(lane, context) for lane in lanes.values()])
    await notify(_agent())
    return {"batchItemFailures": [{"itemIdentifier": message["messageId"]} for lane in failed for message in lane]}


async def _lane(messages: Sequence[Message], context: Any) -> Sequence[Message]:
    for place, message in enumerate(messages):
        if not await _is_done(message, context):
            return messages[place:]
    return ()


async def _is_done(message: Message, context: Any) -> bool:
    """Tick the run that `message` names; return whether the message has had its effect, or can have none."""
    if _seconds_left(context) < TICK_ROOM_S:
        return False
    try:
        await tick(_agent(), RunIdRequest.from_json(message["body"]).run_id)
    except (RunBusy, RunFinished, UnknownRun) as error:
        # A run that another tick holds stays due: the schedule's sweep comes before the queue would.
        logger.info("message %s asks for nothing: %s", message["messageId"], error)
    except Exception as error:
        # Another invocation may mend it, else the queue's own limit ends it among the dead letters.
        logger.warning("message %s comes again", message["messageId"], exc_info=error)
        return False
    return True


def _agent() -> Agent:
    agent: Agent = app.state.agent()
    return agent


def _seconds_left(context: Any) -> float:
    return float(context.get_remaining_time_in_millis()) / 1_000

"""One structured line per event: JSON for machines, colours for a terminal. Never a key, a token or a signature."""

import logging
import sys


def configure_logs(level: int = logging.INFO) -> None:
    """Send every log record of this process to stderr, as JSON lines unless a person is watching."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # httpx and its kind tell of every request, uvicorn of every start; ours say what matters.
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "uvicorn", "web3", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

"""What the agent's program logs of exceptions: each is a bug, wherever it was caught."""

import logging
import traceback


class Told(logging.Handler):
    """Keeps every exception that is logged, and lets nothing be printed."""

    def __init__(self) -> None:
        super().__init__()
        self._told: list[str] = []

    def take(self) -> list[str]:
        """Return what was told since it was asked last."""
        told, self._told = self._told, []
        return told

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            where = "".join(traceback.format_exception(*record.exc_info, limit=-3))
            self._told.append(f"{record.getMessage()}: {where}")


TOLD = Told()
logging.getLogger("livery").addHandler(TOLD)

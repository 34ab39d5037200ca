"""Logs as JSON lines, in the same form for every program of the image."""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

# They log every request, connection and event. Our own log lines have what matters.
LIBRARIES = ("kopf", "httpx", "httpcore", "asyncio", "aiohttp", "kubernetes")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and the call's `extra`."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in self._standard}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Rare(logging.Filter):
    """Lets a line of kopf's about a right that is missing pass once in RARE_SECONDS.

    kopf asks again every few seconds, for each resource and namespace, and logs an error each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if not record.name.startswith("kopf.") or "APIForbiddenError" not in (message := record.getMessage()):
            return True
        line = _CHANGING.sub("", message)
        self._told = {one: at for one, at in self._told.items() if record.created - at < RARE_SECONDS}
        if line in self._told:
            return False
        self._told[line] = record.created
        return True


RARE_SECONDS = 3600.0
# The number of the attempt, and the query of the address with its resourceVersion.
_CHANGING = re.compile(r"#[0-9]+(/[0-9]+)?|\?[^\s]*")


def configure() -> None:
    """JSON lines on standard error, from the level in $QWEN_LOG_LEVEL (default: info) up; of libraries from warning."""
    level = logging.getLevelNamesMapping().get(os.environ.get("QWEN_LOG_LEVEL", "").upper(), logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Rare())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)

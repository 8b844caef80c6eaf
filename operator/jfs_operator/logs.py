"""Logs as one JSON object per line on standard error, every text through the scrubber, tracebacks included.

The Kubernetes client's own logger prints response bodies at debug level, Secrets among them: it stays at warnings, whatever the
level of ours.
"""

import datetime
import json
import logging
import sys
from typing import Final

from jfs_operator.scrub import Scrubber

_QUIET: Final = ("kubernetes", "urllib3", "aiohttp", "asyncio")
# Says at info level that a handler saw an event: two lines for each change of any Secret in the cluster.
_CHATTY: Final = "kopf.objects"


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, and the object that kopf says a line is about."""

    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__()
        self._scrubber = scrubber

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._scrubber.clean(record.getMessage()),
        }
        reference = getattr(record, "k8s_ref", None)
        if isinstance(reference, dict):
            line["object"] = {key: reference.get(key) for key in ("kind", "namespace", "name") if reference.get(key)}
        if record.exc_info:
            line["traceback"] = self._scrubber.clean(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, scrubber: Scrubber) -> None:
    """Set up the root logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(scrubber))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level == "info":
        logging.getLogger(_CHATTY).setLevel(logging.WARNING)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)

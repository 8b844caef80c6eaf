"""Where a mount's log goes: standard error, or the file of `--log`. Messages never hold a secret (`jfs.errors`)."""

import logging
import os
import sys
from typing import Final

from jfs.errors import ConfigError

FORMAT: Final = "%(asctime)s.%(msecs)03d jfs[%(process)d] <%(levelname)s>: %(message)s"
DATE: Final = "%Y/%m/%d %H:%M:%S"


def default_file() -> str:
    """Where a background mount logs (format §10.1)."""
    return "/var/log/juicefs.log" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/juicefs.log")


def to_stderr(level: int = logging.INFO) -> None:
    """Log to standard error."""
    _install(logging.StreamHandler(sys.stderr), level)


def to_file(path: str, level: int = logging.INFO) -> None:
    """Append to *path*; ConfigError when it cannot be written."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the log file {path} cannot be written: {error.strerror}; choose another with --log"
        ) from error
    _install(handler, level)


def _install(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(logging.Formatter(FORMAT, DATE))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for noisy in ("botocore", "aiobotocore", "asyncio", "pyfuse3"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))

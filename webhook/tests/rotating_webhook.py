"""`jfs-webhook` whose certificates live for seconds, so that a test sees many rotations; arguments are the program's own."""

import asyncio
import logging
import sys
from datetime import timedelta

from jfs_webhook.arguments import parse_arguments
from jfs_webhook.certificates import Lifetimes
from jfs_webhook.main import run

SETTLING = 4.0  # seconds

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    lifetimes = Lifetimes(
        authority=timedelta(seconds=50),
        certificate=timedelta(seconds=24),
        overlap=timedelta(seconds=5),
        settling=timedelta(seconds=SETTLING),
        skew=timedelta(seconds=1),
    )
    asyncio.run(run(parse_arguments(sys.argv[1:]), lifetimes, round_seconds=1.0))

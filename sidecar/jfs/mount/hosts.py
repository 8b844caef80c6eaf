"""Which host answers the kernel: chosen by `--fuse-host`, imported only when it is used (an idle mount stays small)."""

import logging

from jfs.errors import ConfigError
from jfs.fuse.accounting import Accounting
from jfs.fuse.connection import Connection
from jfs.fuse.handlers import Handlers
from jfs.fuse.mounting import MountSpec
from jfs.fuse.requests import Host
from jfs.fuse.squash import callers
from jfs.mount.config import MountConfig
from jfs.survival.journal import Journal

log = logging.getLogger("jfs.mount")


def make_host(
    config: MountConfig,
    handlers: Handlers,
    accounting: Accounting,
    spec: MountSpec,
    connection: Connection | None = None,
    journal: Journal | None = None,
) -> Host:
    """The host that the options name; each is imported only when it is used. ConfigError when a *connection* is to be served that
    it cannot."""
    if config.root_squash is not None or config.all_squash is not None:
        handlers.caller = callers(config.root_squash, config.all_squash)
    if connection is not None and connection.agreed.writes_back != config.writeback_cache:
        log.warning(
            "the mount was made %s writeback_cache, and stays so",
            "with" if connection.agreed.writes_back else "without",
        )
    readahead_kib = max(1024, config.max_fuse_io >> 10)
    if config.fuse_host == "kernel":
        from jfs.fuse.kernel.host import KernelHost

        return KernelHost(
            handlers,
            accounting,
            spec,
            max_io=config.max_fuse_io,
            readahead_kib=readahead_kib,
            connection=connection,
            resend=config.fuse_resend,
            writeback=config.writeback_cache,
            journal=journal,
        )
    if connection is not None:
        raise ConfigError(
            "a connection that exists already is only served by --fuse-host kernel: leave option fuse-host out"
        )
    from jfs.fuse.pyfuse3_host import Pyfuse3Host

    return Pyfuse3Host(handlers, accounting, spec, readahead_kib=readahead_kib, writeback=config.writeback_cache)

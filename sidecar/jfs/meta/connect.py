"""From a metadata URL to an open store. Engines are imported only when their scheme is asked for."""

import os

from jfs.errors import ConfigError
from jfs.meta.store.base import Store

SCHEMES = ("redis", "rediss", "unix", "sqlite3", "postgres", "postgresql", "mysql", "etcd", "tikv", "memory")


async def connect(url: str, *, password: str = "") -> Store:
    """Open the database of *url*. *password* (of META_PASSWORD) fills in where the URL has none.

    ConfigError: the URL cannot be understood. StoreUnavailable: nothing answers there; CredentialsRefused when it answers and
    refuses us. VolumeError: what is there is not a database of this kind.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigError(
            f"unknown metadata engine {scheme!r}; use redis://, rediss://, unix://, sqlite3://, postgres://, mysql://, etcd://, tikv:// or memory://"
            if separator
            else "the metadata address has no scheme; write it as redis://host/1 or sqlite3://file.db"
        )
    if scheme == "memory":
        from jfs.meta.engines.memory.named import open_named

        return open_named(rest)
    if scheme == "sqlite3":
        from jfs.meta.engines.sqlite.store import SqliteStore
        from jfs.meta.engines.sqlite.url import parse_address

        store = SqliteStore(parse_address(rest))
        await store.open()
        return store
    if scheme in ("postgres", "postgresql", "mysql"):
        from jfs.meta.engines.sql.store import open_server

        return await open_server(url, password)
    if scheme in ("etcd", "tikv"):
        from jfs.meta.engines.kv.store import open_database

        return await open_database(url, password)
    from jfs.meta.engines.redis.store import RedisStore
    from jfs.meta.engines.redis.url import parse_address as parse_redis_address

    # The real client's variable; Sentinels have a password of their own.
    redis = RedisStore(parse_redis_address(url, password, os.environ.get("SENTINEL_PASSWORD", "")))
    try:
        await redis.open()
    except BaseException:
        await redis.close()
        raise
    return redis

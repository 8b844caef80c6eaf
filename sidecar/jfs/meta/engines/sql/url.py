"""Addresses of database servers in the real client's form (format §4.2.4): credentials, server, database, options.

`postgres://user:password@host:5432/database?sslmode=…&search_path=…` and `mysql://user:password@(host:3306)/database?tls=…` (or
`@unix(/path/of/socket)/`). Pure. Nothing of a password gets into `where`, which messages use.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from jfs.errors import ConfigError

_TABLE_PREFIX: Final = re.compile(r"[A-Za-z0-9_]+")
# They size the real client's pool; ours opens connections as they are needed, up to max_open_conns.
_POOL: Final = frozenset({"max_idle_conns", "max_idle_time", "max_life_time"})
_MYSQL: Final = re.compile(
    r"(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?(?:(?P<net>tcp|unix)?\((?P<place>[^)]*)\)|(?P<host>[^/()]*))/(?P<database>[^/]*)"
)
# Options of the real client's driver that say how it behaves, which ours does anyway.
_MYSQL_IGNORED: Final = frozenset({"charset", "collation", "parsetime", "interpolateparams", "allownativepasswords"})
_TLS: Final = ("true", "false", "skip-verify", "preferred")


class ServerAddress(NamedTuple):
    """A server. *dsn* is what asyncpg takes, without the password; the rest is for MySQL."""

    where: str  # for messages
    user: str = ""
    password: str = ""
    host: str = ""
    port: int = 0
    socket: str = ""
    database: str = ""
    tls: str = "false"
    dsn: str = ""
    table_prefix: str = "jfs_"
    max_connections: int = 0


def _common(address: ServerAddress, options: list[tuple[str, str]]) -> tuple[ServerAddress, list[tuple[str, str]]]:
    """Take the options that all SQL engines know out of *options*."""
    rest = []
    for name, value in options:
        if name == "table_prefix":
            if not _TABLE_PREFIX.fullmatch(value):
                raise ConfigError(f"table_prefix={value} may have letters, digits and underscores only")
            address = address._replace(table_prefix=f"jfs_{value}_")
        elif name == "max_open_conns":
            if not value.isdigit():
                raise ConfigError(f"max_open_conns={value} must be a number, 0 for the default")
            address = address._replace(max_connections=int(value))
        elif name not in _POOL:
            rest.append((name, value))
    return address, rest


def parse_postgres(url: str, password: str) -> ServerAddress:
    """ConfigError when the address cannot be understood. *password* fills in where it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(
            "the metadata address is malformed; write it as postgres://user@host:5432/database"
        ) from error
    database = parts.path.lstrip("/")
    if not database:
        raise ConfigError("the metadata address names no database; write it as postgres://user@host:5432/database")
    host = parts.hostname or ""
    address = ServerAddress(f"{host or 'localhost'}:{port or 5432}/{unquote(database)}")
    address, options = _common(address, parse_qsl(parts.query, keep_blank_values=True))
    chosen = dict(options)
    if "," in chosen.get("search_path", ""):
        raise ConfigError(
            f"search_path={chosen['search_path']} names several schemas; the tables live in one, name that"
        )
    secret = unquote(parts.password or "") or chosen.pop("password", "") or password
    user = f"{parts.username}@" if parts.username else ""
    place = parts.netloc.rpartition("@")[2]
    dsn = urlunsplit(("postgresql", user + place, parts.path, urlencode(chosen), ""))
    return address._replace(password=secret, dsn=dsn)


def parse_mysql(url: str, password: str) -> ServerAddress:
    """ConfigError when the address cannot be understood. *password* fills in where it has none."""
    body, _, query = url.partition("://")[2].partition("?")
    found = _MYSQL.fullmatch(body)
    if found is None or not found["database"]:
        raise ConfigError("the metadata address is malformed; write it as mysql://user@(host:3306)/database")
    place = found["place"] or found["host"] or "localhost"
    database = found["database"]
    address = ServerAddress(
        f"{place}/{database}",
        user=unquote(found["user"] or ""),
        password=found["password"] or password,
        database=unquote(database),
    )
    if found["net"] == "unix":
        address = address._replace(socket=place)
    else:
        host, separator, port = place.rpartition(":")
        if not separator:
            host, port = place, "3306"
        if not port.isdigit():
            raise ConfigError(f"{place} of the metadata address has no port that is a number; write it as host:3306")
        address = address._replace(host=host.strip("[]"), port=int(port))
    address, options = _common(address, parse_qsl(query, keep_blank_values=True))
    for name, value in options:
        if name == "tls":
            if value not in _TLS:
                raise ConfigError(f"tls={value} is not known; use one of {', '.join(_TLS)}")
            address = address._replace(tls=value)
        elif name.lower() not in _MYSQL_IGNORED:
            raise ConfigError(f"unknown option {name!r} in the mysql:// address; remove it")
    return address

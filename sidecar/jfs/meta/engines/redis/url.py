"""Addresses of Redis: `redis://`, `rediss://`, `unix://` with the real client's options (format §4.1.1).

One server, the master that Sentinels name, or nodes of a Cluster: hosts with commas are Sentinels when the first has no port, for it
is the master's name then, and else nodes. The number of the database is, in a Cluster, the hash tag of its keys.
"""

import re
import ssl
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

from jfs.errors import ConfigError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where the server is and how to talk to it. Times in seconds. The password is not part of its text."""

    host: str = ""
    port: int = 6379
    socket_path: str = ""
    db: int = 0
    user: str = ""
    password: str = ""
    tls: bool = False
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_ca_cert_file: str = ""
    tls_server_name: str = ""
    insecure_skip_verify: bool = False
    min_retry_backoff: float = 0.02
    max_retry_backoff: float = 10.0
    read_timeout: float = 30.0
    write_timeout: float = 5.0
    # Sentinels, as (host, port), and the name they know the server by; then host and port are theirs to tell.
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    nodes: tuple[tuple[str, int], ...] = ()  # of a Cluster, as (host, port); then host and port are theirs to tell
    sentinel_password: str = ""

    def __str__(self) -> str:
        if self.sentinels:
            listed = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"{'rediss' if self.tls else 'redis'}://{self.master},{listed}/{self.db}"
        if self.nodes:
            listed = ",".join(f"{_bracketed(host)}:{port}" for host, port in self.nodes)
            return f"{'rediss' if self.tls else 'redis'}://{listed}/{self.db}"
        if self.socket_path:
            return f"unix://{self.socket_path}?db={self.db}"
        return f"{'rediss' if self.tls else 'redis'}://{_bracketed(self.host)}:{self.port}/{self.db}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"

    def authentication(self) -> list[tuple[str, ...]]:
        """The commands that greet the server."""
        if not self.password:
            return []
        return [("AUTH", self.user, self.password) if self.user else ("AUTH", self.password)]

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS settings; ConfigError when a file cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_cert_file or None)
            if self.tls_cert_file:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the TLS files of the Redis address cannot be used: {error}") from error
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def parse_address(url: str, password: str = "", sentinel_password: str = "") -> RedisAddress:
    """Parse a whole URL; *password* fills in where it has none. ConfigError says what to change, without repeating the URL."""
    scheme, _, rest = url.partition("://")
    hosts = rest.partition("?")[0].rpartition("@")[2].partition("/")[0]
    if "," in hosts and scheme != "unix":
        address = parse_address(url.replace(hosts, "several", 1), password)
        if ":" in hosts.partition(",")[0]:
            return replace(address, host="", nodes=tuple(_node(host) for host in hosts.split(",")))
        master, sentinels = _sentinels(hosts)
        return replace(address, master=master, sentinels=sentinels, sentinel_password=sentinel_password)
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError as error:
        raise ConfigError(
            "the host or port of the Redis address is malformed; write it as redis://host:6379/1"
        ) from error
    address = RedisAddress(
        user=unquote(parts.username or ""),
        password=unquote(parts.password or "") or password,
        tls=scheme == "rediss",
    )
    if scheme == "unix":
        path = unquote((parts.hostname or "") + parts.path)
        if not path:
            raise ConfigError("the Redis address names no socket; write it as unix:///run/redis.sock?db=1")
        address = replace(address, socket_path=path)
    else:
        if not parts.hostname:
            raise ConfigError("the Redis address names no host; write it as redis://host:6379/1")
        address = replace(address, host=parts.hostname, port=port, db=_database(parts.path.strip("/")))
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        address = _with_option(address, name, value)
    if address.tls_key_file and not address.tls_cert_file:
        raise ConfigError("tls-key-file needs tls-cert-file in the Redis address")
    return address


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _node(text: str) -> tuple[str, int]:
    """A node of a Cluster: `host`, `host:port`, `[::1]:port`."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^][:]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise ConfigError("a node in the Redis address is malformed; write it as redis://host1:6379,host2:6379/1")
    return match[1].strip("[]"), int(match[2] or 6379)


def _sentinels(hosts: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The name of the master and the Sentinels of `master,host1,host2:26379`; the last port is that of all who have none."""
    master, *others = hosts.split(",")
    default = others[-1].rpartition(":")[2]
    found = []
    for other in others:
        host, separator, port = other.rpartition(":")
        if not separator:
            host, port = other, default if default.isdigit() else "26379"
        if not host or not port.isdigit():
            raise ConfigError(
                "a Sentinel in the Redis address is malformed; write it as master,sentinel1,sentinel2:26379"
            )
        found.append((host, int(port)))
    return master, tuple(found)


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isdigit():
        raise ConfigError(f"the database {text!r} of the Redis address must be a number")
    return int(text)


def _with_option(address: RedisAddress, name: str, value: str) -> RedisAddress:
    match name:
        case "db":
            return replace(address, db=_database(value))
        case "min-retry-backoff":
            return replace(address, min_retry_backoff=_seconds(name, value))
        case "max-retry-backoff":
            return replace(address, max_retry_backoff=_seconds(name, value))
        case "read-timeout":
            return replace(address, read_timeout=_seconds(name, value))
        case "write-timeout":
            return replace(address, write_timeout=_seconds(name, value))
        case "tls-cert-file":
            return replace(address, tls_cert_file=value)
        case "tls-key-file":
            return replace(address, tls_key_file=value)
        case "tls-ca-cert-file":
            return replace(address, tls_ca_cert_file=value)
        case "tls-server-name":
            return replace(address, tls_server_name=value)
        case "insecure-skip-verify":
            return replace(address, insecure_skip_verify=value.lower() in ("", "1", "t", "true", "yes", "on"))
        case "route-read":
            if value not in ("", "master"):
                raise ConfigError(
                    "route-read needs replicas, which are not supported; remove it from the Redis address"
                )
            return address
        case _:
            raise ConfigError(f"the option {name!r} of the Redis address is not supported; remove it")


def _seconds(name: str, value: str) -> float:
    pieces = _DURATION.findall(value)
    if not value or "".join(number + unit for number, unit in pieces) != value:
        raise ConfigError(f"{name}={value} in the Redis address is no duration; write it as 30s or 20ms")
    total = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    if total <= 0:
        raise ConfigError(f"{name}={value} in the Redis address must be more than 0")
    return total

"""Addresses of etcd and TiKV in the real client's form (format §4.3.1): servers, the volume's path, and files for TLS.

`etcd://[user:password@]host:2379,host2:2379/path?cacert=&cert=&key=&server-name=` and `tikv://pd1:2379,pd2:2379/path?ca=&cert=&key=&verify-cn=`.
The path becomes the prefix of every key. Looks whether the files it names can be read.
"""

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from jfs.errors import ConfigError

_END: Final = b"\xfd"  # behind the path in keys; no UTF-8 text holds it
_ETCD: Final = {"cacert": "ca", "cert": "certificate", "key": "key"}
_TIKV: Final = {"ca": "ca", "cert": "certificate", "key": "key"}


class KvAddress(NamedTuple):
    """Servers, credentials, and the prefix of the volume's keys; files for TLS by their paths, "" for none."""

    servers: tuple[str, ...]
    prefix: bytes
    user: str = ""
    password: str = ""
    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    server_name: str = ""


def parse_address(url: str, password: str) -> KvAddress:
    """ConfigError when the address cannot be understood or a file of it cannot be read."""
    scheme, _, rest = url.partition("://")
    where, _, query = rest.partition("?")
    authority, slash, path = where.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    servers = tuple(host if ":" in host else f"{host}:2379" for host in hosts.split(",") if host)
    if not servers:
        raise ConfigError(f"the metadata address names no server; write it as {scheme}://host:2379/path")
    user, _, secret = credentials.partition(":")
    prefix = (slash + path if scheme == "etcd" else path).encode() + _END
    address = KvAddress(servers, prefix, unquote(user), unquote(secret) or (password if user else ""))
    files = _ETCD if scheme == "etcd" else _TIKV
    paths = {"ca": "", "certificate": "", "key": ""}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in files:
            if value:
                paths[files[name]] = value
        elif scheme == "etcd" and name == "server-name":
            address = address._replace(server_name=value)
        elif scheme == "etcd" and name == "insecure-skip-verify":
            if value.lower() not in ("", "0", "false"):
                raise ConfigError("insecure-skip-verify is not possible here; give the server's authority as cacert")
        elif scheme == "tikv" and name == "verify-cn":
            if value:
                raise ConfigError(
                    "verify-cn is not supported; give the authority of the servers as ca and leave it out"
                )
        elif not (
            scheme == "tikv" and name == "gc-interval"
        ):  # who collects old versions is the real client's business
            raise ConfigError(f"unknown option {name!r} in the {scheme}:// address; remove it")
    for path in paths.values():
        _check(path)
    ca, certificate, key = paths["ca"], paths["certificate"], paths["key"]
    return address._replace(tls=bool(ca or certificate or key), ca=ca, certificate=certificate, key=key)


def _check(path: str) -> None:
    if not path:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"the file {path} of the metadata address cannot be read: {error.strerror}") from error

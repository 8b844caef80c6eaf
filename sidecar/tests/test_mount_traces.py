"""What the kernel shows of a mount's process and what a session says of its machine."""

import os
import socket
import subprocess
import sys

import pytest
from jfs.cli.mount import split
from jfs.errors import ConfigError, ObjectNotFound, ObjectUnavailable
from jfs.mount.addresses import addresses
from jfs.object.file import FileStorage

_SHOW = """
import os, sys
from jfs.cli.environment import SECRET_VARIABLES, take_meta_password
from jfs.mount.traces import wipe
assert take_meta_password() == "pass-env"
wipe(SECRET_VARIABLES)
child = os.fork()
if not child:
    for name in ("cmdline", "environ"):
        with open(f"/proc/self/{name}", "rb") as file:
            os.write(1, file.read())
    os._exit(0)
os.waitpid(child, 0)
"""


def test_secrets_vanish_from_what_the_kernel_shows_of_a_process() -> None:
    environment = {
        **os.environ,
        "META_PASSWORD": "pass-env",
        "SECRET_KEY": "pass-key",
        "NOT_META_PASSWORD": "stays",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    urls = ["redis://user:p%40ss-url@host:1/2", "redis://:pass-two@host/1", "sqlite3:///a:b/c.db"]
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW, *urls], env=environment, stdout=subprocess.PIPE, check=True, timeout=20
    ).stdout
    for secret in (b"pass-env", b"pass-key", b"p%40ss-url", b"pass-two"):
        assert secret not in shown.replace(_SHOW.encode(), b"")
    assert b"redis://user:**********@host:1/2\0redis://:********@host/1\0sqlite3:///a:b/c.db\0" in shown
    assert b"NOT_META_PASSWORD=stays\0" in shown


def test_addresses_are_of_the_interfaces_asked_for() -> None:
    assert not any(address.startswith("127.") or address == "::1" for address in addresses())
    assert addresses(["no-such-if"]) == ()
    for address in addresses():
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.mark.parametrize("option", ["--tag", "--consul"])
def test_refused_option_with_a_value_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option[2:]} is not supported yet"):
        split(["sqlite3://a.db", "/mnt", option, "1"])


async def test_missing_directory_of_the_storage_is_no_missing_object(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(ObjectUnavailable, match="does not exist: create it"):
        await FileStorage(f"{tmp_path}/gone").get("vol/juicefs_uuid")
    with pytest.raises(ObjectNotFound):
        await FileStorage(str(tmp_path)).get("vol/juicefs_uuid")

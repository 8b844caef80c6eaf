"""The machine's network addresses, which the session record shows to `status` (format §3.6). Leaf of `mount`; read once at the
start, from the kernel, without asking anybody on the network."""

import fcntl
import socket
import struct
from collections.abc import Collection
from typing import Final

_SIOCGIFADDR: Final = 0x8915
_IFREQ: Final = struct.Struct("16s24x")
_LOOPBACK6: Final = "::1"


def addresses(interfaces: Collection[str] = ()) -> tuple[str, ...]:
    """The IPv4 (the first of each interface) and IPv6 addresses of *interfaces*, of all but loopback when none are named."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            if interfaces and name not in interfaces:
                continue
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, _IFREQ.pack(name.encode()))
            except OSError:  # an interface without an IPv4 address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found.append(address)
    return (*found, *_version6(interfaces))


def _version6(interfaces: Collection[str]) -> list[str]:
    found: list[str] = []
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            for line in table:
                digits, *_, name = line.split()
                address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                if address != _LOOPBACK6 and (not interfaces or name in interfaces):
                    found.append(address)
    except FileNotFoundError:  # a kernel without IPv6
        return []
    return found

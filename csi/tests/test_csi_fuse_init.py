"""INIT of the node service's own mounts: what it agrees, and that the client would have agreed the same."""

import struct

import pytest
from jfs.fuse.connection import Agreed
from jfs.fuse.kernel import session
from jfs_csi.fuse import init

OFFERED = (1 << 30) - 1 | init.INIT_EXT | init.HAS_RESEND


def request(offered: int = OFFERED, minor: int = 45, readahead: int = 131072, opcode: int = 26) -> bytes:
    """The kernel's INIT (linux/fuse.h, fuse_in_header and fuse_init_in)."""
    body = struct.pack("<IIIII44x", 7, minor, readahead, offered & 0xFFFFFFFF, offered >> 32)
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("resend", [False, True])
@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("max_io", ["1M", "128K", "512K"])
@pytest.mark.parametrize("offered", [OFFERED, OFFERED & ~init.HAS_RESEND, OFFERED & ~init.MAX_PAGES, (1 << 30) - 1])
@pytest.mark.parametrize("minor", [31, 38, 45])
def test_it_is_what_the_client_negotiates(
    read_only: bool, resend: bool, writeback: bool, max_io: str, offered: int, minor: int
) -> None:
    options = [f"max-fuse-io={max_io}", *([] if resend else ["fuse-resend=off"])]
    options += ["writeback_cache"] if writeback else []
    asked = request(offered, minor)
    reply, agreed = init.answer(asked, init.wishes(options, read_only))
    size = {"1M": 1 << 20, "128K": 128 << 10, "512K": 512 << 10}[max_io]
    expected, theirs = session.answer(
        2, asked[40:], size, locks=not read_only, acls=True, resend=resend, writeback=writeback
    )
    assert agreed.to_json() == theirs.record()
    assert reply == expected


def test_a_record_survives_the_way_to_the_client_and_back() -> None:
    _, agreed = init.answer(request(), init.wishes([], False))
    assert Agreed.of(agreed.to_json()).record() == agreed.to_json()
    assert init.Init.from_json({**agreed.to_json(), "later": 1}) == agreed


@pytest.mark.parametrize("value", [None, "7", -1, 1.5, True, 1 << 64])
def test_a_bad_record_is_refused(value: object) -> None:
    _, agreed = init.answer(request(), init.wishes([], False))
    with pytest.raises(ValueError, match="max_write"):
        init.Init.from_json({**agreed.to_json(), "max_write": value})
    with pytest.raises(ValueError, match="not an object"):
        init.Init.from_json([])


def test_old_kernels_and_other_requests_are_refused() -> None:
    with pytest.raises(OSError, match=r"speaks FUSE 7\.30"):
        init.answer(request(minor=30), init.wishes([], False))
    with pytest.raises(OSError, match="not INIT but 3"):
        init.answer(request(opcode=3), init.wishes([], False))


def test_options_become_flags_of_the_mount() -> None:
    plain = init.wishes(["cache-size=1"], False)
    assert plain.flags == init.MS_NOSUID | init.MS_NODEV
    assert (plain.default_permissions, plain.max_io, plain.resend) == (True, 1 << 20, True)
    # What a pod must not have is not to be had by an option either.
    assert init.wishes(["suid", "dev"], False).flags == plain.flags
    assert init.wishes(["ro"], False).flags & init.MS_RDONLY
    assert init.wishes([], True).flags & init.MS_RDONLY
    assert init.wishes(["noexec", "noatime"], False).flags & (init.MS_NOEXEC | init.MS_NOATIME)
    assert not init.wishes(["all-squash=1:1"], False).default_permissions
    assert not init.wishes(["non-default-permission"], False).default_permissions


@pytest.mark.parametrize("text", ["64K", "2M", "130K", "many", "", "1.5M", "-1"])
def test_a_size_that_the_client_refuses_is_its_default(text: str) -> None:
    assert init.wishes([f"max-fuse-io={text}"], False).max_io == 1 << 20

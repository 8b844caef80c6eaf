"""POSIX ACLs through mounts, side by side with the real client: the same commands by the tools of Debian's package acl give the same
answers, as do the permissions that the kernel grants by them; each client reads what the other has set."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import JFS, Volume, check_by_real, mounted, really_mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

# What is done in each mount's root, in order; every line's output and status are compared.
SCRIPT = """\
touch f; chmod 640 f; setfacl -m u:1001:rw,g:2001:r f; getfacl -n f; stat -c %a f
chmod 604 f; getfacl -n f
chmod 4770 f; getfacl -n f; stat -c %a f
setfacl -x u:1001 f; getfacl -n f
setfacl -b f; getfacl -n f; stat -c %a f
mkdir d; setfacl -d -m u:1001:rwx,g:2001:rx d; getfacl -n d; stat -c %a d
umask 077; touch d/f; mkdir d/sub; mkfifo d/p; ln -s x d/l; getfacl -n d/f d/sub d/p; stat -c %a d/f d/sub d/p d/l
mkdir -m 700 d/sub/private; getfacl -n d/sub/private
umask 022; mkdir m; setfacl -d -m u::rwx,g::r,o::- m; umask 077; touch m/f; mkdir m/s; getfacl -n m m/f m/s; stat -c %a m/f m/s
umask 027; touch plain; mkdir plaindir; stat -c %a plain plaindir
cp -p d/f copied; getfacl -n copied
setfacl -k d; getfacl -n d; touch d/after; stat -c %a d/after
setfacl -d -m u:1001:rwx f
setfacl -m u:1001:r nothing
chown 1001:2001 f; setfacl -m u:1002:rw,m::rw f; getfacl -n f
setpriv --reuid 1002 --regid 1002 --clear-groups sh -c 'setfacl -m u:1003:r f'; getfacl -n f
setpriv --reuid 1001 --regid 1001 --clear-groups sh -c 'setfacl -m u:1003:r f'; getfacl -n f
mv f d/moved; getfacl -n d/moved; ln d/moved link; getfacl -n link
getfattr -m - d/moved d/sub d
mkdir sg; chown 0:2001 sg; chmod 2775 sg; setfacl -d -m u:1001:rwx sg; mkdir sg/x; touch sg/y; getfacl -n sg/x sg/y
"""
USERS = {"owner": (1000, 1000, ()), "alice": (1001, 1001, ()), "bob": (1002, 1002, ()), "member": (1003, 1003, (2001,))}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


def answers(where: Path) -> list[tuple[str, int, str]]:
    found = []
    for line in SCRIPT.splitlines():
        ended = subprocess.run(["bash", "-c", line], cwd=where, capture_output=True, text=True, check=False, timeout=30)
        said = ended.stdout + ended.stderr
        found.append((line, ended.returncode, said.replace(str(where), "")))
    return found


def allowed(where: Path) -> dict[str, str]:
    """What each user may do with each file, as access(2) and open(2) of the kernel say."""
    found = {}
    paths = [".", "d", "d/sub", "d/moved", "d/f", "d/sub/private", "m/f", "sg/x", "sg/y", "copied"]
    for user, (uid, gid, groups) in USERS.items():
        more = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
        script = "; ".join(
            f"for t in r w x; do test -$t {path} && echo -n $t || echo -n -; done; cat {path} >/dev/null 2>&1; echo $?"
            for path in paths
        )
        ended = subprocess.run(
            ["setpriv", "--reuid", str(uid), "--regid", str(gid), *more, "bash", "-c", script],
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
        )
        found[user] = ended.stdout
    return found


@pytest.mark.parametrize("engine", ["redis", "sqlite3"])
def test_as_on_the_real_clients_mount(engine: str, redis: str, tmp_path: Path) -> None:
    def address(number: int) -> str:
        return f"{redis}/{number}" if engine == "redis" else f"sqlite3://{tmp_path}/meta{number}.db"

    ours = Volume(address(1), tmp_path / "bucket1").format("--enable-acl", "--trash-days", "0")
    theirs = Volume(address(2), tmp_path / "bucket2").format("--enable-acl", "--trash-days", "0", by_real=True)
    with mounted(ours, tmp_path / "ours") as here, really_mounted(theirs, tmp_path / "real") as there:
        os.chmod(tmp_path, 0o755)
        for mine, wanted in zip(answers(here), answers(there), strict=True):
            assert mine == wanted
        assert allowed(here) == allowed(there)
        nameless = "import os; os.umask(0o027); fd = os.open('{}', os.O_TMPFILE | os.O_RDWR, 0o666); print(oct(os.fstat(fd).st_mode))"
        for where, mode in ((".", "0o100640"), ("sg", "0o100664")):  # a default ACL takes the umask's place
            assert run("python3", "-c", nameless.format(where), cwd=here).stdout.strip() == mode
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.setxattr(here / "d", "system.posix_acl_default", b"\2")
    # Each reads the other's volume.
    with mounted(theirs, tmp_path / "ours") as here, really_mounted(ours, tmp_path / "real") as there:
        assert listing(here) == listing(there)
        assert allowed(here) == allowed(there)
        # And sets rules of its own, which do not take each other's numbers.
        for number in range(5):
            run("touch", f"{here}/n{number}", f"{there}/n{number}")
            run("setfacl", "-m", f"u:{1100 + number}:r", f"{here}/n{number}", f"{there}/n{number}")
    with really_mounted(theirs, tmp_path / "real") as there, mounted(ours, tmp_path / "ours") as here:
        assert listing(here) == listing(there)
        for number in range(5):
            assert f"user:{1100 + number}:r" in run("getfacl", "-n", str(here / f"n{number}")).stdout
    check_by_real(ours)
    check_by_real(theirs)


def listing(where: Path) -> list[str]:
    found = run("getfacl", "-n", "-R", ".", cwd=where).stdout.split("\n\n")
    return sorted(stanza for stanza in found if not stanza.startswith("# file: .trash"))


def test_both_at_once_make_rules_on_one_volume(redis: str, tmp_path: Path) -> None:
    volume = Volume(f"{redis}/3", tmp_path / "bucket").format("--enable-acl")
    with mounted(volume, tmp_path / "ours") as here, really_mounted(volume, tmp_path / "real") as there:
        for number in range(40):
            where = (here, there)[number % 2]
            path = where / f"f{number}"
            path.touch()
            run("setfacl", "-m", f"u:{2000 + number // 3}:rw,g:{number % 7}:r", str(path))
    with mounted(volume, tmp_path / "ours") as here:
        for number in range(40):
            said = run("getfacl", "-n", str(here / f"f{number}")).stdout
            assert f"user:{2000 + number // 3}:rw-" in said, said
            assert f"group:{number % 7}:r--" in said, said
    check_by_real(volume)


def test_the_other_host_refuses_in_a_sentence(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--enable-acl")
    where = tmp_path / "mnt"
    where.mkdir()
    ended = run(
        *(*JFS, "mount", "--metrics", "", "--fuse-host", "pyfuse3", volume.url, str(where)),
        check=False,
    )
    assert ended.returncode == 1
    assert "--fuse-host kernel" in ended.stderr

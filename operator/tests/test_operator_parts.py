"""The small parts around the reconcile: scrubber, logs, references, queue, back-off, watch audit, lease, health, command line."""

import asyncio
import json
import logging
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kopf
import pytest
from jfs_api import names
from jfs_operator import handlers, health, logs
from jfs_operator.api import LEASES, ApiUnavailable, Object, Resource
from jfs_operator.backoff import Backoff
from jfs_operator.command import FileSystem
from jfs_operator.handlers import GenerationStorage
from jfs_operator.lease import DURATION, RENEW_DEADLINE, Lease
from jfs_operator.main import arguments
from jfs_operator.memory import MemoryApi
from jfs_operator.queue import Queue
from jfs_operator.reconcile import Outcome
from jfs_operator.references import Key, Reference, References
from jfs_operator.scrub import Scrubber
from jfs_operator.steps import Failure, Next
from jfs_operator.watch_audit import WatchAudit

KEY = Key("JuiceFSVolume", "apps", "data")


def test_the_scrubber_masks_what_it_learned_and_every_password_in_a_url() -> None:
    scrubber = Scrubber()
    scrubber.learn("a", ["p@ss/word", "-----BEGIN KEY-----\nabcdef\n-----END KEY-----", "xy"])
    assert scrubber.clean("bad p@ss/word, p%40ss%2Fword") == "bad ***, ***"
    assert scrubber.clean("line abcdef of the key") == "line *** of the key"
    assert scrubber.clean("xy is too short to be masked") == "xy is too short to be masked"
    assert scrubber.clean("redis://user:never-learned@host/1") == "redis://user:***@host/1"
    assert (
        scrubber.clean("mysql://:p@(host:3306)/db and http://host:8333/x")
        == "mysql://:***@(host:3306)/db and http://host:8333/x"
    )
    scrubber.learn("a", [])
    assert scrubber.clean("p@ss/word") == "p@ss/word"
    scrubber.learn("a", ["secret"])
    scrubber.forget("a")
    assert scrubber.clean("secret") == "secret"


def test_log_lines_are_json_without_secrets() -> None:
    scrubber = Scrubber()
    scrubber.learn("a", ["hunter2"])
    try:
        raise ValueError("hunter2 was refused")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "failed with %s", ("hunter2",), sys.exc_info())
    record.k8s_ref = {"kind": "JuiceFSVolume", "namespace": "apps", "name": "data", "uid": "u"}
    text = logs.JsonFormatter(scrubber).format(record)
    line = json.loads(text)
    assert "hunter2" not in text
    assert (line["level"], line["message"]) == ("error", "failed with ***")
    assert line["object"] == {"kind": "JuiceFSVolume", "namespace": "apps", "name": "data"}
    assert "ValueError: *** was refused" in line["traceback"]


def test_references_go_both_ways() -> None:
    references, secret = References(), Reference("secrets", "apps", "demo")
    references.set(KEY, [secret, Reference("juicefssecrets", "apps", "shared")])
    assert references.dependents(secret) == {KEY}
    references.set(KEY, [])
    assert (references.dependents(secret), references.knows(KEY)) == (frozenset(), True)
    references.forget(KEY)
    assert not references.knows(KEY)


async def end(queue: Queue, workers: list[asyncio.Task[None]]) -> None:
    queue.stop()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def test_a_key_waits_once_and_comes_back_after_its_delay() -> None:
    handled: list[Key] = []
    twice = asyncio.Event()

    async def handle(key: Key) -> Outcome:
        handled.append(key)
        if len(handled) == 1:
            return Outcome(Next.RETRY, "", 0.01)
        twice.set()
        return Outcome(Next.NOTHING, "")

    queue = Queue(handle)
    for _ in range(3):
        queue.add(KEY)
    workers = queue.start()
    await asyncio.wait_for(twice.wait(), 10)
    await end(queue, workers)
    assert handled == [KEY, KEY]


async def test_a_crash_of_one_reconcile_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def handle(key: Key) -> Outcome:
        if key == KEY:
            raise RuntimeError("broken")
        done.set()
        return Outcome(Next.NOTHING, "")

    queue = Queue(handle)
    workers = queue.start()
    queue.add(KEY)
    queue.add(Key("PersistentVolume", "", "x"))
    await asyncio.wait_for(done.wait(), 10)
    assert "the reconcile failed" in caplog.text
    await end(queue, workers)


async def test_a_sleeper_is_woken_instead_of_the_queue() -> None:
    async def handle(key: Key) -> Outcome:
        raise AssertionError("nothing was queued")

    queue = Queue(handle)
    sleeper = asyncio.create_task(queue.something_happens(KEY, 20))
    await asyncio.sleep(0)
    queue.add(KEY)
    await asyncio.wait_for(sleeper, 10)
    await queue.something_happens(KEY, 0.01)


def test_back_off_holds_the_answer_and_not_for_other_credentials() -> None:
    now = 0.0
    backoff = Backoff(lambda: now, jitter=lambda: 0.0)
    bad = Failure("down")
    assert backoff.held("k", "v1") is None
    assert backoff.failed("k", "v1", bad) == 1.0
    assert backoff.held("k", "v1") == bad
    assert backoff.held("k", "v2") is None
    assert backoff.failed("k", "v1", bad) == 1.0  # the same failure, told again
    now = 1.0
    assert backoff.held("k", "v1") is None
    assert backoff.failed("k", "v1", bad) == 2.0
    delay = 0.0
    for _ in range(20):
        now += 1000
        delay = backoff.failed("k", "v1", bad)
    assert delay == 120.0
    backoff.succeeded("k")
    assert backoff.failed("k", "v1", FileSystem("a", "b")) == 1.0


def body(uid: str, version: str) -> Object:
    return {"metadata": {"uid": uid, "resourceVersion": version}}


def test_a_dead_watch_is_noticed_and_a_slow_one_is_not() -> None:
    audit = WatchAudit()
    audit.seen(body("a", "1"), deleted=False)
    assert audit.audit([body("a", "1")])
    assert audit.audit([body("a", "2")])  # only behind
    audit.seen(body("a", "2"), deleted=False)
    assert audit.audit([body("a", "3")])  # behind again, but alive
    assert not audit.audit([body("a", "3")])  # silent for a whole interval
    audit.seen(body("a", "3"), deleted=False)
    assert audit.audit([body("a", "3")])
    assert audit.audit([])  # the deletion was not told yet
    assert not audit.audit([])
    audit.seen(body("a", "4"), deleted=True)
    assert audit.audit([])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_holder_at_a_time_and_the_next_after_the_duration() -> None:
    api, clock = MemoryApi(), Clock()
    first, second = (Lease(api, "ns", "op", name, lost=lambda: None, clock=clock) for name in ("first", "second"))
    assert first.try_once()
    assert not second.try_once()
    clock.now = DURATION - 1
    assert first.try_once()  # renewed
    clock.now += 2
    assert not second.try_once()  # it sees a new renewal, and counts from now
    clock.now += DURATION + 1
    assert second.try_once()
    assert not first.try_once()
    lease = api.get(LEASES, "ns", "op")
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("second", 2)


def test_a_lease_given_back_is_free_at_once() -> None:
    api, clock = MemoryApi(), Clock()
    first, second = (Lease(api, "ns", "op", name, lost=lambda: None, clock=clock) for name in ("first", "second"))
    assert first.acquire(threading.Event())
    first.release()
    assert second.try_once()
    stopped = threading.Event()
    stopped.set()
    assert not first.acquire(stopped)


def test_a_lease_that_cannot_be_renewed_is_lost() -> None:
    api, clock, lost = MemoryApi(), Clock(), threading.Event()
    lease = Lease(api, "ns", "op", "me", lost=lost.set, clock=clock, period=0.01)
    assert lease.try_once()

    def fault(verb: str, resource: Resource, name: str) -> Exception | None:
        return ApiUnavailable("down")

    api.fail(fault)
    clock.now = RENEW_DEADLINE + 1
    lease.keep()
    assert lost.wait(20)


def test_a_lease_that_another_took_is_lost_at_once() -> None:
    api, clock, lost = MemoryApi(), Clock(), threading.Event()
    lease = Lease(api, "ns", "op", "me", lost=lost.set, clock=clock, period=0.01)
    assert lease.try_once()
    api.patch(LEASES, "ns", "op", {"spec": {"holderIdentity": "another"}})
    lease.keep()
    assert lost.wait(20)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_probes_tell_what_is_wrong() -> None:
    clock = Clock()
    state = health.Health(clock)
    server = health.serve(state, "127.0.0.1", 0)
    port = server.server_address[1]
    try:
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "waiting for the lease\n")
        state.tick()
        state.lease_age, state.lease_limit, state.ready = (lambda: 1.0), 15.0, True
        assert get(port, "/readyz") == (200, "ok\n")
        state.dead_watches = ("juicefsvolumes",)
        assert get(port, "/healthz") == (503, "the watch of juicefsvolumes is dead\n")
        state.dead_watches, state.lease_age = (), (lambda: 16.0)
        assert get(port, "/healthz") == (503, "the lease is lost\n")
        state.lease_age = lambda: 1.0
        clock.now = 31
        assert get(port, "/healthz") == (503, "the event loop is stuck\n")
        assert get(port, "/other")[0] == 404
    finally:
        server.shutdown()
        server.server_close()


def test_kopf_remembers_a_generation_and_no_copy() -> None:
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    assert settings.persistence.finalizer == names.FINALIZER
    assert settings.scanning.disabled
    assert (settings.watching.server_timeout, settings.watching.client_timeout) == (270, 300)
    storage = settings.persistence.diffbase_storage
    assert isinstance(storage, GenerationStorage)
    raw: Any = {"metadata": {"name": "x", "generation": 3}, "spec": {"secret": "hunter2"}}
    assert storage.build(body=kopf.Body(raw)) == {"spec": {"generation": 3}}


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parsed = arguments(["--namespace", "ns", "--health", "[::]:9000"])
    assert (parsed.namespace, parsed.health, parsed.driver_name) == ("ns", ("::", 9000), "sidecar.juicefs.io")
    for argv in (["--namespace", "ns", "--health", "nowhere"], ["--namespace", "ns", "--resync", "0"], ["--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            arguments(argv)
        assert caught.value.code == 2
    assert "is not host:port" in capsys.readouterr().err

"""What a node service writes about its node: when, how often, and that it goes on after refusals."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from csi_fake_api import FakeApi
from jfs_api.attachments import LONGEST_MESSAGE, MOST_OF_NODE, MOST_OF_VOLUME, Attachment, of_node, of_volume
from jfs_csi import reporting
from jfs_csi.api import ApiClient
from jfs_csi.reporting import NodeReporter

ENTRY = Attachment("pv-1", "team", "app", "uid-1", "restricted", "Attached", 3, 1, 12, "2030-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("_GATHER", "_PAUSE", "_AGAIN"):
        monkeypatch.setattr(reporting, pause, 0.02)


class Node:
    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.entries = [ENTRY]
        self.asked = 0
        self.reporter: NodeReporter

    def attachments(self) -> list[Attachment]:
        self.asked += 1
        return self.entries

    def writes(self) -> list[list[str]]:
        """States of the entries in each write."""
        bodies = self.fake.nodes.get("juicefs-system/node-1", [])
        return [[entry["state"] for entry in body["attachments"]] for body in bodies]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with FakeApi().serving() as fake:
        api = ApiClient(fake.url)
        node = Node(fake)
        node.reporter = NodeReporter(api, "juicefs-system", "node-1", node.attachments)
        task = asyncio.create_task(node.reporter.run())
        yield node
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await api.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for is on the other side of a socket
            await asyncio.sleep(0.005)


async def test_the_first_write_needs_no_change_and_the_next_one_does(node: Node) -> None:
    await until(lambda: node.writes() == [["Attached"]])
    [body] = node.fake.nodes["juicefs-system/node-1"]
    assert body["kind"] == "JuiceFSNode"
    assert body["attachments"] == [
        {
            "volume": "pv-1",
            "namespace": "team",
            "pod": "app",
            "podUID": "uid-1",
            "mode": "restricted",
            "state": "Attached",
            "generation": 3,
            "restarts": 1,
            "lastStallMs": 12,
            "since": "2030-01-01T00:00:00Z",
        }
    ]
    asked = node.asked
    node.reporter.changed()  # which turns out to be none
    await until(lambda: node.asked > asked)
    node.entries = []
    node.reporter.changed()
    await until(lambda: node.writes() == [["Attached"], []])


async def test_many_changes_become_few_writes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(lambda: len(node.writes()) == 1)
    monkeypatch.setattr(reporting, "_PAUSE", 3600.0)
    for number in range(1000):
        node.entries = [Attachment("pv-1", "team", f"app-{number}", "uid", "restricted", "Pending")]
        node.reporter.changed()
        await asyncio.sleep(0)
    await until(lambda: len(node.writes()) == 2)
    node.reporter.changed()
    assert [entry["pod"] for entry in node.fake.nodes["juicefs-system/node-1"][-1]["attachments"]] == ["app-999"]


async def test_a_refused_write_is_tried_again_with_what_is_true_then(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await until(lambda: len(node.writes()) == 1)
    node.fake.refuse = 503
    node.entries = [Attachment("pv-1", "team", "app", "uid", "restricted", "Waiting")]
    node.reporter.changed()
    await until(lambda: "tried again" in caplog.text)
    node.entries = [Attachment("pv-1", "team", "app", "uid", "restricted", "Stalled")]
    node.fake.refuse = None
    await until(lambda: node.writes()[-1] == ["Stalled"])
    assert ["Waiting"] not in node.writes()


async def test_it_is_renewed_when_nothing_happens(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "RENEW_SECONDS", 0.05)
    await until(lambda: len(node.writes()) >= 3)


def test_entries_are_bounded_and_what_is_not_well_comes_first() -> None:
    well = [Attachment("pv", "team", f"pod-{i:04}", f"uid-{i}", "privileged", "Attached") for i in range(600)]
    bad = Attachment("pv", "team", "zzz", "uid-z", "privileged", "Waiting", message="x" * 2000)
    documents = of_node([*well, bad])
    assert len(documents) == MOST_OF_NODE
    assert documents[0]["pod"] == "zzz"
    assert len(documents[0]["message"]) == LONGEST_MESSAGE
    status = of_volume([("node-1", entry) for entry in (*well, bad)])
    assert len(status) == MOST_OF_VOLUME
    assert status[0]["node"] == "node-1"
    assert not {"volume", "namespace"} & set(status[0])


@pytest.mark.parametrize(
    "change", [{"pod": 7}, {"volume": ""}, {"restarts": "1"}, {"lastStallMs": "x"}, {"message": None}, {"state": None}]
)
def test_what_is_no_entry_is_not_read(change: dict[str, object]) -> None:
    document = ENTRY.document()
    assert Attachment.read(document) == ENTRY
    assert Attachment.read({**document, **change}) is None
    assert Attachment.read("text") is None

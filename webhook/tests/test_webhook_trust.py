"""Secret, served certificate and caBundle, against an API server that other replicas write to as well."""

import asyncio
import base64
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from jfs_webhook.api import ApiClient, ApiError
from jfs_webhook.certificates import Lifetimes
from jfs_webhook.settings import JsonObject
from jfs_webhook.trust import Identity, Trust
from webhook_api_server import FakeApiServer, api_server

IDENTITY = Identity("hook", "system", "hook-tls", "hook-configuration")
SECRET = "/api/v1/namespaces/system/secrets/hook-tls"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook-configuration"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[tuple[FakeApiServer, ApiClient]]:
    async with api_server() as (fake, client):
        webhooks = [{"name": name, "clientConfig": {"service": {"name": "hook"}}} for name in ("a", "b")]
        fake.put(CONFIGURATION, {"metadata": {"name": "hook-configuration"}, "webhooks": webhooks})
        yield fake, client


def bundles(fake: FakeApiServer) -> list[bytes]:
    return [
        base64.b64decode(each["clientConfig"].get("caBundle", "")) for each in fake.objects[CONFIGURATION]["webhooks"]
    ]


async def served(trust: Trust, bundle: bytes) -> str:
    """Serial number of the certificate a client with the bundle is shown; raises if it does not trust it."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=trust.tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cadata=bundle.decode())
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="hook.system.svc")
        serial = str(writer.get_extra_info("peercert")["serialNumber"])
        writer.close()
        await writer.wait_closed()
    return serial


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the rounds raise no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("secret_exists", [False, True])
async def test_first_round_makes_serves_and_publishes(
    server: tuple[FakeApiServer, ApiClient], secret_exists: bool
) -> None:
    fake, client = server
    if secret_exists:
        fake.put(SECRET, {"metadata": {"name": "hook-tls", "labels": {"chart": "x"}}, "type": "Opaque"})
    trust = Trust(client, IDENTITY)
    assert not trust.ready
    await trust.round()
    assert trust.ready
    assert len(set(bundles(fake))) == 1
    await served(trust, bundles(fake)[0])
    assert fake.objects[SECRET]["metadata"].get("labels") == ({"chart": "x"} if secret_exists else None)
    requests = len(fake.requests)
    await trust.round()
    assert {method for method, _ in fake.requests[requests:]} == {"GET"}


@pytest.mark.parametrize("secret_exists", [False, True])
async def test_replicas_that_start_at_once_end_with_one_authority(
    server: tuple[FakeApiServer, ApiClient], secret_exists: bool
) -> None:
    fake, client = server
    if secret_exists:
        fake.put(SECRET, {"metadata": {"name": "hook-tls"}})
    replicas = [Trust(client, IDENTITY) for _ in range(4)]
    await asyncio.gather(*(replica.round() for replica in replicas))
    bundle = bundles(fake)
    assert bundle[0] == bundle[1]
    assert len({await served(replica, bundle[0]) for replica in replicas}) == 1


async def test_rotation_without_restart_keeps_every_client_trusting(server: tuple[FakeApiServer, ApiClient]) -> None:
    """Clients believe the machine's clock, so the story is told in the past and ends today."""
    fake, client = server
    clock = Clock()
    today = clock.now
    lifetimes = Lifetimes(authority=timedelta(days=120), certificate=timedelta(days=90))
    one, two = (Trust(client, IDENTITY, lifetimes=lifetimes, clock=clock) for _ in range(2))

    clock.now = today - timedelta(days=81)
    await one.round()
    await two.round()
    first_bundle = bundles(fake)[0]
    first = await served(one, first_bundle)
    assert await served(two, first_bundle) == first

    # The certificate alone, by the same authority; the other replica follows at its next round.
    clock.now = today - timedelta(days=20)
    await one.round()
    second = await served(one, first_bundle)
    assert second != first
    assert await served(two, first_bundle) == first
    await two.round()
    assert await served(two, first_bundle) == second

    # The authority: first it only joins the bundle …
    clock.now = today
    await one.round()
    both = bundles(fake)[0]
    assert both.endswith(first_bundle)
    assert len(both) > len(first_bundle)
    for replica in (one, two):
        assert await served(replica, first_bundle) == await served(replica, both) == second
    # … a round that finds it there waits until every API server has heard of it …
    await two.round()
    assert await served(two, first_bundle) == second
    clock.now = today + timedelta(seconds=29)
    await two.round()
    assert await served(two, first_bundle) == second
    # … and then issues by it, while the replica that has not followed is still trusted …
    clock.now = today + timedelta(seconds=31)
    await two.round()
    third = await served(two, both)
    assert third != second
    assert await served(one, both) == second
    await one.round()
    assert await served(one, both) == third
    assert bundles(fake) == [both, both]
    # … and the old one goes when everyone has moved on.
    clock.now = today + timedelta(hours=2)
    await one.round()
    new = bundles(fake)[0]
    assert both == new + first_bundle
    assert await served(one, new) == await served(two, new) == third
    await two.round()
    assert bundles(fake) == [new, new]


async def test_overwritten_configuration_is_put_right(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    trust = Trust(client, IDENTITY)
    await trust.round()
    bundle = bundles(fake)[0]
    fake.objects[CONFIGURATION]["webhooks"][1]["clientConfig"]["caBundle"] = "bm9uc2Vuc2U="
    await trust.round()
    assert bundles(fake) == [bundle, bundle]


class Meddler:
    """Passes everything on, and changes the configuration just before the first patch of it arrives."""

    def __init__(self, fake: FakeApiServer, client: ApiClient) -> None:
        self._fake = fake
        self._client = client
        self._meddled = False

    async def get(self, path: str) -> JsonObject | None:
        return await self._client.get(path)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        return await self._client.create(path, body)

    async def replace(self, path: str, body: JsonObject) -> JsonObject:
        return await self._client.replace(path, body)

    async def patch(self, path: str, operations: list[JsonObject]) -> JsonObject:
        if not self._meddled:
            self._meddled = True
            changed = self._fake.objects[CONFIGURATION]
            changed["webhooks"].append({"name": "c", "clientConfig": {}})
            self._fake.put(CONFIGURATION, changed)
        return await self._client.patch(path, operations)


async def test_configuration_changed_meanwhile_is_read_again(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    trust = Trust(Meddler(fake, client), IDENTITY)
    await trust.round()
    assert len(bundles(fake)) == 3
    assert len(set(bundles(fake))) == 1
    assert trust.ready


async def test_foreign_secret_is_replaced_and_its_content_not_logged(
    server: tuple[FakeApiServer, ApiClient], caplog: pytest.LogCaptureFixture
) -> None:
    fake, client = server
    caplog.set_level(logging.DEBUG)
    fake.put(SECRET, {"metadata": {"name": "hook-tls"}, "data": {"tls.key": base64.b64encode(b"hunter2").decode()}})
    trust = Trust(client, IDENTITY)
    await trust.round()
    await served(trust, bundles(fake)[0])
    assert "hook-tls is made anew" in caplog.text
    for secret in ("hunter2", "PRIVATE KEY", *fake.objects[SECRET]["data"].values()):
        assert secret not in caplog.text


async def test_not_ready_until_the_configuration_is_written(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    trust = Trust(client, IDENTITY)
    fake.failures["PATCH"] = [403]
    with pytest.raises(ApiError, match="HTTP 403"):
        await trust.round()
    assert not trust.ready
    await trust.round()
    assert trust.ready


async def test_rounds_go_on_after_failures_and_say_why(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    configuration = fake.objects.pop(CONFIGURATION)
    trust = Trust(client, IDENTITY)
    rounds = asyncio.create_task(trust.run(round_seconds=0.01))
    try:
        await until(lambda: "does not exist" in trust.complaint)
        assert not trust.ready
        fake.put(CONFIGURATION, configuration)
        await until(lambda: trust.ready)
    finally:
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
    assert trust.complaint == ""


async def test_configuration_that_never_stands_still_is_an_error(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    fake.failures["PATCH"] = [409] * 20
    with pytest.raises(ApiError, match="being changed by somebody else"):
        await Trust(client, IDENTITY).round()


async def test_the_validating_configuration_is_kept_too(server: tuple[FakeApiServer, ApiClient]) -> None:
    fake, client = server
    path = CONFIGURATION.replace("mutating", "validating")
    fake.put(path, {"metadata": {"name": "hook-configuration"}, "webhooks": [{"name": "c", "clientConfig": {}}]})
    trust = Trust(client, IDENTITY)
    await trust.round()
    written = fake.objects[path]["webhooks"][0]["clientConfig"]["caBundle"]
    assert base64.b64decode(written) == bundles(fake)[0]

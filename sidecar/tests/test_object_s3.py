"""The S3 storage's own matters: addresses, signatures, what it does when a server misbehaves, and what its errors say."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from crc32c import crc32c
from jfs.errors import ConfigError, ObjectError, ObjectForbidden, ObjectNotFound, ObjectUnavailable, StorageMissing
from jfs.format.setting import new_setting
from jfs.object.base import ObjectStorage
from jfs.object.connect import StorageOptions, open_storage, open_volume
from jfs.object.s3 import S3Storage
from jfs.object.s3_address import BucketAddress, parse_bucket_url
from jfs.object.s3_signing import Credentials, Signer
from seaweed_server import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedServer, free_ports

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# Addresses


@pytest.mark.parametrize(
    ("kind", "url", "environment", "base", "path", "region"),
    [
        ("s3", "http://10.0.0.1:8333/data", {}, "http://10.0.0.1:8333", "/data/v/k", "us-east-1"),
        ("s3", "https://minio.example.com/data/", {}, "https://minio.example.com", "/data/v/k", "us-east-1"),
        ("s3", "http://h/data/below", {}, "http://h", "/data/v/k", "us-east-1"),
        ("s3", "https://data.s3.example.com", {}, "https://s3.example.com", "/data/v/k", "us-east-1"),
        ("s3", "https://data.s3.example.com", {"JFS_S3_VHOST_STYLE": "1"}, "https://data.s3.example.com", "/v/k", "us-east-1"),
        ("s3", "data.s3.example.com:9000", {"AWS_REGION": "x"}, "http://s3.example.com:9000", "/data/v/k", "x"),
        ("s3", "https://data.s3.eu-west-1.amazonaws.com", {}, "https://data.s3.eu-west-1.amazonaws.com", "/v/k", "eu-west-1"),
        ("s3", "https://my.data.s3-eu-west-1.amazonaws.com", {}, "https://my.data.s3-eu-west-1.amazonaws.com", "/v/k", "eu-west-1"),
        ("s3", "s3.eu-west-1.amazonaws.com/data", {}, "https://s3.eu-west-1.amazonaws.com", "/data/v/k", "eu-west-1"),
        ("s3", "data.s3.cn-north-1.amazonaws.com.cn", {}, "http://data.s3.cn-north-1.amazonaws.com.cn", "/v/k", "cn-north-1"),
        ("s3", "data", {"AWS_DEFAULT_REGION": "eu-west-3"}, "https://data.s3.eu-west-3.amazonaws.com", "/v/k", "eu-west-3"),
        ("minio", "localhost:9000/data", {"MINIO_REGION": "home"}, "http://localhost:9000", "/data/v/k", "home"),
        ("minio", "https://h:9000/data?tls-insecure-skip-verify=true", {}, "https://h:9000", "/data/v/k", "us-east-1"),
    ],
)  # fmt: skip
def test_bucket_urls(kind: str, url: str, environment: dict[str, str], base: str, path: str, region: str) -> None:
    address = parse_bucket_url(kind, url, environment)
    assert (f"{address.scheme}://{address.host}", address.path("v/k"), address.region) == (base, path, region)
    assert address.verify == ("insecure" not in url)


@pytest.mark.parametrize(
    "url",
    ["", "http://10.0.0.1:9000", "http://localhost:9000", "ftp://h/b", "http://h:port/b", "https://s3.amazonaws.com",
     "http://user:hunter2@h/b", "http://h/b?what=1", "http://h/-"],
)  # fmt: skip
def test_urls_that_name_no_bucket(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bucket_url("s3", url, {})
    assert "hunter2" not in str(caught.value)


def test_minio_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"https://minio\.example\.com/BUCKET"):
        parse_bucket_url("minio", "https://minio.example.com", {})


@pytest.mark.parametrize("kind", ["oss", "carrier-pigeon"])
def test_other_storages_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind}.*file, s3, minio"):
        open_storage(kind, "bucket")


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="both"):
        open_storage("s3", "http://h/b", access_key="only")


def test_signature_is_amazons_own() -> None:
    """Against botocore's signer for the same request."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as BotoCredentials

    now = time.time()
    headers = {"x-amz-meta-crc32c": "123"}
    Signer("eu-west-1").sign(Credentials("AK", "SK", "TOKEN"), "PUT", "h:9000", "/b/a%20b", headers, now)
    request = AWSRequest("PUT", "http://h:9000/b/a%20b", headers={"x-amz-meta-crc32c": "123"})
    request.context["payload_signing_enabled"] = False
    request.context["client_config"] = None
    signer = S3SigV4Auth(BotoCredentials("AK", "SK", "TOKEN"), "s3", "eu-west-1")
    request.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
    request.headers["x-amz-security-token"] = "TOKEN"
    request.context["timestamp"] = headers["x-amz-date"]
    request.headers["X-Amz-Date"] = headers["x-amz-date"]
    canonical = signer.canonical_request(request).replace("\nUNSIGNED-PAYLOAD", "\nUNSIGNED-PAYLOAD", 1)
    body_hash = canonical.rpartition("\n")[2]
    canonical = canonical.removesuffix(body_hash) + "UNSIGNED-PAYLOAD"
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    assert headers["Authorization"].endswith(f"Signature={signature}")


# A server that misbehaves


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[S3Storage]:
    """A storage whose server is *handler*."""
    application = web.Application(client_max_size=1 << 26)
    application.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    address = options.pop("address", None) or BucketAddress(False, f"127.0.0.1:{port}", "b", "us-east-1", True)
    storage = S3Storage(
        address,
        access_key=options.pop("access_key", "key"),
        secret_key="secret",
        session_token=options.pop("session_token", ""),
        options=StorageOptions(
            connect_timeout=5, first_pause=0.001, idle_timeout=options.pop("idle_timeout", 20), **options
        ),
    )
    try:
        yield storage
    finally:
        await storage.close()
        await runner.cleanup()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_transient_failures_are_tried_again(status: int) -> None:
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(status=status if len(bodies) < 3 else 200)

    data = os.urandom(600_000)
    async with serving(handler) as storage:
        await storage.put("object", data)
    assert bodies == [data] * 3


async def test_a_server_that_asks_for_a_pause_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    answers = iter((("7", 503), ("soon", 503), ("1000", 429), ("", 200)))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def handler(request: web.Request) -> web.Response:
        wanted, status = next(answers)
        return web.Response(status=status, headers={"Retry-After": wanted} if wanted else {})

    async with serving(handler, tries=4) as storage:
        monkeypatch.setattr("jfs.object.s3.asyncio.sleep", sleep)
        await storage.put("object", b"data")
        monkeypatch.undo()
    assert [round(pause) for pause in pauses] == [7, 0, 10]


async def test_failures_that_last_are_one_sentence() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")

    async with serving(handler, tries=2) as storage:
        with pytest.raises(ObjectUnavailable, match="SlowDown"):
            await storage.get("object")


async def test_broken_answer_is_asked_for_again() -> None:
    data = os.urandom(1 << 20)
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked > 1:
            return web.Response(body=data)
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:1000])
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(handler) as storage:
        assert bytes(await storage.get("object")) == data
    assert asked == 2


async def test_silent_server_is_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with serving(handler, idle_timeout=0.05, tries=2) as storage:
        with pytest.raises(ObjectUnavailable, match="cannot be reached or broke off"):
            await storage.get("object")


async def test_puts_carry_the_checksum_and_gets_verify_it() -> None:
    stored: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        if request.method == "PUT":
            stored.update(body=await request.read(), checksum=request.headers["x-amz-meta-crc32c"])
            return web.Response()
        return web.Response(body=stored["body"], headers={"x-amz-meta-crc32c": stored["checksum"]})

    async with serving(handler) as storage:
        await storage.put("object", b"hello")
        assert stored["checksum"] == str(0x9A71BB4C) == str(crc32c(b"hello"))
        assert bytes(await storage.get("object")) == b"hello"
        stored["body"] = b"jello"
        with pytest.raises(ObjectUnavailable, match="damaged"):
            await storage.get("object")
        assert bytes(await storage.get("object", 1, 2)) == b"el"  # the server ignores ranges


async def test_token_class_and_anonymity_are_sent() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.Response()

    async with serving(handler, session_token="token", storage_class="STANDARD_IA") as storage:
        await storage.put("object", b"")
    async with serving(handler, access_key="anonymous") as storage:
        await storage.put("object", b"")
    assert seen[0]["x-amz-security-token"] == "token"
    assert seen[0]["x-amz-storage-class"] == "STANDARD_IA"
    assert "x-amz-security-token;x-amz-storage-class" in seen[0]["Authorization"]
    assert "Authorization" not in seen[1]


@pytest.mark.parametrize(("chosen", "sent"), [("", "STANDARD_IA"), ("GLACIER_IR", "GLACIER_IR")])
async def test_storage_class_of_a_mount_goes_before_the_volumes(chosen: str, sent: str) -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers.get("x-amz-storage-class")))
        return web.Response()

    async with serving(handler) as served:
        bucket = "http://" + served.describe().removeprefix("s3://")
        setting = new_setting("demo", "uuid", storage="s3", bucket=bucket, storage_class="STANDARD_IA")
        storage = open_volume(
            setting, access_key="key", secret_key="secret", options=StorageOptions(storage_class=chosen)
        )
        await storage.put("object", b"")
        await storage.close()
    assert seen == [("/b/demo/object", sent)]


async def test_objects_get_the_class_and_tags_of_their_tier() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.headers.get("x-amz-storage-class"), request.headers.get("x-amz-tagging")))
        return web.Response()

    tiers = {
        "0": {"ID": 0, "StorageClass": "STANDARD_IA", "Tag": ""},
        "1": {"ID": 1, "StorageClass": "GLACIER", "Tag": ""},
        "2": {"ID": 2, "StorageClass": "", "Tag": "a=b"},
    }
    async with serving(handler) as served:
        bucket = "http://" + served.describe().removeprefix("s3://").replace("/b", "/b%d")
        setting = new_setting("demo", "uuid", storage="s3", bucket=bucket, storage_class="STANDARD_IA", shards=2)
        storage = open_volume(
            setting.replaced(Tiers=tiers), access_key="key", secret_key="secret", options=StorageOptions()
        )
        for tier in (0, 1, 2, 3):
            await storage.put("object", b"", tier)
        await storage.close()
    assert seen == [("STANDARD_IA", None), ("GLACIER", None), (None, "a=b"), ("STANDARD_IA", None)]


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (403, "<Code>AccessDenied</Code>", ObjectForbidden, "refused.*AccessDenied.*rights"),
        (403, "<Code>RequestTimeTooSkewed</Code>", ObjectForbidden, "clock"),
        (404, "<Code>NoSuchBucket</Code>", StorageMissing, "does not exist: create it"),
        (404, "<Code>NoSuchKey</Code>", ObjectNotFound, "no object"),
        (400, "<Code>AuthorizationHeaderMalformed</Code>", ObjectUnavailable, "region eu-west-3"),
        (418, "", ObjectUnavailable, "418"),
    ],
)
async def test_answers_become_sentences(status: int, body: str, kind: type[ObjectError], text: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"x-amz-bucket-region": "eu-west-3"})

    async with serving(handler) as storage:
        with pytest.raises(kind, match=text) as caught:
            await storage.get("object")
        assert type(caught.value) is kind


async def test_unreachable_server_is_one_sentence() -> None:
    (port,) = free_ports(1)
    storage = open_storage(
        "s3", f"http://127.0.0.1:{port}/b", access_key="a", secret_key="b", options=StorageOptions(tries=1)
    )
    with pytest.raises(ObjectUnavailable, match="cannot be reached"):
        await storage.get("object")
    await storage.close()


async def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.Response()

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ambient-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ambient-secret")
    async with serving(handler) as storage:
        ambient = S3Storage(storage._address, access_key="", secret_key="", session_token="", options=StorageOptions())
        await ambient.put("object", b"x")
        await ambient.close()
    assert "Credential=ambient-key/" in seen[0]


# A real server


def opened(
    server: SeaweedServer, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, bucket: str = BUCKET
) -> ObjectStorage:
    return open_storage("s3", f"{server.endpoint}/{bucket}", access_key=access_key, secret_key=secret_key)


@pytest.mark.real
@pytest.mark.parametrize(("access", "secret"), [(ACCESS_KEY, "wrong"), ("nobody", "wrong"), ("anonymous", "")])
async def test_wrong_keys_are_forbidden(seaweed: SeaweedServer, access: str, secret: str) -> None:
    storage = opened(seaweed, access, secret)
    with pytest.raises(ObjectForbidden, match="refused"):
        await storage.put("forbidden/object", b"x")
    with pytest.raises(ObjectForbidden):
        [info async for info in storage.list()]
    await storage.close()


@pytest.mark.real
async def test_missing_right_is_forbidden(seaweed: SeaweedServer) -> None:
    reader = opened(seaweed, "reader", "reader-secret")
    with pytest.raises(ObjectForbidden):
        await reader.put("forbidden/object", b"x")
    await reader.close()


@pytest.mark.real
async def test_missing_bucket_is_said(seaweed: SeaweedServer) -> None:
    storage = opened(seaweed, bucket="no-such-bucket")
    with pytest.raises(ObjectUnavailable, match="no-such-bucket/ does not exist"):
        await storage.put("object", b"x")
    with pytest.raises(ObjectUnavailable, match="does not exist"):
        [info async for info in storage.list()]
    await storage.close()


@pytest.mark.real
async def test_listing_goes_on_over_pages(seaweed: SeaweedServer) -> None:
    storage = opened(seaweed)
    names = [f"pages/{number:05}" for number in range(1010)]
    for at in range(0, len(names), 100):
        await asyncio.gather(*(storage.put(name, b"x") for name in names[at : at + 100]))
    assert [info.key async for info in storage.list("pages/")] == names
    for at in range(0, len(names), 100):
        await asyncio.gather(*(storage.delete(name) for name in names[at : at + 100]))
    await storage.close()

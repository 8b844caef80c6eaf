"""Access to the API server: from a pod, from a kubeconfig, with a token that changes."""

import base64
import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jfs_webhook.api import Access, ApiClient, ApiError, NoAccess, find_access
from jfs_webhook.certificates import Lifetimes, make_authority, next_material, pem
from jfs_webhook.memfile import memory_file
from webhook_api_server import FakeApiServer, api_server


async def test_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    fake = FakeApiServer()
    fake.put("/x", {})
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    async with TestServer(application) as server:
        access = Access(str(server.make_url("")).rstrip("/"), None, token)
        async with ApiClient(access) as client:
            for content in ("one\n", "two"):
                token.write_text(content)
                assert await client.get("/x") is not None
    assert fake.tokens == ["Bearer one", "Bearer two"]


async def test_cache_ends_and_never_holds_what_is_missing() -> None:
    now = 0.0
    async with api_server() as (fake, _):
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", fake.handle)
        async with (
            TestServer(application) as server,
            ApiClient(Access(str(server.make_url("")).rstrip("/"), None), lambda: now) as client,
        ):
            assert await client.persistent_volume("pv") is None
            fake.put("/api/v1/persistentvolumes/pv", {"spec": {"a": 1}})
            assert await client.persistent_volume("pv") is not None
            fake.put("/api/v1/persistentvolumes/pv", {"spec": {"a": 2}})
            assert ((await client.persistent_volume("pv")) or {})["spec"] == {"a": 1}
            now = 6.0
            assert ((await client.persistent_volume("pv")) or {})["spec"] == {"a": 2}


async def test_unreachable_server_is_a_sentence() -> None:
    async with ApiClient(Access("http://127.0.0.1:1", None)) as client:
        with pytest.raises(ApiError, match="GET /x: the API server cannot be reached") as caught:
            await client.get("/x")
    assert caught.value.status is None


async def test_kubeconfig_with_client_certificate_and_token(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    material = next_material(None, frozenset(), ["localhost"], now, Lifetimes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1)
    )
    certificate = builder.sign(key, hashes.SHA256())
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(cadata=pem(certificate).decode())
    with memory_file(material.certificate_pem) as certificate_path, memory_file(material.key_pem) as key_path:
        tls.load_cert_chain(certificate_path, key_path)
    fake = FakeApiServer()
    fake.put("/x", {})
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    server = TestServer(application, scheme="https", host="localhost")
    await server.start_server(ssl=tls)
    try:
        user = {"client-certificate-data": encoded(pem(certificate)), "client-key-data": encoded(key_pem)}
        config = kubeconfig(
            f"https://localhost:{server.port}/",
            {"certificate-authority-data": encoded(material.bundle)},
            {"token": "secret-token", **user},
        )
        path = tmp_path / "config"
        path.write_text(json.dumps(config))
        access = find_access({"KUBECONFIG": str(path)})
        assert "secret-token" not in repr(access)
        async with ApiClient(access) as client:
            assert await client.get("/x") is not None
    finally:
        await server.close()
    assert fake.tokens == ["Bearer secret-token"]


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def kubeconfig(server: str, cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }


@pytest.mark.parametrize(
    "content", ["apiVersion: v1", "{}", "[]", json.dumps({"current-context": "x", "contexts": []})]
)
def test_unusable_kubeconfigs_are_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(NoAccess, match="not a usable kubeconfig in JSON"):
        find_access({"KUBECONFIG": str(path)})


def test_service_account_of_a_pod(tmp_path: Path) -> None:
    authority, _ = make_authority(datetime.now(UTC), timedelta(days=1))
    (tmp_path / "ca.crt").write_bytes(pem(authority))
    (tmp_path / "token").write_text("t")
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    access = find_access(environment, tmp_path)
    assert access.url == "https://10.0.0.1:443"
    assert access.headers() == {"Authorization": "Bearer t"}
    assert find_access(environment | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path).url == "https://[fd00::1]:443"
    with pytest.raises(NoAccess, match="KUBECONFIG is not set"):
        find_access({}, tmp_path)

"""Redis over TLS, with a client certificate, as a user of its access lists: a real server, a certificate authority of the test."""

import asyncio
import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jfs.errors import CredentialsRefused, StoreUnavailable
from jfs.meta.connect import connect
from jfs.meta.model.keys import CounterKey
from jfs.meta.store.base import Tx

pytestmark = pytest.mark.real


def certificates(folder: Path) -> None:
    """ca.crt, and a certificate for 127.0.0.1 that both sides show: own.crt, own.key; another authority is other.crt."""
    now = datetime.datetime.now(datetime.UTC)

    def make(
        name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None
    ) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer, signing = issuer or (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        pem = serialization.Encoding.PEM
        (folder / f"{name}.crt").write_bytes(builder.sign(signing, hashes.SHA256()).public_bytes(pem))
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(private)
        return subject, key

    authority = make("ca", None)
    make("own", authority)
    make("other", None)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a server that speaks TLS only and wants certificates."""
    certificates(tmp_path)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    users = tmp_path / "users.acl"
    users.write_text(
        "user default off\nuser volume on >secret ~* &* +@all\nuser reader on >secret ~* +@read +ping +select +info\n"
    )
    options = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", "own.crt", "--tls-key-file", "own.key"]
    options += ["--tls-ca-cert-file", "ca.crt", "--save", "", "--aclfile", str(users)]
    process = await asyncio.create_subprocess_exec(
        "redis-server", *options, cwd=tmp_path, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        yield port
    finally:
        process.kill()
        await process.wait()


async def test_tls(server: int, tmp_path: Path) -> None:
    files = f"tls-ca-cert-file={tmp_path}/ca.crt&tls-cert-file={tmp_path}/own.crt&tls-key-file={tmp_path}/own.key"
    store = await connect(f"rediss://volume@127.0.0.1:{server}/1?{files}", password="secret")
    try:

        async def operation(tx: Tx) -> None:
            tx.add(CounterKey("usedSpace"), 1)

        await store.run(operation)
        assert await store.get(CounterKey("usedSpace")) == (1,)
    finally:
        await store.close()
    unverified = f"insecure-skip-verify=true&{files.partition('&')[2]}"
    store = await connect(f"rediss://volume@127.0.0.1:{server}/1?{unverified}", password="secret")
    await store.close()


@pytest.mark.parametrize(
    ("user", "password", "ca", "own", "refusal", "sentence"),
    [
        ("volume", "wrong", "ca", True, CredentialsRefused, "password"),
        ("volume", "secret", "other", True, StoreUnavailable, "certificate"),
        ("volume", "secret", "ca", False, StoreUnavailable, "Redis"),
    ],
)
async def test_refusals(
    user: str, password: str, ca: str, own: bool, refusal: type[Exception], sentence: str, server: int, tmp_path: Path
) -> None:
    options = f"tls-ca-cert-file={tmp_path}/{ca}.crt"
    if own:
        options += f"&tls-cert-file={tmp_path}/own.crt&tls-key-file={tmp_path}/own.key"
    with pytest.raises(refusal, match=sentence) as refused:
        await connect(f"rediss://{user}@127.0.0.1:{server}/1?{options}", password=password)
    assert password not in str(refused.value) or password == "wrong"

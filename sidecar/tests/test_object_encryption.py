"""Encryption of objects: the form of the format document, keys in every PEM form, and what a wrong key or a changed object gives."""

import os
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jfs.errors import ObjectUnavailable, VolumeError
from jfs.format.setting import ENCRYPTIONS, Setting, new_setting
from jfs.object.base import ObjectStorage
from jfs.object.connect import open_volume
from jfs.object.encryption import Sealed, load
from jfs.object.memory import MemoryStorage
from jfs.object.selftest import probe
from rsa_keys import PASSPHRASE, pem

UUID = "e40522cd-decb-4e5d-a25d-52803a3d0b3e"


def setting(algorithm: str = "aes256gcm-rsa", **more: str | int) -> Setting:
    members = {"storage": "mem", "bucket": "b", "encrypt_key": pem(), **more}
    return new_setting("demo", UUID, encrypt_algo=algorithm, **members)  # type: ignore[arg-type]


@pytest.fixture(params=ENCRYPTIONS)
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[ObjectStorage]:
    opened = open_volume(setting(request.param))
    yield opened
    await opened.close()


def inner(storage: ObjectStorage) -> MemoryStorage:
    """What lies below prefix and encryption."""
    found = storage._inner._inner  # type: ignore[attr-defined]
    assert isinstance(found, MemoryStorage)
    return found


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000, (4 << 20) + 7])
async def test_what_was_put_is_got_whole_and_in_parts(storage: ObjectStorage, size: int) -> None:
    data = os.urandom(size)
    await storage.put("k", memoryview(data))
    assert bytes(await storage.get("k")) == data
    for offset, length in ((0, 10), (3, 5), (size - 1, 9), (size, 4), (1, -1)):
        if offset >= 0:
            wanted = data[offset:] if length < 0 else data[offset : offset + length]
            assert bytes(await storage.get("k", offset, length)) == wanted
    assert (await storage.head("k")).size == size
    assert [(info.key, info.size) async for info in storage.list()] == [("k", size)]
    raw, _ = inner(storage).objects["demo/k"]
    assert len(raw) == size + 3 + 256 + 12 + 16
    assert raw[:3] == b"\x01\x00\x0c"
    assert not size > 16 or data not in raw


async def test_every_object_has_its_own_key(storage: ObjectStorage) -> None:
    await storage.put("a", b"same")
    await storage.put("b", b"same")
    objects = inner(storage).objects
    assert objects["demo/a"][0][3:259] != objects["demo/b"][0][3:259]
    assert objects["demo/a"][0][259:] != objects["demo/b"][0][259:]


async def test_the_self_test_passes(storage: ObjectStorage) -> None:
    await probe(storage)
    assert not inner(storage).objects


@pytest.mark.parametrize("at", [0, 1, 2, 3, 200, 260, 275, 290])
async def test_a_changed_object_is_never_handed_on(storage: ObjectStorage, at: int) -> None:
    await storage.put("k", b"content of the object")
    raw, mtime = inner(storage).objects["demo/k"]
    changed = bytearray(raw)
    changed[at] ^= 0x40
    inner(storage).objects["demo/k"] = bytes(changed), mtime
    with pytest.raises(ObjectUnavailable, match=r"k .*cannot be decrypted"):
        await storage.get("k")


@pytest.mark.parametrize("length", [0, 2, 100, 259, 271, 286])
async def test_a_cut_object_is_never_handed_on(storage: ObjectStorage, length: int) -> None:
    await storage.put("k", b"content of the object")
    raw, mtime = inner(storage).objects["demo/k"]
    inner(storage).objects["demo/k"] = raw[:length], mtime
    with pytest.raises(ObjectUnavailable, match="cannot be decrypted"):
        await storage.get("k")
    assert (await storage.head("k")).size == length


def test_another_key_opens_nothing() -> None:
    sealed = load(pem(), "aes256gcm-rsa", "", "demo").seal(b"content")
    with pytest.raises(Sealed):
        load(pem(number=1), "aes256gcm-rsa", "", "demo").open(sealed)
    with pytest.raises(Sealed):
        load(pem(), "chacha20-rsa", "", "demo").open(sealed)


@pytest.mark.parametrize("pkcs8", [False, True])
def test_every_form_of_the_key(pkcs8: bool) -> None:
    sealed = load(pem(), "aes256gcm-rsa", "", "demo").seal(b"content")
    for passphrase in ("", PASSPHRASE):
        text = pem(pkcs8=pkcs8, passphrase=passphrase)
        assert load(text, "aes256gcm-rsa", passphrase, "demo").open(sealed) == b"content"
        if not passphrase:  # one that is not needed does no harm
            assert load(text, "aes256gcm-rsa", "unneeded", "demo").open(sealed) == b"content"


@pytest.mark.parametrize("pkcs8", [False, True])
@pytest.mark.parametrize(("given", "sentence"), [("", "JFS_RSA_PASSPHRASE"), ("wrong", "does not open it")])
def test_a_missing_or_wrong_passphrase_is_a_sentence(pkcs8: bool, given: str, sentence: str) -> None:
    sealed = setting(encrypt_key=pem(pkcs8=pkcs8, passphrase=PASSPHRASE))
    with pytest.raises(VolumeError, match=sentence) as caught:
        open_volume(sealed, passphrase=given)
    assert "\n" not in str(caught.value)
    assert not given or given not in str(caught.value)
    open_volume(sealed, names_only=True)


def test_what_is_no_rsa_key_is_a_sentence() -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for text, sentence in (("PEM", "no private key in PEM form"), (curve.decode(), "not an RSA key")):
        with pytest.raises(VolumeError, match=sentence):
            load(text, "aes256gcm-rsa", "", "demo")


def test_sm4_is_refused_by_name() -> None:
    with pytest.raises(VolumeError, match="sm4gcm"):
        load(pem(), "sm4gcm", "", "demo")


async def test_a_key_sealed_in_the_record_opens_the_same_objects() -> None:
    plain = setting()
    sealed = plain.with_sealed_secrets(os.urandom)
    assert "BEGIN" not in sealed.encode().decode()
    one, other = open_volume(plain), open_volume(sealed)
    await one.put("k", b"content")
    inner(other).objects.update(inner(one).objects)
    assert bytes(await other.get("k")) == b"content"


async def test_shards_lie_below_the_encryption() -> None:
    opened = open_volume(setting(bucket="b%d", shards=3))
    for number in range(20):
        await opened.put(f"k{number}", b"content")
    shards = opened._inner._inner._shards  # type: ignore[attr-defined]
    assert sum(len(shard.objects) for shard in shards) == 20
    assert all(len(shard.objects) for shard in shards)
    assert all(len(raw) == 7 + 287 for shard in shards for raw, _ in shard.objects.values())
    assert bytes(await opened.get("k7")) == b"content"

"""How an object is encrypted (format §6.3): a fresh key and nonce for each, the key wrapped by the volume's RSA key.

Place: `encrypted.py` calls it for every object; `format` for the key it is given. Invariant: what `seal` makes, any client with the same
private key opens; what does not open is never handed on. Pure but for `os.urandom`; safe in threads: the ciphers let go of the
interpreter's lock while they work on a buffer.
`cryptography` is imported here and nowhere above, so that volumes without encryption do not pay for it.
"""

import os
import struct
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from jfs.errors import ConfigError, VolumeError
from jfs.format.setting import ENCRYPTIONS
from jfs.object.base import Data

_HEAD: Final = struct.Struct(">HB")  # length of the wrapped key, length of the nonce
_KEY: Final = 32
_NONCE: Final = 12
_TAG: Final = 16
_MIN_BITS: Final = 2048  # shorter keys wrap no 32 bytes under OAEP with SHA-256, or are no protection
_OAEP: Final = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=b"keys")
_CIPHERS: Final[dict[str, type[AESGCM] | type[ChaCha20Poly1305]]] = {
    "aes256gcm-rsa": AESGCM,
    "chacha20-rsa": ChaCha20Poly1305,
}


class Sealed(ValueError):
    """An object that this key does not open; the text says how it shows."""


class ObjectCipher:
    """Encrypts and decrypts the objects of one volume."""

    def __init__(self, key: RSAPrivateKey, algorithm: str) -> None:
        self._private = key
        self._public = key.public_key()
        self._cipher = _CIPHERS[algorithm]
        self._wrapped = key.key_size + 7 >> 3
        # Bytes that an object is longer than its content.
        self.overhead = _HEAD.size + self._wrapped + _NONCE + _TAG

    def seal(self, content: Data) -> bytearray:
        """The object that holds *content*."""
        key, nonce = os.urandom(_KEY), os.urandom(_NONCE)
        start = _HEAD.size + self._wrapped + _NONCE
        sealed = bytearray(start + len(content) + _TAG)
        sealed[:start] = _HEAD.pack(self._wrapped, _NONCE) + self._public.encrypt(key, _OAEP) + nonce
        with memoryview(sealed) as whole, whole[start:] as rest:
            self._cipher(key).encrypt_into(nonce, content, None, rest)
        return sealed

    def open(self, sealed: Data) -> bytearray:
        """The content of an object; Sealed when it was made with another key, or was changed."""
        whole = memoryview(sealed)
        if len(whole) < _HEAD.size:
            raise Sealed("it is too short to be encrypted")
        wrapped, length = _HEAD.unpack_from(whole)
        start = _HEAD.size + wrapped
        rest = whole[start + length :]
        if wrapped != self._wrapped or length != _NONCE or len(rest) < _TAG:
            raise Sealed("it is not an object encrypted with the volume's key")
        try:
            key = self._private.decrypt(bytes(whole[_HEAD.size : start]), _OAEP)
            content = bytearray(len(rest) - _TAG)
            self._cipher(key).decrypt_into(bytes(whole[start : start + length]), rest, None, content)
        except (ValueError, InvalidTag) as error:
            raise Sealed("it was encrypted with another key, or changed since") from error
        return content


def load(pem: str, algorithm: str, passphrase: str, volume: str) -> ObjectCipher:
    """The cipher of *volume* from its private key in PEM (PKCS#1, also with DEK-Info, or PKCS#8). VolumeError in one sentence when the
    key does not open with *passphrase*; neither is ever in the text."""
    if algorithm not in _CIPHERS:
        known = ", ".join(ENCRYPTIONS)
        raise VolumeError(
            f"volume {volume} is encrypted with {algorithm}, which this client does not know: it knows {known}"
        )
    try:
        key = _load(pem.encode(), passphrase.encode())
    except ConfigError as error:
        raise VolumeError(f"the private key of volume {volume} cannot be used: {error}") from error
    return ObjectCipher(key, algorithm)


def _load(pem: bytes, passphrase: bytes) -> RSAPrivateKey:
    locked = b"ENCRYPTED" in pem  # in the header of either form
    if locked and not passphrase:
        raise ConfigError("it is protected by a passphrase: give it in the environment variable JFS_RSA_PASSPHRASE")
    try:
        key = load_pem_private_key(pem, passphrase if locked else None)
    except UnsupportedAlgorithm as error:
        raise ConfigError("its kind or its protection is not known: use an RSA key protected with AES-256") from error
    except (ValueError, TypeError) as error:
        if not locked:
            raise ConfigError("it is no private key in PEM form") from error
        if "unknown cipher" in str(error):
            raise ConfigError("its protection is not known: protect it with AES-256 (openssl rsa -aes256)") from error
        raise ConfigError("the passphrase in JFS_RSA_PASSPHRASE does not open it") from error
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError("it is not an RSA key")
    if key.key_size < _MIN_BITS:
        raise ConfigError(f"it has {key.key_size} bits, at least {_MIN_BITS} are needed")
    return key

"""The secrets inside the setting record (format §2.4): base64(nonce ‖ AES-128-GCM ciphertext ‖ tag) under MD5(UUID).

This hides keys from casual view only, since the UUID stands beside them; it exists for compatibility. Pure: nonces are arguments.
`cryptography` is imported at the first use, so that volumes without secrets do not pay for it.
"""

import base64
import binascii
import hashlib

from jfs.errors import VolumeError

NONCE_BYTES = 12


def _key(uuid: str) -> bytes:
    return hashlib.md5(uuid.encode(), usedforsecurity=False).digest()


def seal(uuid: str, plain: str, nonce: bytes) -> str:
    """The stored form of secret *plain* of volume *uuid*; *nonce* is 12 fresh random bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return base64.b64encode(nonce + AESGCM(_key(uuid)).encrypt(nonce, plain.encode(), None)).decode()


def unseal(uuid: str, stored: str) -> str:
    """The secret behind *stored*; VolumeError when it was not sealed for volume *uuid*. The text never shows either form."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        raw = base64.b64decode(stored, validate=True)
        return AESGCM(_key(uuid)).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None).decode()
    except (binascii.Error, InvalidTag, ValueError) as error:
        raise VolumeError(
            f"a secret in the setting record of volume {uuid} cannot be decrypted: the record was edited or damaged; "
            "write it again with `juicefs config`"
        ) from error

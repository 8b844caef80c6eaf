"""RSA keys for the tests of encryption, made once: generating one takes long."""

from functools import cache

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

PASSPHRASE = "open sesame"


@cache
def _key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(*, number: int = 0, pkcs8: bool = False, passphrase: str = "") -> str:
    """Key *number* as PKCS#1 (with DEK-Info when there is a passphrase) or PKCS#8."""
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase:
        protection = BestAvailableEncryption(passphrase.encode())
    form = PrivateFormat.PKCS8 if pkcs8 else PrivateFormat.TraditionalOpenSSL
    return _key(number).private_bytes(Encoding.PEM, form, protection).decode()

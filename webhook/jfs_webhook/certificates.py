"""The webhook's certificate authority and certificate: made, stored in and read from a Secret's data, renewed. Pure.

trust.py asks `next_material` at each round what the Secret should hold; time and lifetimes are arguments.
The rule that makes renewal invisible: the API server must trust an authority before a certificate of it is served.
So a new authority first joins the bundle while the old certificate goes on being served; the certificate follows once
the webhook configuration is seen to hold the new authority; the old one leaves when all replicas have moved on.
Invariant: `repr` and error texts of everything here hold no key.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_BUNDLE, AUTHORITY_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"
# Clocks of nodes differ; a certificate is valid a little before it was made.
CLOCK_SKEW = timedelta(minutes=5)


class BadMaterial(ValueError):
    """The Secret holds something else than the webhook's certificates; the message says what is wrong, not the content."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things are valid; each is renewed when two thirds of it have passed."""

    authority: timedelta = timedelta(days=3 * 365)
    certificate: timedelta = timedelta(days=90)
    # A replaced authority stays in the bundle until the new certificate is this old.
    overlap: timedelta = timedelta(hours=1)
    # An authority must have been in the webhook configurations for so long before a certificate of it is served: API servers hear
    # of a change some time after it was written.
    settling: timedelta = timedelta(seconds=30)
    skew: timedelta = CLOCK_SKEW


@dataclass(frozen=True, slots=True)
class Material:
    """What the Secret holds: the authorities (newest first), the newest one's key, and the served certificate."""

    authorities: tuple[x509.Certificate, ...]
    authority_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def bundle(self) -> bytes:
        """The authorities in PEM, for the webhook configuration's caBundle."""
        return b"".join(pem(authority) for authority in self.authorities)

    @property
    def certificate_pem(self) -> bytes:
        """The served certificate in PEM."""
        return pem(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The served certificate's private key in PEM: secret."""
        return _key_pem(self.key)

    def to_data(self) -> dict[str, str]:
        """The Secret's `data`: secret."""
        contents = {
            AUTHORITY_BUNDLE: self.bundle,
            AUTHORITY_KEY: _key_pem(self.authority_key),
            CERTIFICATE: self.certificate_pem,
            KEY: self.key_pem,
        }
        return {name: base64.b64encode(content).decode() for name, content in contents.items()}


def read_material(data: Mapping[str, str]) -> Material | None:
    """Material from a Secret's data, None if nothing has been stored yet. Raises BadMaterial."""
    if not any(data.get(name) for name in (AUTHORITY_BUNDLE, AUTHORITY_KEY, CERTIFICATE, KEY)):
        return None
    try:
        material = Material(
            tuple(x509.load_pem_x509_certificates(base64.b64decode(data[AUTHORITY_BUNDLE]))),
            _load_key(data[AUTHORITY_KEY]),
            x509.load_pem_x509_certificate(base64.b64decode(data[CERTIFICATE])),
            _load_key(data[KEY]),
        )
    except KeyError as error:
        raise BadMaterial(f"the key {error.args[0]} is missing") from None
    except (ValueError, TypeError):
        # The cause is not chained: texts of the parser may quote what it read.
        raise BadMaterial("a certificate or key cannot be read") from None
    if material.authority_key.public_key() != material.authorities[0].public_key():
        raise BadMaterial(f"{AUTHORITY_KEY} is not the key of the first certificate in {AUTHORITY_BUNDLE}")
    if material.key.public_key() != material.certificate.public_key():
        raise BadMaterial(f"{KEY} is not the key of {CERTIFICATE}")
    if not any(_issued(authority, material.certificate) for authority in material.authorities):
        raise BadMaterial(f"{CERTIFICATE} was issued by none of the certificates in {AUTHORITY_BUNDLE}")
    return material


def next_material(
    current: Material | None,
    trusted: Collection[bytes],
    hosts: Sequence[str],
    now: datetime,
    lifetimes: Lifetimes,
) -> Material:
    """What should be stored now; `current` itself if nothing is to be changed.

    `trusted` are the fingerprints of the authorities that every API server trusts by now, `hosts` the DNS names
    the API server may use.
    """
    if current is None or current.certificate.not_valid_after_utc <= now:
        return _new_material(hosts, now, lifetimes)
    newest, certificate = current.authorities[0], current.certificate
    if _due(newest, now):
        authority, key = make_authority(now, lifetimes.authority, lifetimes.skew)
        unexpired = tuple(each for each in current.authorities if each.not_valid_after_utc > now)
        return Material((authority, *unexpired), key, certificate, current.key)
    from_newest = _issued(newest, certificate)
    renewal = not from_newest or _due(certificate, now) or not set(hosts) <= set(_hosts(certificate))
    if renewal and (from_newest or fingerprint(newest) in trusted):
        issued, key = issue(newest, current.authority_key, hosts, now, lifetimes.certificate, lifetimes.skew)
        return Material(current.authorities, current.authority_key, issued, key)
    moved_on = now - certificate.not_valid_before_utc > lifetimes.overlap + lifetimes.skew
    if from_newest and len(current.authorities) > 1 and moved_on:
        return Material((newest,), current.authority_key, certificate, current.key)
    return current


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate."""
    return certificate.fingerprint(hashes.SHA256())


def fingerprints(bundle: bytes) -> frozenset[bytes]:
    """Fingerprints of a PEM bundle; of one that cannot be read, none."""
    try:
        return frozenset(fingerprint(each) for each in x509.load_pem_x509_certificates(bundle))
    except ValueError:
        return frozenset()


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _new_material(hosts: Sequence[str], now: datetime, lifetimes: Lifetimes) -> Material:
    authority, authority_key = make_authority(now, lifetimes.authority, lifetimes.skew)
    certificate, key = issue(authority, authority_key, hosts, now, lifetimes.certificate, lifetimes.skew)
    return Material((authority,), authority_key, certificate, key)


def make_authority(
    now: datetime, lifetime: timedelta, skew: timedelta = CLOCK_SKEW
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed authority (ECDSA P-256) that may only issue end certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # A name of its own for each authority: with equal names OpenSSL may try the wrong one of a bundle.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"juicefs-webhook-ca-{serial:x}"[:64])])
    certificate = (
        _builder(name, name, serial, key.public_key(), now, lifetime, skew)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def issue(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    now: datetime,
    lifetime: timedelta,
    skew: timedelta = CLOCK_SKEW,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A server certificate for the hosts, valid no longer than its authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(lifetime, authority.not_valid_after_utc - now)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "juicefs-webhook")])
    certificate = (
        _builder(name, authority.subject, x509.random_serial_number(), key.public_key(), now, lifetime, skew)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    serial: int,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
    skew: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(serial)
        .public_key(key)
        .not_valid_before(now - skew)
        .not_valid_after(now + lifetime)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _due(certificate: x509.Certificate, now: datetime) -> bool:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now >= certificate.not_valid_before_utc + lifetime * 2 / 3


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _load_key(encoded: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(base64.b64decode(encoded), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic-curve key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""Certificates: what is made, when it is renewed, and that nobody ever meets one he does not trust."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from jfs_webhook.certificates import (
    BadMaterial,
    Lifetimes,
    Material,
    fingerprint,
    fingerprints,
    next_material,
    read_material,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOSTS = ["hook.system.svc", "hook.system"]
LIFETIMES = Lifetimes(timedelta(days=300), timedelta(days=30), timedelta(hours=1))
NOBODY: frozenset[bytes] = frozenset()


def made() -> Material:
    return next_material(None, NOBODY, HOSTS, NOW, LIFETIMES)


def trusted(material: Material) -> frozenset[bytes]:
    return fingerprints(material.bundle)


def verify(material: Material, now: datetime, host: str = HOSTS[0]) -> None:
    """As a TLS client with the bundle does."""
    verifier = (
        PolicyBuilder().store(Store(list(material.authorities))).time(now).build_server_verifier(x509.DNSName(host))
    )
    verifier.verify(material.certificate, [])


def test_first_material_verifies_for_every_host() -> None:
    material = made()
    for host in HOSTS:
        verify(material, NOW, host)
    with pytest.raises(x509.verification.VerificationError):
        verify(material, NOW, "other.system.svc")


def test_material_survives_the_secret_and_hides_its_keys() -> None:
    material = made()
    data = material.to_data()
    again = read_material(data)
    assert again is not None
    assert again.to_data() == data
    shown = repr(material)
    for name in ("ca.key", "tls.key"):
        key = base64.b64decode(data[name])
        assert b"BEGIN PRIVATE KEY" in key
        assert "PRIVATE" not in shown
    assert read_material({}) is None
    assert read_material({"ca.crt": ""}) is None


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_damaged_secrets_are_told_without_their_content(name: str) -> None:
    data, other = made().to_data(), made().to_data()
    without = {key: value for key, value in data.items() if key != name}
    for damaged in (without, data | {name: "!"}, data | {name: "c2VjcmV0"}, data | {name: other[name]}):
        with pytest.raises(BadMaterial) as caught:
            read_material(damaged)
        assert "c2VjcmV0" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_nothing_changes_while_nothing_is_due() -> None:
    material = made()
    assert next_material(material, trusted(material), HOSTS, NOW + timedelta(days=19), LIFETIMES) is material


def test_certificate_is_renewed_by_the_same_authority() -> None:
    material = made()
    later = NOW + timedelta(days=21)
    renewed = next_material(material, trusted(material), HOSTS, later, LIFETIMES)
    assert renewed.authorities == material.authorities
    assert renewed.certificate != material.certificate
    verify(renewed, later)


def test_certificate_is_renewed_for_a_new_name() -> None:
    material = made()
    renewed = next_material(material, trusted(material), [*HOSTS, "new.system.svc"], NOW, LIFETIMES)
    verify(renewed, NOW, "new.system.svc")


def test_new_authority_is_trusted_before_it_is_served() -> None:
    long = replace(LIFETIMES, certificate=timedelta(days=290))
    first = next_material(None, NOBODY, HOSTS, NOW, long)
    first = next_material(first, trusted(first), HOSTS, NOW + timedelta(days=195), long)
    later = NOW + timedelta(days=205)

    both = next_material(first, trusted(first), HOSTS, later, LIFETIMES)
    assert len(both.authorities) == 2
    assert both.certificate == first.certificate
    assert both.authorities[1] == first.authorities[0]
    # Not before the configuration is seen with the new authority …
    assert next_material(both, trusted(first), HOSTS, later, LIFETIMES) is both
    # … then the certificate follows, and verifies for those who still have both …
    moved = next_material(both, trusted(both), HOSTS, later, LIFETIMES)
    assert moved.authorities == both.authorities
    verify(replace(moved, authorities=(both.authorities[0],)), later)
    assert next_material(moved, trusted(moved), HOSTS, later + timedelta(minutes=30), LIFETIMES) is moved
    # … and the old one leaves when every replica has had the time to follow.
    done = next_material(moved, trusted(moved), HOSTS, later + timedelta(hours=2), LIFETIMES)
    assert done.authorities == (both.authorities[0],)
    assert done.certificate == moved.certificate


def test_after_a_long_sleep_everything_is_new_at_once() -> None:
    material = made()
    later = NOW + timedelta(days=1000)
    fresh = next_material(material, trusted(material), HOSTS, later, LIFETIMES)
    verify(fresh, later)
    assert fingerprint(fresh.authorities[0]) not in trusted(material)


def test_unreadable_bundles_are_no_bundles() -> None:
    assert fingerprints(b"") == frozenset()
    assert fingerprints(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n") == frozenset()

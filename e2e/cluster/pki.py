"""Certificates and kubeconfigs of the cluster: one CA signs everything, keys are EC P-256, nothing outlives the state folder."""

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.layout import API, API_SERVICE_IP, NODE, NODE_IP

# kubeconfig name -> (common name, organization); the built-in RBAC roles go by these names
USERS: dict[str, tuple[str, str | None]] = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "proxy": ("system:kube-proxy", None),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "apiserver-kubelet": ("apiserver-kubelet-client", "system:masters"),
}
SERVERS = {
    "apiserver": ["kubernetes.default.svc", "localhost", NODE_IP, API_SERVICE_IP, "127.0.0.1"],
    "kubelet-server": [NODE, NODE_IP],
}
LIFETIME = datetime.timedelta(days=30)


def write_all(folder: Path) -> None:
    """Writes certificates, private keys (mode 0600) and one kubeconfig per user into the new folder."""
    folder.mkdir(parents=True, mode=0o700)
    ca_key = _key(folder / "ca.key")
    ca = _sign(folder / "ca.crt", ca_key, ca_key, ("onenode-ca", None), issuer=None)
    for name, alternatives in SERVERS.items():
        _sign(folder / f"{name}.crt", _key(folder / f"{name}.key"), ca_key, (name, None), ca, alternatives)
    for name, subject in USERS.items():
        _sign(folder / f"{name}.crt", _key(folder / f"{name}.key"), ca_key, subject, ca)
        kubeconfig = folder / f"{name}.kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(json.dumps(_kubeconfig(folder, name)))
    service_account = _key(folder / "sa.key")
    (folder / "sa.pub").write_bytes(
        service_account.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    return key


def _sign(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    subject: tuple[str, str | None],
    issuer: x509.Certificate | None,
    alternatives: Sequence[str] = (),
) -> x509.Certificate:
    common, organization = subject
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        names.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    own = x509.Name(names)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.subject if issuer else own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if alternatives:
        names_and_addresses = x509.SubjectAlternativeName([_alternative(name) for name in alternatives])
        builder = builder.add_extension(names_and_addresses, critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _kubeconfig(folder: Path, user: str) -> dict[str, Any]:
    def data(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    credentials = {"client-certificate-data": data(f"{user}.crt"), "client-key-data": data(f"{user}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "onenode", "cluster": {"server": API, "certificate-authority-data": data("ca.crt")}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "onenode", "context": {"cluster": "onenode", "user": user}}],
        "current-context": "onenode",
    }

"""Keeps the API server's trust in this webhook: Secret → served certificate → caBundle, again and again.

One round reads the Secret and the webhook configurations (the mutating one, and the validating one of the same name if there
is one), stores what certificates.next_material wants (the Secret's
resourceVersion decides between replicas: the loser takes the winner's), serves it, and writes the bundle of authorities
into every entry of a configuration that lacks it. Rounds repeat for ever, so that a replica follows a renewal made by
another, and a configuration that was overwritten (by a helm upgrade, by hand) is put right again.
Invariant: `ready` is set only when the served certificate's authority has been written to the configurations.
Concurrency: one task runs the rounds; the TLS context it fills serves new connections at once, old ones keep theirs.
"""

import asyncio
import base64
import binascii
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote

from jfs_webhook.api import ApiError
from jfs_webhook.certificates import (
    BadMaterial,
    Lifetimes,
    Material,
    fingerprints,
    next_material,
    read_material,
)
from jfs_webhook.memfile import memory_file
from jfs_webhook.settings import JsonObject

ROUND_SECONDS = 10.0
# Until the first success somebody waits for this webhook.
EAGER_SECONDS = 1.0

_MUTATING, _VALIDATING = "mutatingwebhookconfigurations", "validatingwebhookconfigurations"

log = logging.getLogger("jfs_webhook.trust")


class Writer(Protocol):
    """What trust needs of the API client; all raise ApiError."""

    async def get(self, path: str) -> JsonObject | None:
        """An object or None."""
        ...

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        """POST."""
        ...

    async def replace(self, path: str, body: JsonObject) -> JsonObject:
        """PUT."""
        ...

    async def patch(self, path: str, operations: list[JsonObject]) -> JsonObject:
        """JSON patch."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """The objects this webhook is known by."""

    service: str
    namespace: str
    secret: str
    configuration: str

    @property
    def hosts(self) -> list[str]:
        """DNS names under which the API server and people reach the Service."""
        host = f"{self.service}.{self.namespace}.svc"
        return [host, f"{host}.cluster.local", f"{self.service}.{self.namespace}"]


@dataclass(slots=True)
class _State:
    served: Material | None = None
    ready: bool = False
    complaint: str = field(default="not tried yet")
    # Authorities that the configurations hold, and since when this replica has seen them there.
    seen: dict[bytes, datetime] = field(default_factory=dict[bytes, datetime])


class Trust:
    """The webhook's certificate as a process that goes on."""

    def __init__(
        self,
        client: Writer,
        identity: Identity,
        *,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._client = client
        self._identity = identity
        self._lifetimes = lifetimes or Lifetimes()
        self._clock = clock
        self._state = _State()

    @property
    def ready(self) -> bool:
        """Whether the API server trusts what is served."""
        return self._state.ready

    @property
    def complaint(self) -> str:
        """Why not, in one sentence without secrets."""
        return self._state.complaint

    @property
    def certificate_ends(self) -> datetime | None:
        """When the served certificate stops being valid."""
        return self._state.served.certificate.not_valid_after_utc if self._state.served else None

    async def run(self, round_seconds: float = ROUND_SECONDS) -> None:
        """Rounds until cancelled; failures are logged when they begin or change, and retried."""
        while True:
            try:
                await self.round()
            except (ApiError, BadMaterial) as error:
                if str(error) != self._state.complaint:
                    log.warning("%s", error)
                self._state.complaint = str(error)
            await asyncio.sleep(round_seconds if self._state.ready else min(EAGER_SECONDS, round_seconds))

    async def round(self) -> None:
        """One round. Raises ApiError; what was achieved before stays."""
        for _ in range(10):
            configurations = await self._configurations()
            stored = await self._secret()
            wanted = self._wanted(stored, list(configurations.values()))
            if wanted is not None and not await self._store(stored, wanted):
                continue  # another replica was faster: take what it stored
            material = wanted or read_material(stored.get("data") or {})
            if material is None:
                continue
            self._serve(material)
            if not all([await self._trust(path, each, material) for path, each in configurations.items()]):
                continue
            if not self._state.ready:
                log.info("serving the certificate that %s trusts", self._identity.configuration)
            self._state.ready, self._state.complaint = True, ""
            return
        raise ApiError(
            f"Secret {self._identity.secret} or webhook configuration {self._identity.configuration} is being "
            "changed by somebody else all the time; trying again",
            409,
        )

    def _wanted(self, secret: JsonObject, configurations: list[JsonObject]) -> Material | None:
        """Material to store, None if the Secret's is right."""
        try:
            current = read_material(secret.get("data") or {})
        except BadMaterial as error:
            log.warning("Secret %s is made anew, because %s", self._identity.secret, error)
            current = None
        trusted = self._trusted(configurations)
        wanted = next_material(current, trusted, self._identity.hosts, self._clock(), self._lifetimes)
        return None if wanted is current else wanted

    def _trusted(self, configurations: list[JsonObject]) -> frozenset[bytes]:
        """Authorities that every API server trusts: those that have been in every entry for a while."""
        entries = [entry for each in configurations for entry in each.get("webhooks") or []]
        # What every entry holds: the API server picks any of them.
        bundles = [fingerprints(_bundle(entry)) for entry in entries]
        held = frozenset[bytes].intersection(*bundles) if bundles else frozenset[bytes]()
        now = self._clock()
        self._state.seen = {each: self._state.seen.get(each, now) for each in held}
        return frozenset(each for each, since in self._state.seen.items() if now - since >= self._lifetimes.settling)

    @property
    def _secrets(self) -> str:
        return f"/api/v1/namespaces/{quote(self._identity.namespace, '')}/secrets"

    async def _secret(self) -> JsonObject:
        found = await self._client.get(f"{self._secrets}/{quote(self._identity.secret, '')}")
        return found if found is not None else {}

    async def _store(self, found: JsonObject, material: Material) -> bool:
        """Write the Secret; False if another replica wrote it since it was read."""
        metadata = found.get("metadata") or {"name": self._identity.secret, "namespace": self._identity.namespace}
        secret = {**found, "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": material.to_data()}
        try:
            if found:
                await self._client.replace(f"{self._secrets}/{quote(self._identity.secret, '')}", secret)
            else:
                await self._client.create(self._secrets, {**secret, "type": "Opaque"})
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        log.info("stored new certificates in Secret %s", self._identity.secret)
        return True

    def _serve(self, material: Material) -> None:
        if self._state.served is not None and self._state.served.certificate == material.certificate:
            return
        with memory_file(material.certificate_pem) as certificate, memory_file(material.key_pem) as key:
            self.tls.load_cert_chain(certificate, key)
        self._state.served = material
        log.info("serving a certificate valid until %s", material.certificate.not_valid_after_utc.isoformat())

    async def _configurations(self) -> dict[str, JsonObject]:
        """By path: the mutating configuration, and the validating one of its name, which an installation may leave out."""
        found = await self._client.get(self._path(_MUTATING))
        if found is None:
            raise ApiError(
                f"MutatingWebhookConfiguration {self._identity.configuration} does not exist; install the chart", 404
            )
        validating = await self._client.get(self._path(_VALIDATING))
        return {
            self._path(_MUTATING): found,
            **({} if validating is None else {self._path(_VALIDATING): validating}),
        }

    def _path(self, kind: str) -> str:
        name = quote(self._identity.configuration, "")
        return f"/apis/admissionregistration.k8s.io/v1/{kind}/{name}"

    async def _trust(self, path: str, configuration: JsonObject, material: Material) -> bool:
        """Write the bundle where it is missing; False if the configuration changed since it was read."""
        bundle = base64.b64encode(material.bundle).decode()
        lacking = [
            index
            for index, entry in enumerate(configuration.get("webhooks") or [])
            if _bundle(entry) != material.bundle
        ]
        if not lacking:
            return True
        version = (configuration.get("metadata") or {}).get("resourceVersion")
        operations: list[JsonObject] = [{"op": "test", "path": "/metadata/resourceVersion", "value": version}]
        operations += [
            {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle} for index in lacking
        ]
        try:
            await self._client.patch(path, operations)
        except ApiError as error:
            if error.status in (409, 422):
                return False
            raise
        log.info("wrote the certificate authority into %s", path.removeprefix("/apis/admissionregistration.k8s.io/v1/"))
        return True


def _bundle(entry: JsonObject) -> bytes:
    try:
        return base64.b64decode((entry.get("clientConfig") or {}).get("caBundle") or "")
    except (binascii.Error, TypeError, ValueError):
        return b""

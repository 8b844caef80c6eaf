"""What there is to know about a pod or a JuiceFSVolume, read from the API server once, in one go.

Each read ends as `Read`: the object, nothing, or the sentence that says which right is missing – a tenant has fewer rights than
the operator, and what cannot be looked at must not look like what is well. Blocking.
"""

import base64
import contextlib
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any, Final

from jfs_api import names

from jfs_operator.api import (
    CLAIMS,
    EVENTS,
    JUICEFS_NODES,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    Api,
    ApiError,
    Object,
    Resource,
    annotation,
    metadata,
    uid_of,
)

NAMESPACES: Final = Resource("v1", "namespaces", "Namespace", namespaced=False)
CSI_NODES: Final = Resource("storage.k8s.io/v1", "csinodes", "CSINode", namespaced=False)
WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io/v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    namespaced=False,
)
WEBHOOK: Final = "juicefs-webhook"
_TLS_SECONDS: Final = 3.0
_USUAL_NAMESPACE: Final = "juicefs-system"  # as the README installs it
_FORBIDDEN: Final = re.compile(
    r'cannot (\w+) resource "([\w/]+)" in API group "([\w.]*)" (?:at the cluster scope|in the namespace "([\w-]+)")'
)


@dataclass(frozen=True, slots=True)
class Read:
    """An object, or why there is none: `denied` is empty when it does not exist."""

    body: Object | None = None
    denied: str = ""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One volume: as a pod has it, or a JuiceFSVolume by itself."""

    name: str  # in the pod's spec, or the JuiceFSVolume's
    claim_name: str = ""  # empty for an inline volume of ours
    claim: Read = Read()
    volume: Read = Read()  # the PersistentVolume
    juicefs: Read = Read()  # the JuiceFSVolume
    juicefs_name: str = ""  # and its name, if one is known or supposed
    secret: Read | None = None  # the JuiceFSSecret, when it names one

    @property
    def persistent_volume(self) -> str:
        return str((self.claim.body or {}).get("spec", {}).get("volumeName") or "") if self.claim.body else ""


@dataclass(frozen=True, slots=True)
class Facts:
    """`pod` is empty when a JuiceFSVolume was asked about."""

    namespace: str
    driver: str
    system: str  # the release's namespace
    pod: Object = field(default_factory=dict)
    labels: Read = Read()  # the Namespace
    webhook: Read = Read()
    webhook_trouble: str = ""  # what a connection to it showed; empty when it worked or could not be tried
    volumes: tuple[VolumeFacts, ...] = ()
    csi_node: Read = Read()
    node: Read = Read()  # the JuiceFSNode
    parts: tuple[Object, ...] | None = ()  # the release's pods; None when they may not be listed
    parts_denied: str = ""
    events: tuple[Object, ...] = ()


class Collector:
    """`driver` is the CSI driver's name; `system` the release's namespace, or None to find it out."""

    def __init__(self, api: Api, driver: str, system: str | None) -> None:
        self._api, self._driver = api, driver
        self._webhook = self._get(WEBHOOKS, None, WEBHOOK)
        self._system = system or _service_namespace(self._webhook.body) or _USUAL_NAMESPACE

    def pod(self, namespace: str, name: str) -> Facts | None:
        """None when there is no such pod. Raises ApiError when it may not be read."""
        pod = self._api.get(PODS, namespace, name)
        if pod is None:
            return None
        volumes = [
            facts for each in (pod["spec"].get("volumes") or []) if (facts := self._pod_volume(namespace, name, each))
        ]
        node = str(pod["spec"].get("nodeName") or "")
        parts, denied = self._parts()
        events = self._events(namespace, "Pod", uid_of(pod))
        for facts in volumes:
            if facts.persistent_volume:
                events += self._events("default", "PersistentVolume", "", facts.persistent_volume)
        return Facts(
            namespace,
            self._driver,
            self._system,
            pod,
            labels=self._get(NAMESPACES, None, namespace),
            webhook=self._webhook,
            webhook_trouble=_connect(self._webhook.body),
            volumes=tuple(volumes),
            csi_node=self._get(CSI_NODES, None, node) if node else Read(),
            node=self._get(JUICEFS_NODES, self._system, node) if node else Read(),
            parts=parts,
            parts_denied=denied,
            events=tuple(events),
        )

    def volume(self, namespace: str, name: str) -> Facts | None:
        """None when there is no such JuiceFSVolume. Raises ApiError when it may not be read."""
        body = self._api.get(JUICEFS_VOLUMES, namespace, name)
        if body is None:
            return None
        claim = self._get(CLAIMS, namespace, name)
        facts = VolumeFacts(
            name,
            name,
            claim,
            self._persistent_volume(claim.body),
            Read(body),
            name,
            self._juicefs_secret(namespace, body),
        )
        parts, denied = self._parts()
        events = self._events(namespace, names.VOLUME_KIND, uid_of(body))
        if facts.persistent_volume:
            events += self._events("default", "PersistentVolume", "", facts.persistent_volume)
        return Facts(
            namespace,
            self._driver,
            self._system,
            volumes=(facts,),
            parts=parts,
            parts_denied=denied,
            events=tuple(events),
        )

    def _pod_volume(self, namespace: str, pod: str, volume: dict[str, Any]) -> VolumeFacts | None:
        """None for one that cannot be of our driver."""
        name = str(volume.get("name"))
        if csi := volume.get("csi"):
            inline = csi.get("driver") == self._driver and name != names.CONTROL_VOLUME
            return VolumeFacts(name) if inline else None
        if source := volume.get("persistentVolumeClaim"):
            claim_name = str(source.get("claimName"))
        elif volume.get("ephemeral"):
            claim_name = f"{pod}-{name}"
        else:
            return None
        claim = self._get(CLAIMS, namespace, claim_name)
        persistent = self._persistent_volume(claim.body)
        csi = ((persistent.body or {}).get("spec") or {}).get("csi") or {}
        if persistent.body is not None and csi.get("driver") != self._driver:
            return None
        owner = annotation(claim.body, names.VOLUME_ANNOTATION) if claim.body is not None else ""
        juicefs_name = owner.partition("/")[2] or claim_name
        juicefs = self._get(JUICEFS_VOLUMES, namespace, juicefs_name)
        if persistent.body is None and claim.body is not None and juicefs.body is None and not juicefs.denied:
            # An unbound claim, or one whose PersistentVolume may not be read: ours only if something says so.
            provisioner = annotation(claim.body, "volume.kubernetes.io/storage-provisioner")
            if provisioner != self._driver and not owner:
                return None
        secret = self._juicefs_secret(namespace, juicefs.body) if juicefs.body is not None else None
        return VolumeFacts(name, claim_name, claim, persistent, juicefs, juicefs_name, secret)

    def _persistent_volume(self, claim: Object | None) -> Read:
        name = ((claim or {}).get("spec") or {}).get("volumeName")
        return self._get(PERSISTENT_VOLUMES, None, name) if name else Read()

    def _juicefs_secret(self, namespace: str, volume: Object) -> Read | None:
        reference = (volume.get("spec") or {}).get("secretRef") or {}
        if reference.get("kind") != names.SECRET_KIND:
            return None
        return self._get(JUICEFS_SECRETS, namespace, str(reference.get("name")))

    def _parts(self) -> tuple[tuple[Object, ...] | None, str]:
        try:
            return tuple(self._api.list(PODS, self._system, labels="app.kubernetes.io/name=juicefs-sidecar")), ""
        except ApiError as error:
            return None, _denied(error)

    def _events(self, namespace: str, kind: str, uid: str, name: str = "") -> list[Object]:
        fields = f"involvedObject.kind={kind}"
        fields += f",involvedObject.uid={uid}" if uid else f",involvedObject.name={name}"
        with contextlib.suppress(ApiError):  # events explain; nothing is decided by their absence
            return self._api.list(EVENTS, namespace, fields=fields)
        return []

    def _get(self, resource: Resource, namespace: str | None, name: str) -> Read:
        try:
            return Read(self._api.get(resource, namespace, name))
        except ApiError as error:
            return Read(denied=_denied(error))


def _denied(error: ApiError) -> str:
    """Which right is missing, in a few words where the API server says it in its usual ones."""
    found = _FORBIDDEN.search(str(error))
    if found is None:
        return str(error)
    verb, plural, group, namespace = found.groups()
    place = f"in namespace {namespace}" if namespace else "in the cluster"
    return f"you may not {verb} {plural}{f'.{group}' if group else ''} {place}"


def _service_namespace(configuration: Object | None) -> str:
    for webhook in (configuration or {}).get("webhooks") or []:
        service = (webhook.get("clientConfig") or {}).get("service") or {}
        if service.get("namespace"):
            return str(service["namespace"])
    return ""


def ca_bundle(configuration: Object) -> bytes:
    """The PEM certificates that the API server trusts for the webhook; empty when there are none."""
    for webhook in configuration.get("webhooks") or []:
        text = (webhook.get("clientConfig") or {}).get("caBundle")
        if text:
            return base64.b64decode(text)
    return b""


def _connect(configuration: Object | None) -> str:
    """Speak TLS to the webhook as the API server does. From outside the cluster its name leads nowhere: no finding then."""
    namespace, bundle = _service_namespace(configuration), ca_bundle(configuration or {})
    if not namespace or not bundle:
        return ""
    host = f"{WEBHOOK}.{namespace}.svc"
    try:
        address = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)[0][4]
    except OSError:
        return ""
    try:
        context = ssl.create_default_context(cadata=bundle.decode())
        with (
            socket.create_connection((str(address[0]), 443), _TLS_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        return f"a TLS connection to {host} fails: {error}"


def name_of(body: Object) -> str:
    return str(metadata(body).get("name", ""))

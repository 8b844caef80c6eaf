"""Follows the references of a spec to credentials: Secret, JuiceFSSecret, or plain fields with `valueFrom`.

Reads through a function that the reconciler gives, keeps nothing, and reports which objects were looked at (also the missing
ones), so that a later change of any of them brings the dependent object back.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from jfs_api import names
from jfs_api.credentials import Credentials, CredentialsError
from jfs_api.sources import FileSystemFields, resolve, secret_names
from jfs_api.volume import JuiceFSVolumeSpec, SpecError, parse_secret_spec

from jfs_operator.api import JUICEFS_SECRETS, SECRETS, Object, Resource, metadata, uid_of
from jfs_operator.references import Reference
from jfs_operator.steps import Resolution

Read = Callable[[Resource, str | None, str], Awaitable[Object | None]]


@dataclass(slots=True)
class Resolver:
    """One resolution; `references` fills up while it reads."""

    read: Read
    namespace: str
    references: set[Reference] = field(default_factory=set)
    _versions: list[str] = field(default_factory=list)

    async def volume(self, body: Object, spec: JuiceFSVolumeSpec) -> Resolution:
        """The credentials of a JuiceFSVolume."""
        if spec.file_system is not None:
            # A change of the plain fields has no version of its own but the volume's.
            self._versions.append(f"fields@{metadata(body).get('generation', 0)}")
            return await self._fields(spec.file_system)
        assert spec.secret_ref is not None
        if spec.secret_ref.kind == names.SECRET_KIND:
            return await self._juicefs_secret(spec.secret_ref.name)
        return await self.secret(spec.secret_ref.name)

    async def secret(self, name: str) -> Resolution:
        """The credentials in a Secret with JuiceFS CSI's keys."""
        found = await self._read(SECRETS, name)
        if found is None:
            return self._failed(
                "SecretNotFound", f"the Secret {name!r} does not exist in the namespace {self.namespace}"
            )
        try:
            return self._found(Credentials.from_secret(found.get("data") or {}))
        except CredentialsError as error:
            return self._failed(error.reason, f"the Secret {name!r}: {error}")

    async def juicefs_secret(self, body: Object) -> Resolution:
        """The credentials that a JuiceFSSecret describes."""
        try:
            fields = parse_secret_spec(body.get("spec") or {})
        except SpecError as error:
            return self._failed("InvalidSpec", str(error))
        return await self._fields(fields)

    async def _juicefs_secret(self, name: str) -> Resolution:
        found = await self._read(JUICEFS_SECRETS, name)
        if found is None:
            return self._failed(
                "SecretNotFound", f"the JuiceFSSecret {name!r} does not exist in the namespace {self.namespace}"
            )
        resolution = await self.juicefs_secret(found)
        if resolution.credentials is not None:
            return resolution
        return self._failed(resolution.reason, f"the JuiceFSSecret {name!r}: {resolution.message}")

    async def _fields(self, fields: FileSystemFields) -> Resolution:
        found = {name: await self._read(SECRETS, name) for name in sorted(secret_names(fields))}
        data = {name: None if secret is None else secret.get("data") or {} for name, secret in found.items()}
        try:
            return self._found(resolve(fields, data))
        except CredentialsError as error:
            return self._failed(error.reason, str(error))

    async def _read(self, resource: Resource, name: str) -> Object | None:
        self.references.add(Reference(resource.plural, self.namespace, name))
        found = await self.read(resource, self.namespace, name)
        if found is not None:
            # A JuiceFSSecret's status changes its resourceVersion, its content only the generation.
            head = metadata(found)
            version = head["resourceVersion"] if resource is SECRETS else head.get("generation", 0)
            self._versions.append(f"{resource.kind}/{name}:{uid_of(found)}@{version}")
        return found

    def _found(self, credentials: Credentials) -> Resolution:
        return Resolution(credentials, self._fingerprint())

    def _failed(self, reason: str, message: str) -> Resolution:
        return Resolution(None, self._fingerprint(), reason, message)

    def _fingerprint(self) -> str:
        return ",".join(self._versions)

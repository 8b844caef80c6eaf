"""What may change in the setting record of a volume, and what a change brings with it (format §2.3, §2.6, §10.2). Pure."""

from typing import Any, Final

from jfs.errors import ConfigError
from jfs.format.constants import META_VERSION
from jfs.format.setting import MIN_VERSION_ACL, Setting
from jfs.format.versions import is_older

# Members that `format` on an existing volume must not change unless forced (format §2.3).
FIXED: Final = (
    *("Name", "BlockSize", "Compression", "Shards", "HashPrefix", "MetaVersion"),
    *("EncryptKey", "EncryptAlgo"),  # which the real client lets go, together with all data
)


def changed_fixed(old: Setting, new: Setting) -> list[str]:
    """Names of the members that differ though a volume must keep them (format §2.3)."""

    def normal(setting: Setting, name: str) -> Any:
        match name:
            case "Compression":
                return setting.compression
            case "BlockSize":
                return setting.block_size
            case "Shards":
                return setting.shards
            case "MetaVersion":
                return setting.meta_version or META_VERSION
            case "EncryptKey":
                return setting.encrypt_key
            case "EncryptAlgo":  # means nothing without a key
                return setting.encrypt_algo if old.is_encrypted and new.is_encrypted else ""
        return setting.members.get(name) or 0

    return [name for name in FIXED if normal(old, name) != normal(new, name)]


def acl_members(setting: Setting, on: bool) -> dict[str, Any]:
    """The members that turn ACLs on; ConfigError for turning them off, since inodes may have some (format §10.2)."""
    if not on and setting.enable_acl:
        raise ConfigError(f"POSIX ACLs of volume {setting.name} cannot be turned off again")
    members: dict[str, Any] = {"EnableACL": on}
    if on and is_older(setting.min_client_version or "0.0.0", MIN_VERSION_ACL):
        members["MinClientVersion"] = MIN_VERSION_ACL
    return members

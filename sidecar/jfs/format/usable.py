"""Whether this client may use a volume, by its setting record: identity, format, version bounds, features (format §2.3, §2.6, §11.3).
Pure.

Reading a volume as if a feature were off would break what its other clients rely on: such volumes are refused with a sentence.
"""

from typing import Final

from jfs.errors import VolumeError
from jfs.format.constants import CLIENT_VERSION, META_VERSION
from jfs.format.setting import ENCRYPTIONS, Setting
from jfs.format.versions import is_older


def check_identity(setting: Setting, uuid: str) -> None:
    """VolumeError when *setting* is not that of volume *uuid* or is in a newer format (what a heartbeat checks, format §2.3)."""
    if setting.uuid != uuid:
        raise VolumeError(f"the database now holds volume {setting.name} ({setting.uuid}) instead of volume {uuid}")
    if setting.meta_version > META_VERSION:
        raise VolumeError(
            f"volume {setting.name} has metadata format {setting.meta_version}, this client knows {META_VERSION}: "
            "use a newer client"
        )


def check_versions(setting: Setting, version: str = CLIENT_VERSION) -> None:
    """VolumeError when the volume's format or its version bounds exclude a client of *version* (format §2.6)."""
    check_identity(setting, setting.uuid)
    volume, own = f"volume {setting.name}", version
    if setting.min_client_version and is_older(own, setting.min_client_version):
        raise VolumeError(
            f"{volume} demands a client of version {setting.min_client_version} or newer, this one is {own}: upgrade the client"
        )
    if setting.max_client_version and is_older(setting.max_client_version, own):
        raise VolumeError(
            f"{volume} demands a client of version {setting.max_client_version} or older, this one is {own}: "
            "use an older client or raise the limit with `juicefs config --max-client-version`"
        )


def check_usable(setting: Setting, version: str = CLIENT_VERSION) -> None:
    """VolumeError when this client must not touch the volume: its format, its version bounds or a feature not kept here.

    Reading such a volume as if the feature were off would break what its other clients rely on (format §11.3).
    """
    check_versions(setting, version)
    volume = f"volume {setting.name}"
    for member, feature in _UNSUPPORTED.items():
        if setting.members.get(member):
            raise VolumeError(
                f"{volume} uses {feature}, which this client does not support: mount it with JuiceFS itself"
            )
    if setting.is_encrypted and setting.encrypt_algo not in ENCRYPTIONS:
        raise VolumeError(
            f"{volume} is encrypted with {setting.encrypt_algo}, which this client does not support: mount it with JuiceFS itself"
        )


_UNSUPPORTED: Final = {
    "RangerRestUrl": "Apache Ranger permissions",
    "KerbConf": "Kerberos",
}

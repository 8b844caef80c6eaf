"""The content of `.config`: the running configuration as JSON, members and order as the real client writes them (format §8.1).

Tools read Pid, Format.Name, Version, Meta.Sid. Secrets are the word `removed`. Pure.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from jfs.format.constants import CLIENT_VERSION
from jfs.fuse.squash import Owner
from jfs.mount.config import MountConfig
from jfs.mount.data_path import cache_roots

_NANO = 1_000_000_000
_NO_UMASK = 0xFFFF


def _mapped(member: str, owner: Owner | None) -> dict[str, Any]:
    return {} if owner is None else {member: {"Uid": owner.uid, "Gid": owner.gid}}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANO)


def text(
    config: MountConfig,
    setting: Mapping[str, Any],
    *,
    mountpoint: str,
    sid: int,
    block_size: int,
    allow_other: bool,
    metrics: str,
) -> str:
    """The JSON text; *setting* is the redacted setting record."""
    document = {
        "Meta": {
            "Retries": 10,
            "MaxDeletes": config.max_deletes,
            "SkipDirNlink": 20,
            "CaseInsensi": False,
            "ReadOnly": config.read_only,
            "NoBGJob": config.no_bgjob,
            "OpenCache": _nanoseconds(config.open_cache),
            "OpenCacheLimit": config.open_cache_limit,
            "Heartbeat": _nanoseconds(config.heartbeat),
            "MountPoint": mountpoint,
            "Subdir": config.subdir,
            "AtimeMode": config.atime_mode,
            "DirStatFlushPeriod": _NANO,
            "SkipDirMtime": _nanoseconds(config.skip_dir_mtime),
            "Sid": sid,
            "SortDir": config.sort_dir,
            "FastStatfs": False,
            "NetworkInterfaces": list(config.network_interfaces) or None,
        },
        "Format": dict(setting),
        "Chunk": {
            "CacheDir": cache_roots(config, str(setting.get("UUID", ""))),
            "CacheMode": config.cache_mode,
            "CacheSize": config.cache_size,
            "CacheItems": config.cache_items,
            "CacheChecksum": config.verify_cache_checksum,
            "CacheEviction": config.cache_eviction,
            "CacheScanInterval": _nanoseconds(config.cache_scan_interval),
            "CacheExpire": _nanoseconds(config.cache_expire),
            "OSCache": True,
            "FreeSpace": config.free_space_ratio,
            "AutoCreate": True,
            "Compress": setting.get("Compression") or "none",
            "MaxUpload": config.max_uploads,
            "MaxDownload": config.max_downloads,
            "MaxStageWrite": config.max_stage_write,
            "MaxRetries": config.io_retries,
            "UploadLimit": round((config.upload_limit or setting.get("UploadLimit") or 0) * 125_000),
            "DownloadLimit": round((config.download_limit or setting.get("DownloadLimit") or 0) * 125_000),
            "Writeback": config.writeback,
            "WritebackThresholdSize": config.writeback_threshold_size or block_size + 1,
            "UploadDelay": _nanoseconds(config.upload_delay),
            "UploadHours": ",".join(map(str, config.upload_hours or ())),
            "HashPrefix": bool(setting.get("HashPrefix")),
            "BlockSize": block_size,
            "GetTimeout": _nanoseconds(config.get_timeout),
            "PutTimeout": _nanoseconds(config.put_timeout),
            "CacheFullBlock": not config.cache_partial_only,
            "CacheLargeWrite": config.cache_large_write,
            "BufferSize": config.buffer_size,
            "Readahead": config.max_readahead or 8 * block_size,
            "Prefetch": config.prefetch,
        },
        "Security": {"EnableCap": config.enable_cap, "EnableSELinux": config.enable_selinux},
        "Port": {"PrometheusAgent": metrics},
        "Version": CLIENT_VERSION,
        "AttrTimeout": _nanoseconds(config.attr_cache),
        "DirEntryTimeout": _nanoseconds(config.dir_entry_cache),
        "NegEntryTimeout": _nanoseconds(config.negative_entry_cache),
        "EntryTimeout": _nanoseconds(config.entry_cache),
        "ReaddirCache": config.readdir_cache,
        "BackupMeta": _nanoseconds(config.backup_meta),
        "BackupSkipTrash": config.backup_skip_trash,
        "PrefixInternal": config.prefix_internal,
        "HideInternal": config.hide_internal,
        **_mapped("RootSquash", config.root_squash),
        **_mapped("AllSquash", config.all_squash),
        **({"NonDefaultPermission": True} if config.non_default_permission else {}),
        "UMask": _NO_UMASK if config.umask is None else config.umask,
        "Pid": os.getpid(),
        "PPid": os.getppid(),
        "FuseOpts": {
            "AllowOther": allow_other,
            "Options": [] if config.non_default_permission else ["default_permissions"],
            "MaxBackground": 64,
            "MaxWrite": config.max_fuse_io,
            "MaxReadAhead": config.max_fuse_io,
            "FsName": f"JuiceFS:{setting.get('Name', '')}",
            "Name": "juicefs",
            "DisableXAttrs": not config.enable_xattr,
            "EnableLocks": config.fuse_host == "kernel",
            "DirectMount": os.geteuid() == 0,
        },
        "Mountpoint": mountpoint,
    }
    return json.dumps(document, indent=1, ensure_ascii=False)

"""Numbers the volume format fixes (format §1.2, §1.3). Nothing here may depend on a mount's options."""

from typing import Final

CHUNK: Final = 1 << 26  # bytes; a file is cut into chunks of this size
META_VERSION: Final = 1
# What we call ourselves towards MinClientVersion/MaxClientVersion and in session records (format §2.6, §11.3).
CLIENT_VERSION: Final = "1.4.2+py"

ROOT: Final = 1
TRASH: Final = 0x7FFFFFFF10000000
SPECIAL: Final = 0x7FFFFFFF00000000  # inodes from here on are virtual or trash
ACCESSLOG_INO: Final = SPECIAL + 1
CONTROL_INO: Final = SPECIAL + 2
STATS_INO: Final = SPECIAL + 3
CONFIG_INO: Final = SPECIAL + 4
TRASH_NAME: Final = b".trash"

MAX_NAME: Final = 255  # bytes
MAX_SYMLINK: Final = 4096
MAX_FILE: Final = CHUNK << 31

# Type codes of attributes and directory entries.
FILE: Final = 1
DIRECTORY: Final = 2
SYMLINK: Final = 3
FIFO: Final = 4
BLOCK_DEVICE: Final = 5
CHAR_DEVICE: Final = 6
SOCKET: Final = 7

# Inode flag bits.
IMMUTABLE: Final = 1
APPEND: Final = 2
SKIP_TRASH: Final = 32

INODE_BATCH: Final = 1024
SLICE_BATCH: Final = 4096


def align4k(length: int) -> int:
    """Space that *length* bytes of a file count for: rounded up to 4096, and 4096 when nothing (format §1.2)."""
    return (length + 4095) & ~4095 if length > 0 else 4096

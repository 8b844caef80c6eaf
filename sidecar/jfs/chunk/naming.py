"""Names of a slice's blocks in the object storage (format §6.2): pure functions.

From a slice's id and size and the volume's block size follow all its names; nothing else is stored about them.
"""

from collections.abc import Iterator


def block_length(size: int, indx: int, block_size: int) -> int:
    """Uncompressed bytes of block *indx* of a slice of *size* bytes: all have *block_size* but the last."""
    return min(block_size, size - indx * block_size)


def block_count(size: int, block_size: int) -> int:
    """Number of blocks of a slice of *size* bytes."""
    return -(-size // block_size)


def block_key(slice_id: int, indx: int, length: int, *, hash_prefix: bool) -> str:
    """Key of block *indx*, which holds *length* uncompressed bytes."""
    if hash_prefix:
        return f"chunks/{slice_id % 256:02X}/{slice_id // 1_000_000}/{slice_id}_{indx}_{length}"
    return f"chunks/{slice_id // 1_000_000}/{slice_id // 1000}/{slice_id}_{indx}_{length}"


def slice_keys(slice_id: int, size: int, block_size: int, *, hash_prefix: bool) -> Iterator[str]:
    """Keys of all blocks of a slice."""
    for indx in range(block_count(size, block_size)):
        yield block_key(slice_id, indx, block_length(size, indx, block_size), hash_prefix=hash_prefix)

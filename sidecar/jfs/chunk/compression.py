"""Block compression (format §6.3): the object of a block is the raw LZ4 block, one zstd frame, or the block itself.

A codec is stateless and may be called from any thread; both libraries release the interpreter lock while they work and are
imported when the volume uses them. There is no "store if incompressible": the transformation is always applied.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from jfs.errors import ConfigError
from jfs.object.base import Data

NAMES: Final = ("none", "lz4", "zstd")


class Codec(NamedTuple):
    """compress(block) → object bytes; decompress(object bytes, block length) → block, ValueError when they do not decode to that."""

    compress: Callable[[Data], bytes]
    decompress: Callable[[Data, int], bytes]


def codec(name: str) -> Codec | None:
    """The codec of the setting's Compression; None when blocks are stored as they are (`none` or empty)."""
    if name in ("", "none"):
        return None
    if name == "lz4":
        return _lz4()
    if name == "zstd":
        return _zstd()
    raise ConfigError(f"there is no compression named {name!r}: use one of {', '.join(NAMES)}")


def _lz4() -> Codec:
    import lz4.block

    def compress(block: Data) -> bytes:
        packed: bytes = lz4.block.compress(block, store_size=False)
        return packed

    def decompress(packed: Data, length: int) -> bytes:
        try:
            block: bytes = lz4.block.decompress(packed, uncompressed_size=length)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        return _checked(block, length)

    return Codec(compress, decompress)


def _zstd() -> Codec:
    import zstandard

    # A (de)compressor must not be used by two threads at once; making one is cheap beside a block.
    def compress(block: Data) -> bytes:
        return zstandard.ZstdCompressor(level=1).compress(block)

    def decompress(packed: Data, length: int) -> bytes:
        try:
            block = zstandard.ZstdDecompressor().decompress(packed, max_output_size=length)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        return _checked(block, length)

    return Codec(compress, decompress)


def _checked(block: bytes, length: int) -> bytes:
    if len(block) != length:
        raise ValueError(f"{len(block)} bytes instead of {length}")
    return block

"""Pages of a directory listing, in the two forms an engine has them: decoded records, or the stored bytes.

`StoredPage` decodes on access only: a large listing is often answered from names and entries alone, and the FUSE side may
take the stored attributes as they are (`raw_attrs`), whose field order is that of its replies.
"""

from collections.abc import Sequence
from functools import cached_property

from jfs.meta.model.attr import Attr, Entry, unpack_attr, unpack_entry


class RecordPage:
    """A page of decoded records."""

    __slots__ = ("attrs", "entries", "names")

    raw_attrs: Sequence[bytes | None] | None = None

    def __init__(self, names: list[bytes], entries: list[Entry], attrs: list[Attr | None] | None) -> None:
        self.names = names
        self.entries = entries
        self.attrs = attrs


class StoredPage:
    """A page of stored bytes (format §3.1, §3.3)."""

    def __init__(
        self, names: list[bytes], raw_entries: list[bytes], raw_attrs: Sequence[bytes | None] | None = None
    ) -> None:
        self.names = names
        self.raw_entries = raw_entries
        self.raw_attrs = raw_attrs

    @cached_property
    def entries(self) -> list[Entry]:
        """CorruptRecord when one does not decode."""
        return [unpack_entry(raw) for raw in self.raw_entries]

    @cached_property
    def attrs(self) -> list[Attr | None] | None:
        """CorruptRecord when one does not decode."""
        if self.raw_attrs is None:
            return None
        return [None if raw is None else unpack_attr(raw) for raw in self.raw_attrs]

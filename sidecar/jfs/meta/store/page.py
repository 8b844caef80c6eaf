"""Pages of a directory listing, in the two forms an engine has them: decoded records, or the stored bytes.

`StoredPage` decodes on access only: a large listing is often answered from names and entries alone, and the FUSE side may
take the stored attributes as they are (`raw_attrs`), whose field order is that of its replies.
"""

from collections.abc import Sequence

from jfs.meta.model.attr import Attr, Entry, unpack_attr, unpack_entry


class RecordPage:
    """A page of decoded records."""

    __slots__ = ("attrs", "entries", "names")

    raw_entries: Sequence[bytes] | None = None
    raw_attrs: Sequence[bytes | None] | None = None

    def __init__(self, names: list[bytes], entries: list[Entry], attrs: list[Attr | None] | None) -> None:
        self.names = names
        self.entries = entries
        self.attrs = attrs


class StoredPage:
    """A page of stored bytes (format §3.1, §3.3)."""

    __slots__ = ("_attrs", "_entries", "names", "raw_attrs", "raw_entries")

    def __init__(
        self, names: list[bytes], raw_entries: list[bytes], raw_attrs: Sequence[bytes | None] | None = None
    ) -> None:
        self.names = names
        self.raw_entries: list[bytes] = raw_entries
        self.raw_attrs = raw_attrs
        self._entries: list[Entry] | None = None
        self._attrs: list[Attr | None] | None = None

    @property
    def entries(self) -> Sequence[Entry]:
        """CorruptRecord when one does not decode."""
        if self._entries is None:
            self._entries = [unpack_entry(raw) for raw in self.raw_entries]
        return self._entries

    @property
    def attrs(self) -> Sequence[Attr | None] | None:
        """CorruptRecord when one does not decode."""
        if self._attrs is None and self.raw_attrs is not None:
            self._attrs = [None if raw is None else unpack_attr(raw) for raw in self.raw_attrs]
        return self._attrs

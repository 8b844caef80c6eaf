from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Format(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("inode", "data")
    INODE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    inode: int
    data: bytes
    def __init__(self, inode: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Edge(_message.Message):
    __slots__ = ("parent", "inode", "name", "type")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    parent: int
    inode: int
    name: bytes
    type: int
    def __init__(self, parent: _Optional[int] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ..., type: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("inode", "index", "slices")
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    inode: int
    index: int
    slices: bytes
    def __init__(self, inode: _Optional[int] = ..., index: _Optional[int] = ..., slices: _Optional[bytes] = ...) -> None: ...

class SliceRef(_message.Message):
    __slots__ = ("id", "size", "refs")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    id: int
    size: int
    refs: int
    def __init__(self, id: _Optional[int] = ..., size: _Optional[int] = ..., refs: _Optional[int] = ...) -> None: ...

class Xattr(_message.Message):
    __slots__ = ("inode", "name", "value")
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    name: bytes
    value: bytes
    def __init__(self, inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Parent(_message.Message):
    __slots__ = ("inode", "parent", "cnt")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CNT_FIELD_NUMBER: _ClassVar[int]
    inode: int
    parent: int
    cnt: int
    def __init__(self, inode: _Optional[int] = ..., parent: _Optional[int] = ..., cnt: _Optional[int] = ...) -> None: ...

class Symlink(_message.Message):
    __slots__ = ("inode", "target")
    INODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    inode: int
    target: bytes
    def __init__(self, inode: _Optional[int] = ..., target: _Optional[bytes] = ...) -> None: ...

class Sustained(_message.Message):
    __slots__ = ("sid", "inodes")
    SID_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    sid: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sid: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class DelFile(_message.Message):
    __slots__ = ("inode", "length", "expire")
    INODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    length: int
    expire: int
    def __init__(self, inode: _Optional[int] = ..., length: _Optional[int] = ..., expire: _Optional[int] = ...) -> None: ...

class Stat(_message.Message):
    __slots__ = ("inode", "data_length", "used_space", "used_inodes")
    INODE_FIELD_NUMBER: _ClassVar[int]
    DATA_LENGTH_FIELD_NUMBER: _ClassVar[int]
    USED_SPACE_FIELD_NUMBER: _ClassVar[int]
    USED_INODES_FIELD_NUMBER: _ClassVar[int]
    inode: int
    data_length: int
    used_space: int
    used_inodes: int
    def __init__(self, inode: _Optional[int] = ..., data_length: _Optional[int] = ..., used_space: _Optional[int] = ..., used_inodes: _Optional[int] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("key", "max_space", "max_inodes", "used_space", "used_inodes", "type")
    KEY_FIELD_NUMBER: _ClassVar[int]
    MAX_SPACE_FIELD_NUMBER: _ClassVar[int]
    MAX_INODES_FIELD_NUMBER: _ClassVar[int]
    USED_SPACE_FIELD_NUMBER: _ClassVar[int]
    USED_INODES_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    key: int
    max_space: int
    max_inodes: int
    used_space: int
    used_inodes: int
    type: int
    def __init__(self, key: _Optional[int] = ..., max_space: _Optional[int] = ..., max_inodes: _Optional[int] = ..., used_space: _Optional[int] = ..., used_inodes: _Optional[int] = ..., type: _Optional[int] = ...) -> None: ...

class Acl(_message.Message):
    __slots__ = ("id", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: int
    def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class ChangeLog(_message.Message):
    __slots__ = ("version", "entry")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    version: int
    entry: bytes
    def __init__(self, version: _Optional[int] = ..., entry: _Optional[bytes] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("nodes", "edges", "chunks", "slice_refs", "xattrs", "parents", "symlinks", "sustained", "delfiles", "dirstats", "quotas", "acls", "counters", "changelogs", "user_quotas", "group_quotas")
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SLICE_REFS_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    SYMLINKS_FIELD_NUMBER: _ClassVar[int]
    SUSTAINED_FIELD_NUMBER: _ClassVar[int]
    DELFILES_FIELD_NUMBER: _ClassVar[int]
    DIRSTATS_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    ACLS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    CHANGELOGS_FIELD_NUMBER: _ClassVar[int]
    USER_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    GROUP_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    edges: _containers.RepeatedCompositeFieldContainer[Edge]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    slice_refs: _containers.RepeatedCompositeFieldContainer[SliceRef]
    xattrs: _containers.RepeatedCompositeFieldContainer[Xattr]
    parents: _containers.RepeatedCompositeFieldContainer[Parent]
    symlinks: _containers.RepeatedCompositeFieldContainer[Symlink]
    sustained: _containers.RepeatedCompositeFieldContainer[Sustained]
    delfiles: _containers.RepeatedCompositeFieldContainer[DelFile]
    dirstats: _containers.RepeatedCompositeFieldContainer[Stat]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    acls: _containers.RepeatedCompositeFieldContainer[Acl]
    counters: _containers.RepeatedCompositeFieldContainer[Counter]
    changelogs: _containers.RepeatedCompositeFieldContainer[ChangeLog]
    user_quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    group_quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[Edge, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., slice_refs: _Optional[_Iterable[_Union[SliceRef, _Mapping]]] = ..., xattrs: _Optional[_Iterable[_Union[Xattr, _Mapping]]] = ..., parents: _Optional[_Iterable[_Union[Parent, _Mapping]]] = ..., symlinks: _Optional[_Iterable[_Union[Symlink, _Mapping]]] = ..., sustained: _Optional[_Iterable[_Union[Sustained, _Mapping]]] = ..., delfiles: _Optional[_Iterable[_Union[DelFile, _Mapping]]] = ..., dirstats: _Optional[_Iterable[_Union[Stat, _Mapping]]] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., acls: _Optional[_Iterable[_Union[Acl, _Mapping]]] = ..., counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., changelogs: _Optional[_Iterable[_Union[ChangeLog, _Mapping]]] = ..., user_quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., group_quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...

class Footer(_message.Message):
    __slots__ = ("magic", "version", "infos")
    class SegmentInfo(_message.Message):
        __slots__ = ("offset", "num")
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        NUM_FIELD_NUMBER: _ClassVar[int]
        offset: _containers.RepeatedScalarFieldContainer[int]
        num: int
        def __init__(self, offset: _Optional[_Iterable[int]] = ..., num: _Optional[int] = ...) -> None: ...
    class InfosEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Footer.SegmentInfo
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Footer.SegmentInfo, _Mapping]] = ...) -> None: ...
    MAGIC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INFOS_FIELD_NUMBER: _ClassVar[int]
    magic: int
    version: int
    infos: _containers.MessageMap[str, Footer.SegmentInfo]
    def __init__(self, magic: _Optional[int] = ..., version: _Optional[int] = ..., infos: _Optional[_Mapping[str, Footer.SegmentInfo]] = ...) -> None: ...

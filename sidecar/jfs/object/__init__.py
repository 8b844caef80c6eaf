"""Object storages: named byte strings in a directory, an S3 bucket or memory.

Place in the flow: below `chunk` (blocks) and used directly by the `format`, `destroy` and `status` commands.

- `base.py`      the `ObjectStorage` protocol and `ObjectInfo`
- `connect.py`   `open_storage(kind, bucket, …)` and `for_volume(storage, name)`: the only way the other layers make one
- `memory.py`, `file.py`, `s3*.py`   the storages; foreign exceptions end here and become `jfs.errors.ObjectError`s
- `prefixed.py`, `encrypted.py` (with `encryption.py`), `sharded.py`   wrappers, in this order from the outside in
- `selftest.py`  what `format` does before it trusts a storage

Only `s3*.py` import aiobotocore, and only when an S3 storage is opened.
"""

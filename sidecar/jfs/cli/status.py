"""`jfs status META-URL`: the setting, the sessions and the usage of a volume, in the real client's JSON. `--stdin` is for programs:
it tells whether the metadata and the storage of a document can be used, and answers also when they cannot."""

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from jfs.errors import JfsError, VolumeError

if TYPE_CHECKING:
    from jfs.cli.document import Document
    from jfs.format.setting import Setting


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if arguments == ["--stdin"]:
        return asyncio.run(_from_document())
    parser = argparse.ArgumentParser(
        prog="jfs status",
        description="Show a volume's setting (without secrets), its sessions and its usage.",
        epilog="example: META_PASSWORD=… jfs status redis://host:6379/1",
    )
    parser.add_argument("url", metavar="META-URL")
    parser.add_argument(
        "-s", "--session", type=int, metavar="SID", help="show one session, with its locks and open removed files"
    )
    parser.add_argument(
        "-m", "--more", action="store_true", help="count what is in the trash or waits to be deleted (slow)"
    )
    parser.add_argument("--stdin", action="store_true", help="take a JSON document from standard input; stands alone")
    options = parser.parse_args(arguments)
    if options.stdin:
        parser.error("--stdin stands alone")
    from jfs.cli.environment import take_meta_password

    return asyncio.run(_status(options.url, take_meta_password(), options.session, more=options.more))


async def _status(url: str, password: str, sid: int | None, *, more: bool) -> int:
    from jfs.format.usable import check_versions
    from jfs.meta.connect import connect
    from jfs.meta.volume import load_setting, status
    from jfs.meta.volume.inspection import session_detail, waiting

    store = await connect(url, password=password)
    try:
        check_versions(await load_setting(store))
        answer: dict[str, Any] = await status(store)
        if sid is not None:
            sessions = [session for session in answer["Sessions"] if session["Sid"] == sid]
            if not sessions:
                raise VolumeError(f"the volume has no session {sid}")
            answer = sessions[0] | await session_detail(store, sid)
        elif more:
            answer["Stat"] |= await waiting(store)
    finally:
        await store.close()
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    return 0


async def _from_document() -> int:
    from jfs.cli import document

    given = document.read()
    answer: dict[str, Any] = {"setting": None, "used_space": 0, "used_inodes": 0, "sessions": 0}
    setting = await _metadata(given, answer)
    if "storage" in given.check:
        answer["storage"] = await _storage(given, setting)
    print(json.dumps(answer, ensure_ascii=False))
    return 0


async def _metadata(given: "Document", answer: dict[str, Any]) -> "Setting | None":
    """Ask the database; a database without a volume is fine, one of a volume that we must not touch is not."""
    from jfs.format.usable import check_usable
    from jfs.meta.connect import connect
    from jfs.meta.volume import existing_setting, status

    setting = None
    outcome = {"ok": True, "message": ""}
    try:
        store = await connect(given.metaurl, password=given.password)
        try:
            setting = await existing_setting(store)
            if setting is None:
                outcome["message"] = "the database can be used and holds no volume yet"
            else:
                found = await status(store)
                redacted = found["Setting"]
                answer["setting"] = {**redacted, "name": setting.name, "uuid": setting.uuid}
                answer["used_space"] = found["Stat"]["UsedSpace"]
                answer["used_inodes"] = found["Stat"]["UsedInodes"]
                answer["sessions"] = len(found["Sessions"])
                check_usable(setting)
        finally:
            await store.close()
    except JfsError as error:
        outcome = {"ok": False, "message": str(error)}
    if "metadata" in given.check:
        answer["metadata"] = outcome
    return setting


async def _storage(given: "Document", setting: "Setting | None") -> dict[str, Any]:
    """Put, read and delete a test object in the volume's storage, or in the one that the document describes."""
    from jfs.object.selftest import probe

    if setting is None and not given.bucket:
        return {"ok": False, "message": "neither the document nor a volume says which bucket to use"}
    try:
        storage = given.open_volume(setting) if setting is not None else given.open_storage()
        try:
            await probe(storage)
        finally:
            await storage.close()
    except JfsError as error:
        return {"ok": False, "message": str(error)}
    return {"ok": True, "message": ""}

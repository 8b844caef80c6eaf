"""Metadata of a volume as a file, and back (format §9.2, §9.4): the JSON of `juicefs dump`, and its binary form.

Place: beside `check`, between the commands and the record store; no mount and no session is needed. A dump is written while it is
read and loaded while it is parsed: memory holds a page of a directory and what is linked more than once, however large the
volume. Between engines nothing is converted but through typed records, so that any may be dumped and any loaded.
"""

"""What differs between the servers' languages: names, values in a text, upserts, locks and the shape of a commit.

A commit is one text of statements, sent in one packet: the first ones fail when a read of the attempt does not hold any
more, and then nothing of the rest is done. So all values stand in the text, as numbers or hexadecimal digits, never as
what somebody else wrote. Pure; the connections are in `postgres` and `mysql`.
"""

import abc
import errno
from collections.abc import Sequence
from typing import ClassVar

from jfs.errors import FsError

Value = int | bytes | str | None  # str: what a text column holds


class Dialect(abc.ABC):
    """One language."""

    name: ClassVar[str]  # of the engine, as in its URL
    for_update: ClassVar[str]
    for_share: ClassVar[str]
    concatenation: ClassVar[str]  # of two byte strings, as a template of both

    @abc.abstractmethod
    def quote(self, name: str) -> str:
        """A name of a table or column."""

    @abc.abstractmethod
    def literal(self, value: Value) -> str:
        """A value in a text. FsError(EINVAL) for what the server cannot hold."""

    @abc.abstractmethod
    def text_as_bytes(self, column: str) -> str:
        """An expression that gives a (quoted) text column as bytes."""

    @abc.abstractmethod
    def upsert(self, table: str, conflict: Sequence[str], updates: Sequence[tuple[str, str]]) -> str:
        """What follows the VALUES of an INSERT so that a row with the same *conflict* columns is changed instead: columns
        (quoted) with expressions in which `{old}` is the stored value and `{new}` the inserted one."""

    @abc.abstractmethod
    def demand(self, conditions: Sequence[str]) -> str:
        """A statement that fails unless all conditions hold."""

    @abc.abstractmethod
    def script(self, statements: Sequence[str]) -> str:
        """Statements as one text that is done as a whole or not at all."""

    @abc.abstractmethod
    def whole_part(self, number: str, divisor: int) -> str:
        """An expression: *number* divided, without the rest."""

    def condition(self, expression: str, value: Value) -> str:
        """That an expression has a value; long byte strings are compared by length and digest."""
        if isinstance(value, bytes) and len(value) > 512:
            from hashlib import md5

            digest = md5(value, usedforsecurity=False).hexdigest()
            return f"(octet_length({expression})={len(value)} AND md5({expression})='{digest}')"
        return f"{expression}={self.literal(value)}"


class PostgresDialect(Dialect):
    """PostgreSQL."""

    name = "postgres"
    for_update = " FOR UPDATE"
    for_share = " FOR SHARE"
    concatenation = "{old}||{new}"

    def quote(self, name: str) -> str:
        return f'"{name}"'

    def literal(self, value: Value) -> str:
        if isinstance(value, int):
            return str(value)
        if isinstance(value, bytes):
            return f"'\\x{value.hex()}'::bytea"
        if value is None:
            return "NULL"
        if "\0" in value:
            raise FsError(errno.EINVAL)
        return "'" + value.replace("'", "''") + "'"  # standard_conforming_strings is on in our sessions

    def text_as_bytes(self, column: str) -> str:
        return f"convert_to({column},'UTF8')"

    def upsert(self, table: str, conflict: Sequence[str], updates: Sequence[tuple[str, str]]) -> str:
        target = f" ON CONFLICT({','.join(conflict)}) DO "
        if not updates:
            return target + "NOTHING"
        assignments = (
            f"{column}={expression.format(old=f'{table}.{column}', new=f'excluded.{column}')}"
            for column, expression in updates
        )
        return target + "UPDATE SET " + ",".join(assignments)

    def demand(self, conditions: Sequence[str]) -> str:
        return f"SELECT 1/(CASE WHEN {' AND '.join(conditions)} THEN 1 ELSE 0 END)"

    def script(self, statements: Sequence[str]) -> str:
        return ";".join(statements)  # one packet of the simple protocol is one transaction

    def whole_part(self, number: str, divisor: int) -> str:
        return f"{number}/{divisor}"


class MysqlDialect(Dialect):
    """MySQL and MariaDB."""

    name = "mysql"
    for_update = " FOR UPDATE"
    for_share = " LOCK IN SHARE MODE"
    concatenation = "concat({old},{new})"

    def quote(self, name: str) -> str:
        return f"`{name}`"

    def literal(self, value: Value) -> str:
        if isinstance(value, int):
            return str(value)
        if isinstance(value, bytes):
            return f"x'{value.hex()}'"
        if value is None:
            return "NULL"
        return f"_utf8mb4 x'{value.encode().hex()}'"

    def text_as_bytes(self, column: str) -> str:
        return f"CAST(CONVERT({column} USING utf8mb4) AS BINARY)"

    def upsert(self, table: str, conflict: Sequence[str], updates: Sequence[tuple[str, str]]) -> str:
        chosen = updates or [(conflict[0], "{old}")]
        assignments = (
            f"{column}={expression.format(old=column, new=f'VALUES({column})')}" for column, expression in chosen
        )
        return " ON DUPLICATE KEY UPDATE " + ",".join(assignments)

    def demand(self, conditions: Sequence[str]) -> str:
        # The largest number plus one: the only arithmetic that fails in a SELECT of every version.
        return f"SELECT 18446744073709551615+IF({' AND '.join(conditions)},0,1)"

    def script(self, statements: Sequence[str]) -> str:
        return ";".join(("BEGIN", *statements, "COMMIT"))

    def whole_part(self, number: str, divisor: int) -> str:
        return f"{number} DIV {divisor}"

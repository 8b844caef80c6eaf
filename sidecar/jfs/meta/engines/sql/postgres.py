"""PostgreSQL by asyncpg.

Reads are prepared statements, several in one as arrays of rows; a commit is one packet of the simple protocol, which the
server runs as one transaction (read committed, as the real client's; the row locks of the commit make it exact).
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from jfs.errors import ConfigError, Conflict, CredentialsRefused, FsError, JfsError, StoreUnavailable
from jfs.meta.engines.sql.dialect import PostgresDialect
from jfs.meta.engines.sql.kinds import Row
from jfs.meta.engines.sql.link import Link, Lost, new_name
from jfs.meta.engines.sql.statements import Select
from jfs.meta.engines.sql.url import ServerAddress

# SQLSTATEs that mean: nothing was done, try again. Division by zero is what a failed check of ours ends with.
_AGAIN: Final = frozenset(("22012", "23505", "40001", "40P01", "25P02", "55P03"))
_STARTING: Final = frozenset(("57P03", "53300", "57P01", "57P02"))  # starting up, too many connections, shutting down
_REFUSED: Final = ("28",)
_FULL: Final = frozenset(("53100", "53200", "54000"))
_ANSWER_WITHIN: Final = 60.0  # seconds for one request
_TOGETHER: Final = 500  # queries in one; a row may have 1,600 columns
_CONNECT_WITHIN: Final = 10


# asyncpg's stubs know neither the fields of its errors nor the parameter of its connections.
Connection = Any


def state_of(error: asyncpg.PostgresError) -> str:
    """The SQLSTATE of an error."""
    return str(getattr(error, "sqlstate", None) or "")


def converted(error: asyncpg.PostgresError, address: str) -> JfsError:
    """Our exception for what the server said."""
    state = state_of(error)
    if state in _AGAIN:
        return Conflict()
    if state in _FULL:
        return FsError(errno.ENOSPC)
    if state in ("22003", "22000"):  # a number larger than the column
        return FsError(errno.EOVERFLOW)
    if state in ("22001", "54001"):
        return FsError(errno.E2BIG)
    if state in ("22021", "22P05"):
        return FsError(errno.EINVAL)
    if state.startswith(_REFUSED):
        return CredentialsRefused(
            f"{address} refused the user or the password; check the metadata address and META_PASSWORD"
        )
    if state == "3D000":
        return StoreUnavailable(f"{address}: this database does not exist; create it")
    if state == "42501":
        return StoreUnavailable(f"{address}: the user lacks a permission ({error}); grant it")
    if state == "25006":
        return StoreUnavailable(f"{address} is read-only, perhaps a standby; use the address of the primary")
    return StoreUnavailable(f"{address} failed: {error}")


class PostgresLink(Link[Connection]):
    """Connections by asyncpg."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__(address, "PostgreSQL")
        self.dialect = PostgresDialect()
        self._dsn = address.dsn
        self._password = address.password

    async def _dial(self) -> Connection:
        try:
            return await asyncpg.connect(
                self._dsn,
                password=self._password or None,
                timeout=_CONNECT_WITHIN,
                statement_cache_size=512,
                command_timeout=_ANSWER_WITHIN,
                server_settings={"standard_conforming_strings": "on", "application_name": new_name()},
            )
        except asyncpg.PostgresError as error:
            if state_of(error) in _STARTING:
                raise Lost(str(error), sent=False) from error
            raise converted(error, self.address) from error
        except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
            if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, OSError):
                raise ConfigError(f"the metadata address of {self.address} is not understood: {error}") from error
            raise Lost(str(error) or type(error).__name__, sent=False) from error

    async def _hang_up(self, connection: Connection) -> None:
        connection.terminate()

    def _is_open(self, connection: Connection) -> bool:
        return not connection.is_closed()

    @contextmanager
    def _meaning(self, connection: Connection, *, sent: bool) -> Iterator[None]:
        """Around a request: its failure becomes Lost, or what the server's refusal means."""
        try:
            yield
        except asyncpg.PostgresError as error:
            if state_of(error) in _STARTING or connection.is_closed():
                raise Lost(str(error), sent=sent) from error
            raise converted(error, self.address) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
            # An internal error is what asyncpg answers after the server said, unasked, that it ends the connection.
            raise Lost(str(error) or type(error).__name__, sent=sent) from error

    async def _ask(self, connection: Connection, selects: Sequence[Select]) -> list[Sequence[Row]]:
        with self._meaning(connection, sent=False):
            try:
                if len(selects) == 1:
                    return [await connection.fetch(_numbered(selects[0].text), *selects[0].values)]
                found: list[Sequence[Row]] = []
                for start in range(0, len(selects), _TOGETHER):
                    together = selects[start : start + _TOGETHER]
                    texts = ",".join(f"ARRAY({_as_row(select.text)})" for select in together)
                    values = [value for select in together for value in select.values]
                    found += await connection.fetchrow(_numbered(f"SELECT {texts}"), *values)
                return found
            except asyncpg.UndefinedTableError:
                return [[] for _ in selects]

    async def _run(self, connection: Connection, text: str) -> None:
        if connection.is_closed():
            raise Lost("it was closed", sent=False)
        with self._meaning(connection, sent=True):
            await connection.execute(text)

    async def _increment(self, connection: Connection, counter: str, count: int, initial: int) -> int:
        text = (
            f"INSERT INTO {self.prefix}counter AS c(name,value) VALUES($1,$2::bigint+$3) "
            "ON CONFLICT(name) DO UPDATE SET value=c.value+$3 RETURNING value"
        )
        with self._meaning(connection, sent=True):
            taken: int = await connection.fetchval(text, counter, initial, count)
        return taken

    def _name(self, connection: Connection) -> str:
        return str(connection.get_settings().application_name)

    async def _end(self, connection: Connection, name: str) -> bool:
        text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name=$1"
        with self._meaning(connection, sent=False):
            return bool(await connection.fetch(text, name))

    async def tables(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for table, column, kind in await self.rows(
            "SELECT c.relname::text,a.attname::text,format_type(a.atttypid,NULL) FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid=c.oid WHERE c.relkind='r' AND a.attnum>0 AND NOT a.attisdropped "
            "AND c.relnamespace=(SELECT oid FROM pg_namespace WHERE nspname=current_schema())"
        ):
            found.setdefault(table, {})[column] = kind
        return found

    async def indexes(self) -> frozenset[str]:
        return frozenset(
            name
            for (name,) in await self.rows("SELECT indexname::text FROM pg_indexes WHERE schemaname=current_schema()")
        )


def _as_row(text: str) -> str:
    return f"SELECT found FROM ({text}) found"


def _numbered(text: str) -> str:
    first, *others = text.split("?")
    return first + "".join(f"${number}{piece}" for number, piece in enumerate(others, 1))

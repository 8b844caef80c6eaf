"""MySQL and MariaDB by asyncmy.

Everything goes as texts of several statements, each in one packet: reads with their values filled in, and commits. A
statement that fails ends the text, so that the COMMIT at its end is never reached; what was begun is rolled back then.
Sessions are in read committed (the locks of the commit make it exact) and strict, so that nothing is ever cut to fit. Each
holds a user lock (GET_LOCK), whose name is the connection's: numbers of connections begin anew with the server, names do not.
"""

import asyncio
import errno
import logging
import ssl
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncmy
from asyncmy.constants import CLIENT
from asyncmy.errors import Error, MySQLError

from jfs.errors import Conflict, CredentialsRefused, FsError, JfsError, StoreUnavailable
from jfs.meta.engines.sql.dialect import MysqlDialect
from jfs.meta.engines.sql.kinds import Row
from jfs.meta.engines.sql.link import Link, Lost, new_name
from jfs.meta.engines.sql.statements import Select, Statements
from jfs.meta.engines.sql.url import ServerAddress

log = logging.getLogger(__name__)

# Numbers of errors (`perror` names them): a check of ours failed, duplicate key, deadlock, lock wait, record changed.
_AGAIN: Final = frozenset((1690, 1062, 1213, 1205, 1020))
_LOST: Final = frozenset((2006, 2013, 1053, 1927, 2014, 2055, 4031))
_BUSY: Final = frozenset((1040, 1203, 1226))  # too many connections
_FULL: Final = frozenset((1021, 1114, 1041, 1037))
_REFUSED: Final = frozenset((1045, 1698, 1044, 1227, 1142, 1251))
_NO_TABLE: Final = 1146
_NO_THREAD: Final = 1094
_ANSWER_WITHIN: Final = 60.0  # seconds for one request
_CONNECT_WITHIN: Final = 10.0


def converted(number: int, text: str, address: str) -> JfsError:
    """Our exception for what the server said."""
    if number in _AGAIN:
        return Conflict()
    if number in _FULL:
        return FsError(errno.ENOSPC)
    if number == 1264:  # a number larger than the column
        return FsError(errno.EOVERFLOW)
    if number == 1406:  # longer than the column
        return FsError(errno.E2BIG)
    if number in (1366, 3988):  # not in the column's character set
        return FsError(errno.EINVAL)
    if number in _REFUSED:
        return CredentialsRefused(
            f"{address} refused the user, the password or a permission; check the metadata address and META_PASSWORD"
        )
    if number == 1049:
        return StoreUnavailable(f"{address}: this database does not exist; create it")
    if number in (1290, 1792, 1836):
        return StoreUnavailable(f"{address} is read-only, perhaps a replica; use the address of the primary")
    return StoreUnavailable(f"{address} failed: {text} ({number})")


class MysqlLink(Link[Any]):
    """Connections by asyncmy, which has no types."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__(address, "MySQL")
        self.dialect = MysqlDialect()
        self._server = address
        self._statements = Statements(self.dialect, self.prefix)
        self._names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def _tls(self) -> ssl.SSLContext | None:
        if self._server.tls == "false":
            return None
        context = ssl.create_default_context()
        if self._server.tls != "true":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def _dial(self) -> Any:
        server = self._server
        try:
            connection = await asyncio.wait_for(
                asyncmy.connect(
                    host=server.host or "localhost",
                    port=server.port or 3306,
                    unix_socket=server.socket or None,
                    user=server.user,
                    password=server.password,
                    db=server.database,
                    ssl=self._tls(),
                    charset="utf8mb4",
                    autocommit=True,
                    client_flag=CLIENT.MULTI_STATEMENTS,
                ),
                _CONNECT_WITHIN,
            )
        except Error as error:
            number = _number(error)
            if number in _BUSY | _LOST or number in (2002, 2003):
                raise Lost(str(error), sent=False) from error
            raise converted(number, _words(error), self.address) from error
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Lost(str(error) or type(error).__name__, sent=False) from error
        try:
            await self._texts(
                connection,
                "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;"
                "SET SESSION sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
                sent=False,
            )
            await self._take_name(connection)
        except BaseException:
            await self._hang_up(connection)
            raise
        return connection

    async def _take_name(self, connection: Any) -> None:
        name = new_name()
        try:
            await self._texts(connection, f"DO GET_LOCK('{name}',0)", sent=False)
        except Refusal as refusal:  # as clusters of Galera may
            log.info("%s has no user locks (%s): it may remain unknown what became of a commit", self.address, refusal)
        else:
            self._names[connection] = name

    def _name(self, connection: Any) -> str:
        return self._names.get(connection, "")

    async def _end(self, connection: Any, name: str) -> bool:
        (((number,),),) = await self._texts(connection, f"SELECT IS_USED_LOCK('{name}')", sent=False)
        if number is None:
            return False
        try:
            await self._texts(connection, f"KILL {number}", sent=False)
        except Refusal as refusal:
            if refusal.number != _NO_THREAD:
                raise converted(refusal.number, refusal.text, self.address) from refusal
        return True

    async def _hang_up(self, connection: Any) -> None:
        connection.close()

    def _is_open(self, connection: Any) -> bool:
        return bool(connection.connected)

    async def _texts(self, connection: Any, text: str, *, sent: bool) -> list[Sequence[Row]]:
        """The results of all statements of a text."""
        results: list[Sequence[Row]] = []
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                async with connection.cursor() as cursor:
                    await cursor.execute(text)
                    results.append(await cursor.fetchall() if cursor.description else ())
                    while await cursor.nextset():
                        results.append(await cursor.fetchall() if cursor.description else ())
        except MySQLError as error:
            number = _number(error)
            if number in _LOST or not number or not self._is_open(connection):
                connection.close()
                raise Lost(_words(error), sent=sent) from error
            raise Refusal(number, _words(error)) from error
        except (OSError, TimeoutError, asyncio.IncompleteReadError, RuntimeError) as error:
            connection.close()
            raise Lost(str(error) or type(error).__name__, sent=sent) from error
        return results

    async def _ask(self, connection: Any, selects: Sequence[Select]) -> list[Sequence[Row]]:
        text = ";".join(self._statements.filled(select) for select in selects)
        try:
            return await self._texts(connection, text, sent=False)
        except Refusal as refusal:
            if refusal.number == _NO_TABLE:
                return [() for _ in selects]
            raise converted(refusal.number, refusal.text, self.address) from refusal

    async def _run(self, connection: Any, text: str) -> None:
        try:
            await self._texts(connection, text, sent=True)
        except Refusal as refusal:
            await self._roll_back(connection)
            raise converted(refusal.number, refusal.text, self.address) from refusal

    async def _roll_back(self, connection: Any) -> None:
        try:
            await self._texts(connection, "ROLLBACK", sent=False)
        except (Lost, Refusal):  # the server rolls back what a broken connection has begun
            connection.close()

    async def _increment(self, connection: Any, counter: str, count: int, initial: int) -> int:
        name = self.dialect.literal(counter)
        text = (
            f"INSERT INTO {self.prefix}counter(name,value) VALUES({name},LAST_INSERT_ID({initial + count})) "
            f"ON DUPLICATE KEY UPDATE value=LAST_INSERT_ID(value+{count});SELECT LAST_INSERT_ID()"
        )
        try:
            results = await self._texts(connection, text, sent=True)
        except Refusal as refusal:
            raise converted(refusal.number, refusal.text, self.address) from refusal
        value: int = results[-1][0][0]
        return value

    async def tables(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for table, column, kind in await self.rows(
            "SELECT table_name,column_name,column_type FROM information_schema.columns WHERE table_schema=database()"
        ):
            found.setdefault(table, {})[column] = kind.decode() if isinstance(kind, bytes) else kind
        return found

    async def indexes(self) -> frozenset[str]:
        return frozenset(
            name
            for (name,) in await self.rows(
                "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema=database()"
            )
        )


class Refusal(Exception):
    """The server said no."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text


def _number(error: Exception) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _words(error: Exception) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)
